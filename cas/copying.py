"""Putting a file that already exists into the store: shared blocks where the file system can (reflink), else one
copying pass.

Whichever way, the name is that of the bytes which went into the store, and waiting for the disk overlaps with hashing.
The copy is not left to the kernel (copy_file_range): the bytes must come by for their hashes in any case.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import stat
import threading
from collections.abc import Callable
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING

from cas.errors import DigestMismatch, SourceChanged, StoreError
from cas.files import naming
from cas.hashing import Names, hash_file, hash_side_by_side, reading

if TYPE_CHECKING:
    from cas.store import Object, Store

_FICLONE = 0x40049409  # linux/fs.h: _IOW(0x94, 9, int)
_PUSHED = 8 << 20
_CANNOT = {errno.EOPNOTSUPP, errno.EXDEV, errno.EINVAL, errno.ENOTTY, errno.ENOSYS, errno.EPERM}
_BEGIN_WRITING = 2  # linux/fs.h: SYNC_FILE_RANGE_WRITE
_sync_file_range = getattr(ctypes.CDLL(None), "sync_file_range", None)
if _sync_file_range is not None:
    _sync_file_range.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)


def copy_in(store: Store, source: Path, *, name: str | None = None) -> Object:
    """Puts a copy of `source`; see Store.put_file."""
    try:
        fd = os.open(source, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise StoreError(f"{source} cannot be read: {error.strerror}") from error
    try:
        return copy_open(store, fd, source, name=name)
    finally:
        os.close(fd)


def copy_open(
    store: Store, fd: int, source: Path, *, name: str | None = None, progress: Callable[[int], object] | None = None
) -> Object:
    """Puts a copy of the file that is open as fd; see Store.put_open."""
    before = _identity(fd)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        raise StoreError(f"{source} cannot be put into the store: it is not a regular file")
    temporary = store.temporary()
    with naming(temporary, "creating"):
        target = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with naming(temporary, "writing"):
            if _clone(fd, target):
                names = hash_file(target)
            else:
                names = _copy(_reading(fd, source), target, sync=store.sync, progress=progress)
        if _identity(fd) != before:
            raise SourceChanged(
                f"{source} was written to while it was copied into the store: try again when it is complete"
            )
        if name is not None and names.blake3 != name:
            raise DigestMismatch(f"{source} has the BLAKE3 {names.blake3}, expected was {name}")
        return store.settle(target, temporary, names)
    finally:
        os.close(target)
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def _reading(fd: int, source: Path) -> Callable[[memoryview], int]:
    read = reading(fd)

    def named(buffer: memoryview) -> int:
        with naming(source, "reading"):
            return read(buffer)

    return named


def _copy(
    read: Callable[[memoryview], int], target: int, *, sync: bool, progress: Callable[[int], object] | None
) -> Names:
    """Copies, while other threads hash what is copied and start the disk: the pass costs what the slowest does."""
    done = 0
    with _Pushing(target) if sync else contextlib.nullcontext() as pushing:

        def write(piece: memoryview) -> None:
            nonlocal done
            count = len(piece)
            while piece:
                piece = piece[os.write(target, piece) :]
            if pushing is not None:
                pushing.grow(count)
            done += count
            if progress is not None:
                progress(done)

        return hash_side_by_side(read, write)


class _Pushing:
    """Has the kernel begin to write a growing file out, in a thread of its own, so that fsync finds little to wait for.

    sync_file_range(2) with the one flag that only begins: it waits for nothing and takes no error away from fsync.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._sizes: SimpleQueue[int | None] = SimpleQueue()
        self._size = self._told = 0
        self._thread = threading.Thread(target=self._run, name="push", daemon=True)

    def __enter__(self) -> _Pushing:
        self._thread.start()
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self._sizes.put(None)
        self._thread.join()

    def grow(self, count: int) -> None:
        """So many bytes more are there."""
        self._size += count
        if self._size - self._told >= _PUSHED:
            self._told = self._size
            self._sizes.put(self._size)

    def _run(self) -> None:
        position = 0
        while (size := self._sizes.get()) is not None:
            if _sync_file_range is not None:
                _sync_file_range(self._fd, position, size - position, _BEGIN_WRITING)
            position = size


def _clone(source: int, target: int) -> bool:
    """Shares the blocks of the source (ioctl_ficlone(2)); False where the file systems cannot."""
    try:
        fcntl.ioctl(target, _FICLONE, source)
    except OSError as error:
        if error.errno in _CANNOT:
            return False
        raise
    return True


class Syncing:
    """fsync of an open file in a thread of its own, so that the caller can hash meanwhile; `wait` raises what it
    raised.
    """

    def __init__(self, fd: int, *, sync: bool) -> None:
        self._error: OSError | None = None
        self._thread = threading.Thread(target=self._run, args=(fd,), name="fsync") if sync else None
        if self._thread is not None:
            self._thread.start()

    def _run(self, fd: int) -> None:
        try:
            os.fsync(fd)
        except OSError as error:
            self._error = error

    def wait(self) -> None:
        if self._thread is not None:
            self._thread.join()
        if self._error is not None:
            raise self._error


def _identity(fd: int) -> tuple[int, ...]:
    status = os.fstat(fd)
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
