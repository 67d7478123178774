"""Counts how often a file is opened, in whatever mount namespace: by fanotify(7), whose permission events never merge."""

import ctypes
import os
import select
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

CLASS_CONTENT, CLOEXEC, MARK_ADD, OPEN_PERM, ALLOW, AT_FDCWD = 4, 1, 1, 0x10000, 1, -100
EVENT = struct.Struct("=IBBHQii")  # length, version, reserved, length of this, mask, descriptor, pid
RESPONSE = struct.Struct("=iI")


@contextmanager
def opens(file: Path) -> Iterator[list[int]]:
    """The pids of those that open `file` meanwhile, one each time; complete when the block ends.

    Each open waits for a thread of ours to let it go on. Raises OSError where the kernel has no such events, or not for us.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    group = libc.fanotify_init(CLASS_CONTENT | CLOEXEC, os.O_RDONLY | os.O_LARGEFILE | os.O_CLOEXEC)
    if group < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), "fanotify_init")
    stop, stopped = os.pipe()
    seen: list[int] = []

    def allow() -> None:
        while stop not in (ready := select.select([group, stop], [], [])[0]) or group in ready:
            data = os.read(group, 64 * EVENT.size)
            for length, _, _, _, _, descriptor, pid in EVENT.iter_unpack(data):
                assert length == EVENT.size
                seen.append(pid)
                os.write(group, RESPONSE.pack(descriptor, ALLOW))
                os.close(descriptor)

    thread = threading.Thread(target=allow)
    try:
        if libc.fanotify_mark(group, MARK_ADD, ctypes.c_uint64(OPEN_PERM), AT_FDCWD, os.fsencode(file)) < 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(file))
        thread.start()
        yield seen
    finally:
        os.close(stopped)  # which makes `stop` readable
        if thread.ident is not None:
            thread.join()
        os.close(group)
        os.close(stop)
