"""A process that a site started, known by pid *and* start time, so that what comes down is exactly what went up.

A pid alone may name a stranger's process by the time a site is taken down, most of all after a machine was
rebooted or a site was killed. The record on disk therefore holds the kernel's start time of the process too
(field 22 of proc(5)'s stat, clock ticks since boot) and the boot's identity; a record that matches no living
process is simply over. Signals go through a pidfd that is opened before the start time is compared, so there is
no moment in which the pid can change hands. It does not supervise: a process that ends is not started again.
"""

from __future__ import annotations

import json
import os
import select
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType


def boot_id() -> str:
    """The kernel's identity of this boot: start times are comparable only within one."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


@contextmanager
def undisturbed() -> Iterator[None]:
    """An interrupt (Ctrl-C, and what else has a handler of Python's) waits until the block is over: a process that was started
    in it has been written down then, and whoever cleans up finds it.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # where no handler runs
        return
    heard: list[int] = []

    def hear(number: int, _frame: FrameType | None) -> None:
        heard.append(number)

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: handler for number in numbers if callable(handler := signal.getsignal(number))}
    for number in before:
        signal.signal(number, hear)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if heard:  # here, and not when Python next looks: that may be in a destructor, which swallows it
            before[signal.Signals(heard[0])](heard[0], None)


def _stat(pid: int) -> list[str] | None:
    """The fields of /proc/<pid>/stat behind the command's closing parenthesis: [0] is the state, [19] the start
    time.
    """
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return text[text.rindex(")") + 2 :].split()


@dataclass(frozen=True)
class Process:
    """One started process. ``ticks`` is its start time in clock ticks since the boot named by ``boot``."""

    pid: int
    ticks: int
    boot: str

    @classmethod
    def of(cls, pid: int) -> Process:
        """The process that has this pid now. Raises ProcessLookupError when there is none."""
        fields = _stat(pid)
        if fields is None:
            raise ProcessLookupError(f"no process {pid}")
        return cls(pid, int(fields[19]), boot_id())

    @classmethod
    def load(cls, path: Path) -> Process | None:
        """What ``save`` wrote; None when there is no such file or it was cut short by a crash."""
        try:
            record = json.loads(path.read_text())
            return cls(int(record["pid"]), int(record["ticks"]), str(record["boot"]))
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return None

    def save(self, path: Path) -> None:
        """Writes the record to ``path``, whole or not at all."""
        fresh = path.with_name(path.name + ".new")
        fresh.write_text(json.dumps({"pid": self.pid, "ticks": self.ticks, "boot": self.boot}))
        fresh.rename(path)

    def _open(self) -> int | None:
        """A pidfd of this very process, or None when it is gone (a zombie counts as gone)."""
        try:
            descriptor = os.pidfd_open(self.pid)
        except ProcessLookupError:
            return None
        fields = _stat(self.pid)
        if fields is None or fields[0] == "Z" or int(fields[19]) != self.ticks or boot_id() != self.boot:
            os.close(descriptor)
            return None
        return descriptor

    def alive(self) -> bool:
        """True while this process (not another one of the same pid) runs."""
        descriptor = self._open()
        if descriptor is None:
            return False
        os.close(descriptor)
        return True

    def send(self, number: signal.Signals) -> bool:
        """Sends a signal; False when the process was gone already."""
        descriptor = self._open()
        if descriptor is None:
            return False
        try:
            signal.pidfd_send_signal(descriptor, number)
        except ProcessLookupError:
            return False
        finally:
            os.close(descriptor)
        return True

    def wait(self, timeout: float) -> bool:
        """Waits until the process is gone, at most ``timeout`` seconds; True when it is. A child of ours is
        reaped.
        """
        descriptor = self._open()
        gone = True
        if descriptor is not None:
            poll = select.poll()
            poll.register(descriptor, select.POLLIN)
            gone = bool(poll.poll(timeout * 1000))
            os.close(descriptor)
        if gone:
            self._reap()
        return gone

    def _reap(self) -> None:
        fields = _stat(self.pid)
        if fields is not None and fields[0] == "Z" and int(fields[19]) == self.ticks:
            try:
                os.waitpid(self.pid, os.WNOHANG)
            except ChildProcessError:
                return  # another process's child: that one reaps it

    def end(self, timeout: float = 10.0) -> None:
        """SIGTERM, and SIGKILL when it has not ended after ``timeout`` seconds. Returns when it is gone."""
        if self.send(signal.SIGTERM) and not self.wait(timeout):
            self.send(signal.SIGKILL)
        self.wait(timeout)
