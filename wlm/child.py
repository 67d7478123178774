"""Running a program and reading what it complains of, without the modules subprocess and signal (10 ms of a prolog).

The program gets an empty input, its output goes nowhere, its error text is returned. What is still running after the
time allowed is killed. Nothing is inherited but what is said here. `call` does the same for a program of the runtime that
is Python too, within this process: a second interpreter would be a quarter of what a node's prolog costs.
"""

import os
import select
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

KILL = 9
LIMIT = 64 * 1024  # bytes of error text that are kept


class ChildFailed(Exception):
    """The program could not be started, or did not end in time."""


def run(argv: "list[str]", environment: "dict[str, str]", seconds: float) -> "tuple[int, str]":
    """(exit status, error text) of `argv`; argv[0] is its absolute path. A signal's number counts as -number.

    Raises ChildFailed.
    """
    reading, writing = os.pipe()
    try:
        actions = [
            (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, "/dev/null", os.O_WRONLY, 0),
            (os.POSIX_SPAWN_DUP2, writing, 2),
        ]
        try:
            child = os.posix_spawn(argv[0], argv, environment, file_actions=actions, setsigmask=[])
        except OSError as error:
            raise ChildFailed(f"{argv[0]}: {error.strerror}") from None
        finally:
            os.close(writing)
        text, ended = _read(reading, time.monotonic() + seconds)
        if not ended:
            os.kill(child, KILL)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    finally:
        os.close(reading)
    if not ended:
        raise ChildFailed(f"{argv[0]}: not done after {seconds:g} s")
    return status, text


def call(program: "Callable[..., int]", argv: "list[str]", configuration: str) -> "tuple[int, str]":
    """(exit status, error text) of a node program's main(), which may change our groups and directory: both are put back."""
    groups, directory = os.getgroups(), os.getcwd()
    said, ours = os.memfd_create("stderr"), os.dup(2)
    os.dup2(said, 2)
    try:
        status = program(argv, configuration=configuration)
    finally:
        os.dup2(ours, 2)
        os.close(ours)
        os.setgroups(groups)
        os.chdir(directory)
    with os.fdopen(said, "rb") as file:
        file.seek(0)
        return status, file.read(LIMIT).decode(errors="replace")


def last_line(text: str, otherwise: str) -> str:
    """The last line that a program complained with, without its own name in front."""
    lines = text.strip().splitlines()
    return lines[-1].strip() if lines else otherwise


def _read(descriptor: int, deadline: float) -> "tuple[str, bool]":
    """What arrives until the other end is closed, and whether that was before the deadline."""
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    data = b""
    while True:
        left = deadline - time.monotonic()
        if left <= 0 or not poll.poll(left * 1000):
            return data.decode(errors="replace"), False
        part = os.read(descriptor, 8192)
        if not part:
            return data.decode(errors="replace"), True
        data = (data + part)[-LIMIT:]
