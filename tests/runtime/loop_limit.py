"""A node with few loop devices, on a machine that has more: LOOP_CTL_GET_FREE answers ENOSPC when enough are attached.

The kernel's own limit (max_loop) is the whole machine's. Here a seccomp filter asks this module about that one ioctl(2), of the
processes that are started within, and of no other: the launcher, the devices and the images are real.
"""

import ctypes
import errno
import fcntl
import os
import select
import struct
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

Result = TypeVar("Result")

LOOP_CTL_GET_FREE = 0x4C82
SYSCALLS = {"x86_64": (317, 16), "aarch64": (277, 29)}  # seccomp(2), ioctl(2)
SET_MODE_FILTER, NEW_LISTENER = 1, 8
ALLOW, USER_NOTIF = 0x7FFF0000, 0x7FC00000
LOAD, JUMP_IF_EQUAL, RETURN = 0x20, 0x15, 0x06
NOTIFICATION = struct.Struct(
    "=QIIiIQ6Q"
)  # struct seccomp_notif: id, pid, flags, then the call's number, arch, place, arguments
ANSWER = struct.Struct("=QqiI")  # struct seccomp_notif_resp: id, value, error, flags
RECEIVE = 3 << 30 | NOTIFICATION.size << 16 | ord("!") << 8
SEND = 3 << 30 | ANSWER.size << 16 | ord("!") << 8 | 1
CONTINUE = 1


class LoopLimit:
    """At most about `limit` loop devices on files below `directory`; one more for each start that is just attaching one."""

    def __init__(self, limit: int, directory: Path) -> None:
        self.limit = limit
        self.directory = f"{directory}/"
        self.refused = 0
        self.peak = 0

    def run(self, work: Callable[[], Result]) -> Result:
        """`work` in a thread of its own; the processes that it starts live within the limit. Needs root."""
        with ThreadPoolExecutor(1) as thread:
            listener = thread.submit(install).result()
            try:
                working = thread.submit(work)
                while not working.done():
                    if select.select([listener], [], [], 0.05)[0]:
                        self.answer(listener)
                return working.result()
            finally:
                os.close(listener)  # who still asks is told ENOSYS

    def answer(self, listener: int) -> None:
        asked = bytearray(NOTIFICATION.size)
        try:
            fcntl.ioctl(listener, RECEIVE, asked)
            attached = self.attached()
            self.peak = max(self.peak, attached)
            full = attached >= self.limit
            self.refused += full
            answer = (-1, -errno.ENOSPC, 0) if full else (0, 0, CONTINUE)
            fcntl.ioctl(listener, SEND, ANSWER.pack(NOTIFICATION.unpack(asked)[0], *answer))
        except OSError as error:
            if error.errno != errno.ENOENT:  # who asked is gone
                raise

    def attached(self) -> int:
        found = 0
        for file in Path("/sys/block").glob("loop*/loop/backing_file"):
            try:
                found += file.read_text().startswith(self.directory)
            except OSError:  # it went away while we looked
                continue
        return found


def install() -> int:
    """Filter the calling thread and its children; the descriptor on which the kernel asks. Raises OSError."""
    seccomp, ioctl = SYSCALLS[os.uname().machine]
    filters = b"".join(
        struct.pack("=HBBI", *line)
        for line in (
            (LOAD, 0, 0, 0),  # the call's number
            (JUMP_IF_EQUAL, 0, 3, ioctl),
            (LOAD, 0, 0, 24),  # the lower half of its second argument
            (JUMP_IF_EQUAL, 0, 1, LOOP_CTL_GET_FREE),
            (RETURN, 0, 0, USER_NOTIF),
            (RETURN, 0, 0, ALLOW),
        )
    )
    buffer = ctypes.create_string_buffer(filters)
    program = struct.pack("@HP", len(filters) // 8, ctypes.addressof(buffer))
    libc = ctypes.CDLL(None, use_errno=True)
    descriptor = int(libc.syscall(seccomp, SET_MODE_FILTER, NEW_LISTENER, program))
    if descriptor < 0:
        raise OSError(ctypes.get_errno(), f"seccomp: {os.strerror(ctypes.get_errno())}")
    return descriptor
