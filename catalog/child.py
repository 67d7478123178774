"""Waiting for a program that works for a pull, without being deaf to the pull's end meanwhile."""

from __future__ import annotations

import os
import select
import subprocess
from collections.abc import Callable

LOOK = 0.5
"""Seconds between two looks whether the pull is to end."""


def wait_for(process: subprocess.Popen[bytes], check: Callable[[], None]) -> int:
    """The exit status, as Popen.wait gives it. check: called about twice a second; what it raises ends the waiting, not
    the process.
    """
    if process.poll() is None:
        fd = os.pidfd_open(process.pid)
        try:
            await_ready(fd, select.POLLIN, check)
        finally:
            os.close(fd)
    return process.wait()


def await_ready(fd: int, event: int, check: Callable[[], None]) -> None:
    """Waits until poll(2) says `event`, or an error, of an open file. check: as above."""
    poll = select.poll()
    poll.register(fd, event)
    while not poll.poll(LOOK * 1000):
        check()
