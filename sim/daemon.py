"""Starting a site's daemons and knowing when they serve: real programs, each with a log, in a session of its own.

A daemon is ready when *that process* (or a child of it) holds the listening socket, not when something answers on the
port: another server may sit there. One that ends before it is ready, or is not ready in time, raises `StartFailed` with
the log's path and last lines. Ending is by `sim.process` (pid, start time, boot), and takes with it what the daemon started
and left in its session. Nothing is supervised.
"""

import errno
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from sim.process import Process

TAIL_LINES = 8
LISTENING = "0A"  # the state of a listening socket in /proc/net/tcp, see proc(5)


class StartFailed(Exception):
    """A daemon did not get ready. The text names the daemon, why, its log, and ends with the log's last lines."""

    def __init__(self, name: str, reason: str, log: Path) -> None:
        self.log_text = tail(log)
        lines = f"; its last lines:\n{self.log_text}" if self.log_text else " (empty)"
        super().__init__(f"{name} {reason}; read {log}{lines}")


@dataclass(frozen=True)
class Daemon:
    """A started program: its role in the site, the process that leads its session, and its log."""

    name: str
    process: Process
    log: Path


def start(name: str, argv: Sequence[str], *, log: Path, environment: Mapping[str, str]) -> Daemon:
    """Start `argv` (argv[0] an absolute path) in a new session: output appended to `log`, input empty, umask 022.

    Returns at once; `wait_ready` tells when it serves. Raises StartFailed when the program cannot be executed.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    actions = [
        (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
        (os.POSIX_SPAWN_OPEN, 1, str(log), flags, 0o644),
        (os.POSIX_SPAWN_DUP2, 1, 2),
    ]
    try:
        if not os.access(argv[0], os.X_OK):
            raise FileNotFoundError(errno.ENOENT, "no such program")
        shell = ["/bin/sh", "-c", 'umask 022 && exec "$@"', name, *argv]
        pid = os.posix_spawn(shell[0], shell, dict(environment), file_actions=actions, setsid=True)
    except OSError as error:
        raise StartFailed(name, f"could not be started: {argv[0]}: {error.strerror}", log) from error
    return Daemon(name, Process.of(pid), log)


def wait_ready(daemon: Daemon, ready: Callable[[], bool], *, seconds: float = 120.0) -> None:
    """Wait until `ready()`; raises StartFailed when the daemon ends before that, or after `seconds`."""
    deadline = time.monotonic() + seconds
    while not ready():
        if not daemon.process.alive():
            daemon.process.wait(0)  # reaps it
            raise StartFailed(daemon.name, "ended before it was ready", daemon.log)
        if time.monotonic() > deadline:
            raise StartFailed(daemon.name, f"was not ready after {seconds:g} s", daemon.log)
        time.sleep(0.01)


def listens(daemon: Daemon, port: int) -> bool:
    """Whether the daemon, or a process of its session, holds a listening TCP socket on `port`."""
    inodes = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in Path(table).read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == LISTENING and int(fields[1].rpartition(":")[2], 16) == port:
                inodes.add(f"socket:[{fields[9]}]")
    return any(holds(pid, inodes) for pid in session(daemon.process.pid))


def holds(pid: int, links: set[str]) -> bool:
    """Whether process `pid` has one of these (as /proc/<pid>/fd shows them) open; a process that ended holds nothing."""
    try:
        return any(str(entry.readlink()) in links for entry in Path(f"/proc/{pid}/fd").iterdir())
    except (FileNotFoundError, ProcessLookupError):
        return False


def session(leader: int) -> Iterator[int]:
    """The living processes of the session led by `leader`, the leader among them.

    A session's number is not given out as a pid as long as it has members, so the members found for a process that we
    started are its own children, even when it is gone itself.
    """
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            try:
                stat = Path(entry.path, "stat").read_text()
            except (FileNotFoundError, ProcessLookupError):
                continue
            state, _, _, identifier = stat.rpartition(")")[2].split()[:4]  # proc(5)
            if int(identifier) == leader and state != "Z":
                yield int(entry.name)


def members(leader: Process) -> list[Process]:
    """The living processes of a session that `leader` led, itself among them; none where its pid leads a stranger's now."""
    found = []
    for pid in session(leader.pid):
        try:
            member = Process.of(pid)
        except ProcessLookupError:
            continue
        if member.boot == leader.boot and member.ticks >= leader.ticks:
            found.append(member)
    return [] if any(member.pid == leader.pid and member != leader for member in found) else found


def end_session(leader: Process) -> None:
    """Kill what is left in the session of a process that is gone itself."""
    for member in members(leader):
        member.send(signal.SIGKILL)
        member.wait(120.0)


def end(daemon: Daemon, *, seconds: float = 10.0) -> None:
    """End the daemon (SIGTERM, after `seconds` SIGKILL) and what it left in its session; returns when they are gone."""
    left = members(daemon.process)
    daemon.process.end(seconds)
    for member in left:
        if member.alive():
            member.end(timeout=0.5)


def tail(log: Path) -> str:
    """The last lines of a log, "" when there is none."""
    try:
        text = log.read_text(errors="replace")
    except FileNotFoundError:
        return ""
    return "\n".join(text.splitlines()[-TAIL_LINES:])
