"""A real Slurm cluster of 1 to 256 nodes on this machine: one slurmctld, and a slurmd a node.

Every node has mount, UTS, IPC and PID namespaces of its own: its own hostname, processes and mounts, and its
own (empty) tmpfs on each directory named ``private``, where a site puts udiMount and loopMount. Killing a node
takes its slurmd, its tasks, its mounts and its loop devices away at once, as a power failure would; it can be
started again. The nodes share the network and all other files. Slurm comes from the distribution (slurm-wlm),
munged from the caller.

``up`` returns when every node is idle; ``down`` returns when every process is gone; both know processes by pid
and start time, and a cluster that was killed is swept by the next ``up`` in its directory. Nothing here knows
of containers.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sim import cluster_conf
from sim.cluster_conf import LET_GO, NODE, Layout
from sim.daemon import end_session
from sim.process import Process, undisturbed

MAXIMUM_NODES = 256
ATTEMPTS = 3  # with other ports, when a stranger took one


class ClusterError(Exception):
    """A cluster could not be brought up, or a node of it could not; the text names the log to read."""


@dataclass(frozen=True)
class Cluster:
    """A running cluster: everything needed to talk to it or take it down lies under ``layout.directory``."""

    layout: Layout
    private: tuple[Path, ...]

    # -- up and down

    @classmethod
    def up(
        cls,
        directory: Path,
        munge_socket: Path,
        nodes: int,
        *,
        private: Sequence[Path] = (),
        plugstack: str = "",
        cpus: int = 2,
        extra: Mapping[str, str] | None = None,
        timeout: float = 300.0,
    ) -> Cluster:
        """Starts a cluster of ``nodes`` nodes (n1, n2, ...) with all its files in ``directory`` and returns
        when all are idle.

        ``private`` are existing directories, each an own tmpfs on each node; ``plugstack`` is the text of
        plugstack.conf; ``extra`` are keys of slurm.conf that differ from cluster_conf's, for example
        ``{"Prolog": "/path"}``. Raises ClusterError when a daemon does not start or the nodes are not idle
        after ``timeout`` seconds; then nothing runs. Where a stranger took one of the ports at the last moment, other
        ports are tried.
        """
        if not 1 <= nodes <= MAXIMUM_NODES:
            raise ClusterError(f"a cluster has 1 to {MAXIMUM_NODES} nodes, not {nodes}")
        for program in ("slurmctld", "slurmd", "sinfo", "scontrol", "unshare"):
            if shutil.which(program) is None:
                raise ClusterError(f"no program {program}: install slurm-wlm (and util-linux)")
        if (directory / "cluster.json").exists():
            cls.at(directory).down()
        for part in ("etc", "state", "spool", "run", "log"):
            (directory / part).mkdir(parents=True, exist_ok=True)
        host = socket.gethostname().split(".")[0]
        tried: set[int] = set()
        while True:
            with _reserved_ports(nodes, tried) as port:
                layout = Layout(directory, nodes, port, host, munge_socket, cpus, plugstack, dict(extra or {}))
                cluster = cls(layout, tuple(private))
                try:
                    cluster._start(timeout)
                except ClusterError as error:
                    tried.add(port)
                    if "address already in use" not in str(error).lower() or len(tried) == ATTEMPTS:
                        raise
                    for log in (directory / "log").glob("*.out"):
                        log.unlink()  # its complaints are not the next one's
                else:
                    return cluster

    def _start(self, timeout: float) -> None:
        """Brings controller and nodes up; when that fails, nothing runs."""
        self._write()
        try:
            self._spawn("slurmctld", ["slurmctld", "-D", "-i", "-c"])
            for name in self.layout.names():
                self._spawn_node(name)
            self._wait_idle(self.layout.names(), timeout, self.layout.names())
        except BaseException:
            self.down()
            raise

    @classmethod
    def at(cls, directory: Path) -> Cluster:
        """The cluster whose files lie in ``directory``, from any process. Raises ClusterError when there is none."""
        try:
            record: dict[str, Any] = json.loads((directory / "cluster.json").read_text())
        except FileNotFoundError:
            raise ClusterError(f"no cluster in {directory}: shifter-sim site up --nodes N starts one") from None
        layout = Layout(
            directory,
            record["nodes"],
            record["port"],
            record["host"],
            Path(record["munge_socket"]),
            record["cpus"],
            record["plugstack"],
            record["extra"],
        )
        return cls(layout, tuple(Path(path) for path in record["private"]))

    def down(self) -> None:
        """Ends every process of the cluster, nodes first, and forgets it. Logs stay. May be called twice."""
        nodes = [path for path in self._records() if path.stem != "slurmctld"]
        self._kill(nodes)
        controller = Process.load(self._record("slurmctld"))
        if controller is not None:
            controller.end()
            self._record("slurmctld").unlink(missing_ok=True)
        (self.layout.directory / "cluster.json").unlink(missing_ok=True)
        shutil.rmtree(self.layout.directory / "spool", ignore_errors=True)

    def __enter__(self) -> Cluster:
        return self

    def __exit__(self, *_: object) -> None:
        self.down()

    # -- nodes

    def kill_node(self, name: str) -> None:
        """Takes a node away without a word, as a power failure does. Slurm notices after SlurmdTimeout."""
        self._known(name)
        self._kill([self._record(name)])

    def start_node(self, name: str, timeout: float = 300.0) -> None:
        """Starts a node that was killed, and returns when Slurm has it idle again."""
        self._known(name)
        running = Process.load(self._record(name))
        if running is not None and running.alive():
            raise ClusterError(f"node {name} runs already (pid {running.pid})")
        self._spawn_node(name)
        try:
            self.wait_idle([name], min(timeout, 3.0))
        except ClusterError:
            # A job's end that was on its way to the node when it died is sent again only after two MessageTimeouts.
            # An administrator tells Slurm that the node was down, and so do we.
            self.command("scontrol", "update", f"NodeName={name}", "State=DOWN", "Reason=restarted")
            with suppress(ClusterError):  # it may have come back by itself meanwhile, and then cannot be resumed
                self.command("scontrol", "update", f"NodeName={name}", "State=RESUME")
            self.wait_idle([name], timeout)

    def pid(self, name: str) -> int:
        """The pid, seen from this machine, of a node's first process; its namespaces are under /proc/<pid>/ns."""
        self._known(name)
        running = Process.load(self._record(name))
        first = _children(running.pid) if running is not None and running.alive() else []
        if not first:
            raise ClusterError(f"node {name} is not running: start-node {name} starts it")
        return first[0].pid

    def on_node(self, name: str, argv: Sequence[str], timeout: float = 300.0) -> subprocess.CompletedProcess[str]:
        """Runs a command as root inside a node, beside Slurm: what an administrator would see there."""
        enter = ["nsenter", "--target", str(self.pid(name)), "--mount", "--uts", "--ipc", "--pid"]
        return subprocess.run(
            [*enter, *argv], env=self._clean_environment(), capture_output=True, text=True, timeout=timeout, check=False
        )

    def restart_slurmd(self, name: str) -> None:
        """Kills a node's slurmd alone; the node's first process starts another. Tasks and mounts stay."""
        self._known(name)
        pidfile = self.layout.directory / "run" / f"slurmd.{name}.pid"
        inner = pidfile.read_text().strip()
        self.on_node(name, ["kill", "-KILL", inner])

    # -- talking to it

    def environment(self) -> dict[str, str]:
        """What Slurm's commands need to find this cluster."""
        return {"SLURM_CONF": str(self.layout.slurm_conf)}

    def command(self, *argv: str, timeout: float = 300.0) -> str:
        """The output of one of Slurm's commands, run as the caller. Raises ClusterError with its error output."""
        try:
            done = subprocess.run(
                argv, env=self._clean_environment(), capture_output=True, text=True, timeout=timeout, check=False
            )
        except subprocess.TimeoutExpired:
            raise ClusterError(f"{' '.join(argv)} did not end in {timeout:g} s: {self._said('slurmctld')}") from None
        if done.returncode != 0:
            raise ClusterError(f"{' '.join(argv)} ended with {done.returncode}: {done.stderr.strip()}")
        return done.stdout

    def states(self) -> dict[str, str]:
        """The state of every node as sinfo names it: idle, allocated, drained, down*, ..."""
        lines = self.command("sinfo", "-h", "-N", "-o", "%N %T").splitlines()
        return dict(line.split(maxsplit=1) for line in lines)

    def wait_idle(self, names: Iterable[str], timeout: float) -> None:
        """Returns when all the named nodes are idle. Raises ClusterError, with what a log says, after
        ``timeout`` seconds.
        """
        self._wait_idle(names, timeout)

    def _wait_idle(self, names: Iterable[str], timeout: float, living: Sequence[str] = ()) -> None:
        """wait_idle that gives up when one of the ``living`` nodes has ended: it will not be idle."""
        wanted, deadline, states = set(names), time.monotonic() + timeout, dict[str, str]()
        while time.monotonic() < deadline:
            try:
                states = self.states()
            except ClusterError:
                controller = Process.load(self._record("slurmctld"))
                if controller is None or not controller.alive():
                    raise ClusterError(f"slurmctld does not run: {self._said('slurmctld')}") from None
            if all(states.get(name) == "idle" for name in wanted):
                return
            for name in living:
                node = Process.load(self._record(name))
                if node is None or not node.alive():
                    raise ClusterError(f"{name} ended: {self._said(name)}")
            time.sleep(0.05)  # slurmctld has no way to be told of this; sinfo is its only answer
        late = sorted(name for name in wanted if states.get(name) != "idle")
        word = ", ".join(f"{name} is {states.get(name, 'unknown')}" for name in late[:3])
        raise ClusterError(f"{len(late)} nodes not idle after {timeout:g} s ({word}): {self._said(late[0])}")

    # -- within

    def _record(self, name: str) -> Path:
        return self.layout.directory / "run" / f"{name}.process"

    def _records(self) -> list[Path]:
        return sorted((self.layout.directory / "run").glob("*.process"))

    def _known(self, name: str) -> None:
        if name not in self.layout.names():
            raise ClusterError(f"no node {name}: this cluster has n1 to n{self.layout.nodes}")

    def _write(self) -> None:
        d, layout = self.layout.directory, self.layout
        layout.slurm_conf.write_text(cluster_conf.slurm_conf(layout))
        (d / "etc" / "plugstack.conf").write_text(layout.plugstack)
        (d / "etc" / "cgroup.conf").write_text("")
        (d / "etc" / "hosts").write_text(cluster_conf.hosts(layout, Path("/etc/hosts").read_text()))
        for name in layout.names():
            (d / "spool" / name).mkdir(parents=True, exist_ok=True)
        record = {
            "nodes": layout.nodes,
            "port": layout.port,
            "host": layout.host,
            "munge_socket": str(layout.munge_socket),
            "cpus": layout.cpus,
            "plugstack": layout.plugstack,
            "extra": dict(layout.extra),
            "private": [str(path) for path in self.private],
        }
        (d / "cluster.json").write_text(json.dumps(record, indent=1))

    def _clean_environment(self) -> dict[str, str]:
        clean = {key: value for key, value in os.environ.items() if not key.startswith(("SLURM", "SPANK", "SHIFTER"))}
        return clean | self.environment()

    def _spawn(self, name: str, argv: Sequence[str]) -> Process:
        with (self.layout.directory / "log" / f"{name}.out").open("ab") as output, undisturbed():
            child = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=self._clean_environment(),
                cwd="/",
                start_new_session=True,
            )
            process = Process.of(child.pid)
            process.save(self._record(name))
        return process

    def _spawn_node(self, name: str) -> None:
        namespaces = [
            "--mount",
            "--uts",
            "--ipc",
            "--pid",
            "--fork",
            "--kill-child",
            "--mount-proc",
            "--propagation",
            "private",
        ]
        hosts, private = str(self.layout.directory / "etc" / "hosts"), map(str, self.private)
        self._spawn(
            name, ["unshare", *namespaces, "sh", "-c", NODE, "node", name, hosts, sys.executable, LET_GO, *private]
        )

    def _kill(self, records: Sequence[Path]) -> None:
        """Kills nodes all at once and waits for each: the death of a node's first process kills all others. Unshare's death
        kills that one, but not in the moment in which it has just been made.
        """
        waiting: list[tuple[Path, list[Process]]] = []
        for path in records:
            outer = Process.load(path)
            inner = [] if outer is None or not outer.alive() else _children(outer.pid)
            if outer is not None:
                for process in (outer, *inner):
                    process.send(signal.SIGKILL)
                waiting.append((path, [outer, *inner]))
            else:
                path.unlink(missing_ok=True)
        for path, processes in waiting:
            for process in processes:
                if not process.wait(120.0):
                    raise ClusterError(
                        f"{path.stem}: process {process.pid} does not die; look at /proc/{process.pid}/stack"
                    )
            if len(processes) == 1:  # it had no child yet: one that it made since is in its session, as nothing else is
                end_session(processes[0])
            path.unlink(missing_ok=True)

    def _said(self, name: str) -> str:
        """The last complaints of a daemon (they repeat their log on stderr), else its last word, and where to read
        on."""
        path = self.layout.directory / "log" / f"{name}.out"
        lines = path.read_text(errors="replace").splitlines() if path.exists() else []
        complaints = [line for line in lines if "error:" in line or "fatal:" in line]
        return f"{'; '.join(complaints[-3:] or lines[-1:] or ['nothing logged'])} ({path})"


def until(condition: Callable[[], bool], what: str, seconds: float = 120.0) -> None:
    """Returns once ``condition()`` holds; ClusterError naming ``what`` after ``seconds``.

    For what only another process's file or a Slurm command can tell: Slurm has no event that a client could wait for.
    """
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise ClusterError(f"{what}: not so within {seconds:g} s")
        time.sleep(0.03)


def _children(pid: int) -> list[Process]:
    try:
        text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return []
    found = []
    for child in text.split():
        try:
            found.append(Process.of(int(child)))
        except ProcessLookupError:
            continue
    return found


@contextmanager
def _reserved_ports(nodes: int, tried: Collection[int] = ()) -> Iterator[int]:
    """A first port whose ``nodes`` + 1 ports are free, none of those that were tried.

    Two clusters on the same ports fail without a word, so the choice is reserved by the name of an abstract
    socket until the daemons hold the ports themselves.
    """
    for port in cluster_conf.PORTS:
        if port in tried:
            continue
        with closing(socket.socket(socket.AF_UNIX)) as reservation:
            try:
                reservation.bind(f"\0shifter-cluster-{port}")
            except OSError:
                continue
            if all(_free(port + number) for number in range(nodes + 1)):
                yield port
                return
    first, last = cluster_conf.PORTS.start, cluster_conf.PORTS.stop
    raise ClusterError(f"no {nodes + 1} free ports in a row between {first} and {last}: take another cluster down")


def _free(port: int) -> bool:
    with closing(socket.socket()) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError:
            return False
    return True
