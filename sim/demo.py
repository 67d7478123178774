"""The main job, from nothing to a user's process in a container, on a site of its own: `shifter-sim demo`, `make run`.

Every step is printed as the command that a person would type, with its output and its time. What it starts it ends, also
when a step fails or Ctrl-C is pressed, and afterwards it looks for itself: mounts, loop devices and processes that
name the site's directory are printed and make it fail.
"""

import argparse
import os
import pwd
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from sim import busybox_image, leftovers
from sim.daemon import tail
from sim.site import SYSTEM_PATH, Site, SiteError

T = TypeVar("T")
OFFLINE_IMAGE = "busybox:latest"


class StepFailed(Exception):
    """A command of the demonstration did not do what it should; the text is for the person who watches."""


@dataclass(frozen=True)
class User:
    """The unprivileged user who runs the image."""

    name: str
    uid: int
    gid: int
    groups: tuple[int, ...]


def register(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `demo` and `image` to shifter-sim's commands."""
    demo = commands.add_parser(
        "demo",
        help="bring a site up, pull an image, run it as an unprivileged user, take the site down",
        description="The main job from nothing, each step printed as the command that a person would type.",
    )
    demo.add_argument(
        "--image",
        default="",
        help="pull this one (docker.io/library/alpine:latest); default: made of this machine's busybox",
    )
    demo.add_argument(
        "--dir", type=Path, help="keep the site's files here; default: a directory in /tmp, removed at the end"
    )
    demo.add_argument("--location-url", default="", metavar="URL", help="where the registry named by --image answers")
    demo.add_argument(
        "--nodes", type=int, default=0, metavar="N", help="with a Slurm cluster of N nodes, and a job on it"
    )
    demo.set_defaults(run=run)
    image = commands.add_parser(
        "image",
        help="write an OCI image of this machine's busybox, to push to a registry with skopeo",
        description="Write an OCI image layout of this machine's (static) busybox; needs no network.",
    )
    image.add_argument("directory", type=Path)
    image.set_defaults(run=make_image)


def make_image(options: argparse.Namespace) -> int:
    try:
        busybox_image.write(options.directory)
    except busybox_image.ImageNotMade as error:
        raise SiteError(str(error)) from error
    return 0


def run(options: argparse.Namespace) -> int:
    """Run the demonstration; the exit status is 0 when every step did what it should and nothing is left."""
    for ending in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(ending, signal.default_int_handler)
    if options.dir:
        directory = options.dir.resolve()
    else:
        directory = Path(tempfile.mkdtemp(prefix="shifter-", dir="/tmp"))
        directory.chmod(0o755)
    started = time.monotonic()
    status = 1
    try:
        demonstrate(directory, options.image, options.location_url, options.nodes)
        status = 0
    except (StepFailed, SiteError) as error:
        print(f"\nFAILED: {error}", file=sys.stderr)
        if text := tail(directory / "log" / "gateway.log"):
            print(f"\nthe gateway's last lines:\n{text}", file=sys.stderr)
    except KeyboardInterrupt:
        print("\ninterrupted: taking the site down", file=sys.stderr)
        status = 130
    finally:
        for ending in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # a second Ctrl-C must not stop the cleaning up
            signal.signal(ending, signal.SIG_IGN)
        if (directory / "run" / "site.json").exists():
            show("#", f"shifter-sim site down --dir {directory}", lambda: Site.take_down(directory))
        if not options.dir:
            shutil.rmtree(directory)
    left = leftovers.after(directory)
    print(f"\nleft behind: {'; '.join(left) or 'no mount, no loop device, no process'}   (findmnt, losetup -a, ps)")
    if options.dir:
        print(f"kept: {directory}   (shifter-sim site up --dir {directory})")
    if status == 0:
        print(f"done in {time.monotonic() - started:.1f} s")
    return status if not left else status or 1


def demonstrate(directory: Path, wanted: str, location_url: str, nodes: int = 0) -> None:
    """The steps, on a site in `directory` with `nodes` Slurm nodes; raises StepFailed or SiteError at the first that fails."""
    user = choose_user()
    print(f"Commands marked $ run as {user.name} (uid {user.uid}), those marked # as root.\n")
    locations = location_of(wanted, location_url)
    typed = f"shifter-sim site up --dir {directory}"
    typed += "".join(f" --location {name}={url}" for name, url in locations.items() if url)
    typed += f" --nodes {nodes}" if nodes else ""
    site = show("#", typed, lambda: Site.up(directory, locations=locations, nodes=nodes))
    show("#", f'eval "$(shifter-sim site env --dir {directory})"', site.environment)
    root = Prompt(site, None)
    prompt = Prompt(site, user)
    image = wanted or OFFLINE_IMAGE
    if not wanted:
        layout = directory / "busybox-oci"
        root.run(["shifter-sim", "image", str(layout)])
        target = f"docker://{site.registry}/{OFFLINE_IMAGE}"
        root.run(["skopeo", "copy", "--quiet", "--dest-tls-verify=false", f"oci:{layout}:latest", target])
    prompt.run(["shifterimg", "pull", image])
    prompt.run(["shifterimg", "images"])
    release = prompt.run(["shifter", f"--image={image}", "cat", "/etc/os-release"], capture=True)
    if "NAME=" not in release:
        raise StepFailed("the container's /etc/os-release has no NAME")
    identity = prompt.run(["shifter", f"--image={image}", "id"], capture=True)
    if f"uid={user.uid}" not in identity:
        raise StepFailed(f"in the container the user should still be uid {user.uid}")
    volume = directory / "scratch" / user.name
    prompt.run(["mkdir", "-p", str(volume)])
    shell = "echo written in the container > /data/note && cat /data/note"
    prompt.run(["shifter", f"--image={image}", f"--volume={volume}:/data", "sh", "-c", shell], capture=True)
    if "written in the container" not in prompt.run(["cat", f"{volume}/note"], capture=True):
        raise StepFailed(f"{volume}/note does not hold what the container wrote")
    if nodes:
        # Each task says where it runs: in the image, on a node of its own.
        task = ["shifter", "sh", "-c", "echo $(hostname): $(grep ^NAME= /etc/os-release)"]
        ranks = prompt.run(["srun", f"--nodes={nodes}", "--exclusive", f"--image={image}", *task], capture=True)
        if len(set(ranks.splitlines())) != nodes or "NAME=" not in ranks:
            raise StepFailed(f"the job should have printed one line from each of {nodes} nodes")
    root.run(["shifter-admin", "history", "--image", image])


@dataclass(frozen=True)
class Prompt:
    """A shell prompt on the site: a user's, or root's when `user` is None."""

    site: Site
    user: User | None

    def run(self, argv: Sequence[str], *, capture: bool = False) -> str:
        """Run a command, its output shown; returned too with `capture`. Raises StepFailed unless it exits 0."""
        done = show("#" if self.user is None else "$", shlex.join(argv), lambda: self._run(argv, capture))
        if done.returncode != 0:
            raise StepFailed(f"{shlex.join(argv)}: exit status {done.returncode}")
        return done.stdout or ""

    def _run(self, argv: Sequence[str], capture: bool) -> "subprocess.CompletedProcess[str]":
        environment: Mapping[str, str] = {**os.environ, **self.site.environment()}
        if self.user:
            kept = {key: environment[key] for key in ("TERM", "LANG", "COLUMNS") if key in environment}
            environment = {**self.site.environment(), **kept, "USER": self.user.name, "HOME": "/"}
            environment["PATH"] = f"{self.site.bin}:{SYSTEM_PATH}"
        try:
            done = subprocess.run(
                argv,
                env=environment,
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE if capture else None,
                text=True,
                check=False,
                user=self.user.uid if self.user else None,
                group=self.user.gid if self.user else None,
                extra_groups=self.user.groups if self.user else None,
            )
        except OSError as error:
            raise StepFailed(f"{argv[0]}: {error.strerror}: run `make build`") from error
        print(done.stdout or "", end="", flush=True)
        return done


def show(mark: str, typed: str, action: Callable[[], T]) -> T:
    """Print what a person would type, do it, and print how long it took."""
    print(f"{mark} {typed}".lstrip(), flush=True)
    started = time.monotonic()
    try:
        return action()
    finally:
        print(f"    ({time.monotonic() - started:.2f} s)", flush=True)


def choose_user() -> User:
    """The user who called sudo, else nobody: an image is never run as root."""
    uid = int(os.environ.get("SUDO_UID", "0"))
    try:
        entry = pwd.getpwuid(uid) if uid else pwd.getpwnam("nobody")
    except KeyError as error:
        raise StepFailed("no unprivileged user here: neither sudo's nor `nobody` is in the password file") from error
    return User(entry.pw_name, entry.pw_uid, entry.pw_gid, tuple(os.getgrouplist(entry.pw_name, entry.pw_gid)))


def location_of(image: str, url: str) -> dict[str, str]:
    """The registry that an image's name begins with ("docker.io/library/alpine" -> docker.io), as `up` wants it."""
    host, slash, _ = image.partition("/")
    if not slash or not ("." in host or ":" in host):
        return {}
    return {host: url}
