"""Real launches on emulated nodes, with the time of every step that a task can see: what calibration and validation
measure.

A `Workbench` is a real site with a real Slurm cluster on this machine and a small image. Its tasks run `stamp`, a
static program that writes the time and becomes the next command, so a container's start is the time between the
stamp before `shifter` and the one inside.
"""

from __future__ import annotations

import http.client
import os
import shutil
import statistics
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from sim import busybox_image
from sim.site import SYSTEM_PATH, Site

USER = 65534
IMAGE = "bench:1"
STAMP = r"""
#include <stdio.h>
#include <time.h>
#include <unistd.h>
int main(int count, char **words) {
    struct timespec now;
    char line[128];
    clock_gettime(CLOCK_REALTIME, &now);
    int length = snprintf(line, sizeof line, "%s %ld.%09ld\n", words[1], (long)now.tv_sec, now.tv_nsec);
    if (write(1, line, length) != length) return 1;
    if (count > 2) { execvp(words[2], words + 2); return 127; }
    return 0;
}
"""


#: What a workbench needs beside what a site needs.
TOOLS = ("slurmctld", "slurmd", "srun", "salloc", "unshare", "gcc", "skopeo")


class LaunchFailed(Exception):
    """A real launch did not work; the text has what the program said."""


@dataclass(frozen=True)
class Instants:
    """One real launch on `nodes` nodes: seconds after submission, the least of several repeats each.

    first and last: the first and the last task begin. inside: the last task runs in its container (0.0: none was
    asked for). over: the job is over and its user's prompt is back.
    """

    nodes: int
    first: float
    last: float
    inside: float
    over: float


@dataclass(frozen=True)
class Workbench:
    """A site that is up, its image's identifier, and the stamp program (seen under the same path in containers)."""

    site: Site
    identifier: str
    stamp: Path
    nodes: int

    @property
    def image(self) -> Path:
        """The image's file."""
        return (self.site.directory / "images" / f"{self.identifier}.squashfs").resolve()

    @property
    def request(self) -> list[str]:
        """Image and volume, as options of `shifter` and, with the plugin, of `srun`."""
        return [f"--image=id:{self.identifier}", f"--volume={self.stamp.parent}:/scratch"]

    @property
    def configuration(self) -> str:
        """The path of the site's udiRoot.conf."""
        return str(self.site.directory / "etc" / "udiRoot.conf")

    @property
    def names(self) -> list[str]:
        """The emulated nodes."""
        return [f"n{i + 1}" for i in range(self.nodes)]

    def container(self) -> list[str]:
        """The command line of a start whose program is the stamp."""
        return ["shifter", *self.request, f"/scratch/{self.stamp.name}", "inside"]

    def configure(self, *, cold: bool) -> None:
        """Cold: every start plans and mounts anew, as the first one on a node does. Else nodes keep image and plan."""
        file = Path(self.configuration)
        lines = [line for line in file.read_text().splitlines() if not line.startswith(("planCache=", "holdLinger="))]
        fresh = file.with_name(f".{file.name}.new")  # an epilog that still runs must not read half a file
        fresh.write_text("\n".join([*lines, *(["planCache=0", "holdLinger=0"] if cold else [])]) + "\n")
        fresh.chmod(0o644)
        fresh.replace(file)

    def start(self, command: Sequence[str]) -> float:
        """Seconds from a stamp on this machine to the last stamp of the command that follows it. Raises LaunchFailed."""
        times = _stamps(self.site.run_as(USER, [str(self.stamp), "outside", *command]))
        return max(t for _, t in times) - min(t for _, t in times)

    def cpu_seconds(self) -> float:
        """CPU that all nodes' processes, also those that have ended, have used so far."""
        cluster = self.site.cluster()
        return sum(_tree_seconds(cluster.pid(f"n{i + 1}")) for i in range(self.nodes))

    def work(self) -> float:
        """CPU seconds a node of one srun on all nodes, its end included. Raises LaunchFailed."""
        self.site.cluster().wait_idle(self.names, 120.0)
        before = self.cpu_seconds()
        self.launch(self.nodes, (), 1)
        self.site.cluster().wait_idle(self.names, 120.0)
        return (self.cpu_seconds() - before) / self.nodes

    def allocation(self, options: Sequence[str] = ()) -> tuple[float, float]:
        """CPU seconds a node of an allocation of all nodes in which nothing runs: until it is there (the prologs), and
        its end. Raises LaunchFailed."""
        self.site.cluster().wait_idle(self.names, 120.0)
        before = self.cpu_seconds()
        argv = ["salloc", "--quiet", f"-N{self.nodes}", *options, "sh", "-c", "echo there; read line"]
        environment = {**self.site.environment(), "PATH": f"{self.site.bin}:{SYSTEM_PATH}", "HOME": "/"}
        with subprocess.Popen(
            argv,
            user=USER,
            group=USER,
            extra_groups=[],
            env=environment,
            cwd="/",
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as job:
            if job.stdout is None or job.stdin is None or job.stdout.readline() != "there\n":
                raise LaunchFailed(f"salloc -N{self.nodes} ended without an allocation")
            there = self.cpu_seconds()
            job.stdin.close()
        self.site.cluster().wait_idle(self.names, 120.0)
        return (there - before) / self.nodes, (self.cpu_seconds() - there) / self.nodes

    def launch(self, nodes: int, command: Sequence[str], repeats: int, options: Sequence[str] = ()) -> Instants:
        """`srun` of one task a node on so many emulated nodes: each instant's least of `repeats`. `options` are
        srun's: with `request`, the prolog prepares the environment. Raises LaunchFailed."""
        cluster = self.site.cluster()
        found = []
        for _ in range(repeats):
            cluster.wait_idle(self.names, 120.0)
            argv = ["srun", "--quiet", f"-N{nodes}", f"-n{nodes}", *options, str(self.stamp), "outside", *command]
            began = time.time()
            times = _stamps(self.site.run_as(USER, argv, timeout=300.0))
            over = time.time() - began
            outside = [t - began for word, t in times if word == "outside"]
            inside = [t - began for word, t in times if word == "inside"]
            if len(outside) != nodes or (command and len(inside) != nodes):
                raise LaunchFailed(f"{nodes} tasks expected, {len(outside)} began, {len(inside)} got into a container")
            found.append((min(outside), max(outside), max(inside, default=0.0), over))
        return least([Instants(nodes, *times) for times in found])


def least(repeats: Sequence[Instants]) -> Instants:
    """Each instant's least of several launches on as many nodes: what the machine does when it does nothing else."""
    times = zip(*((i.first, i.last, i.inside, i.over) for i in repeats), strict=True)
    return Instants(repeats[0].nodes, *(min(column) for column in times))


def _tree_seconds(pid: int) -> float:
    """CPU of a process, of its children that were waited for, and of those that live (proc(5), stat fields 14 to 17)."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except (FileNotFoundError, ProcessLookupError):
        return 0.0  # it has ended, and its parent has its figures
    own = sum(int(field) for field in fields[11:15]) / os.sysconf("SC_CLK_TCK")
    return own + sum(_tree_seconds(int(child)) for child in children)


def _stamps(done: subprocess.CompletedProcess[str]) -> list[tuple[str, float]]:
    if done.returncode != 0:
        raise LaunchFailed(f"{' '.join(done.args[:4])} ... ended with {done.returncode}: {done.stderr.strip()[-300:]}")
    words = [line.split() for line in done.stdout.splitlines()]
    return [(word, float(seconds)) for word, seconds in words]


@contextmanager
def workbench(directory: Path, nodes: int) -> Iterator[Workbench]:
    """A site with `nodes` emulated nodes in a new directory, which is removed at the end. Raises SiteError, LaunchFailed."""
    missing = [tool for tool in TOOLS if not shutil.which(tool)]
    if missing:
        raise LaunchFailed(f"this machine has no {', '.join(missing)}: run `make build`")
    try:
        directory.mkdir(mode=0o755)
    except FileExistsError:
        raise LaunchFailed(f"{directory} is there already: name a new directory, which is removed at the end") from None
    except OSError as error:
        raise LaunchFailed(f"{directory}: {error.strerror}: name a new directory in one that is there") from None
    try:
        with Site.up(directory / "site", nodes=nodes) as site:
            stamp = directory / "stamp"
            compiler = ["gcc", "-static", "-O2", "-x", "c", "-", "-o", str(stamp)]
            subprocess.run(
                compiler, input=STAMP, text=True, check=True, capture_output=True, env={**os.environ, "LC_ALL": "C"}
            )
            layout = directory / "oci"
            busybox_image.write(layout)
            site.push(f"{layout}:latest", IMAGE)
            for verb in ("pull", "lookup"):
                done = site.run_as(USER, ["shifterimg", verb, IMAGE])
                if done.returncode != 0:
                    raise LaunchFailed(f"shifterimg {verb} {IMAGE}: {done.stderr.strip()}")
            yield Workbench(site, done.stdout.strip(), stamp, nodes)
    except busybox_image.ImageNotMade as error:
        raise LaunchFailed(str(error)) from error
    except subprocess.TimeoutExpired as error:
        raise LaunchFailed(f"{' '.join(map(str, error.cmd[:4]))} ... did not end in {error.timeout:g} s") from error
    except subprocess.CalledProcessError as error:
        lines = (error.stderr or "no reason given").strip().splitlines()
        said = next((line for line in lines if "error" in line), lines[-1])
        raise LaunchFailed(f"{error.cmd[0]} ended with {error.returncode}: {said}") from error
    except http.client.HTTPException as error:
        raise LaunchFailed(f"the gateway's answer to a look-up was cut off: {error!r}") from error
    finally:
        shutil.rmtree(directory)


def spread(samples: Sequence[float]) -> tuple[float, float, float]:
    """(median, 5%, 95%) of samples."""
    ordered = sorted(samples)
    last = len(ordered) - 1
    return statistics.median(ordered), ordered[round(0.05 * last)], ordered[round(0.95 * last)]
