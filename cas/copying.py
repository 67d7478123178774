"""Putting a file that already exists into the store: shared blocks where the file system can (reflink), else one
copying pass.

Whichever way, the name is computed from what is in the store, and waiting for the disk overlaps with hashing.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import blake3

from cas.errors import DigestMismatch, SourceChanged, StoreError
from cas.files import naming
from cas.hashing import Names, hash_file

if TYPE_CHECKING:
    from cas.store import Object, Store

_FICLONE = 0x40049409  # linux/fs.h: _IOW(0x94, 9, int)
_AT_ONCE = 8 << 20
_PIECE = 1 << 20
_PUSHED = 128 << 20
_LARGE = 8 << 20
_CANNOT = {errno.EOPNOTSUPP, errno.EXDEV, errno.EINVAL, errno.ENOTTY, errno.ENOSYS, errno.EPERM}


def copy_in(store: Store, source: Path, *, name: str | None = None) -> Object:
    """Puts a copy of `source`; name: which object it must be.

    Raises SourceChanged when it was written to meanwhile, DigestMismatch, StoreFull, StoreError.
    """
    try:
        fd = os.open(source, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise StoreError(f"{source} cannot be read: {error.strerror}") from error
    temporary = store.temporary()
    try:
        before = _identity(fd)
        with naming(temporary, "creating"):
            target = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            with naming(temporary, "writing"):
                if _clone(fd, target):
                    names = hash_file(target)
                elif before[2] < _LARGE:
                    _copy(fd, target, lambda size: None)
                    names = hash_file(target)
                else:
                    names = _copy_and_hash(fd, target, sync=store.sync)
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
    finally:
        os.close(fd)


class Growing:
    """How far a file has been written, for those that read it at the same time."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._size = 0
        self._ended = False

    def grow(self, size: int) -> None:
        """So many bytes are there now."""
        with self._changed:
            self._size = size
            self._changed.notify_all()

    def end(self) -> None:
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def beyond(self, position: int) -> int:
        """Waits for bytes beyond a position; returns how far the file goes, no further than `position` once it has
        ended.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._size > position or self._ended)
            return max(self._size, position)


def _copy_and_hash(source: int, target: int, *, sync: bool) -> Names:
    """Copies, while other threads hash what has been copied and push it to the disk: the pass costs what the slowest
    does.
    """
    growing = Growing()
    hasher, sha256 = blake3.blake3(), hashlib.sha256()
    with ThreadPoolExecutor(max_workers=3, thread_name_prefix="copy") as pool:
        following = [pool.submit(_follow, target, one, growing) for one in (hasher, sha256)]
        pushing = pool.submit(_push, target, growing) if sync else None
        try:
            _copy(source, target, growing.grow)
        finally:
            growing.end()
        sizes = {one.result() for one in following}
        if pushing is not None:
            pushing.result()
    assert len(sizes) == 1
    return Names(hasher.hexdigest(), sha256.hexdigest(), sizes.pop())


class _Hash(Protocol):
    def update(self, data: bytes, /) -> object: ...


def _follow(fd: int, hasher: _Hash, growing: Growing) -> int:
    position = 0
    while (limit := growing.beyond(position)) > position:
        while position < limit:
            piece = os.pread(fd, min(limit - position, _PIECE), position)
            if not piece:
                raise SourceChanged("the copy became shorter while it was hashed")
            hasher.update(piece)
            position += len(piece)
    return position


def _push(fd: int, growing: Growing) -> None:
    """Starts the disk early, so that little is left to wait for in the end."""
    position = 0
    while (limit := growing.beyond(position + _PUSHED)) > position + _PUSHED:
        os.fdatasync(fd)
        position = limit


def _clone(source: int, target: int) -> bool:
    """Shares the blocks of the source (ioctl_ficlone(2)); False where the file systems cannot."""
    try:
        fcntl.ioctl(target, _FICLONE, source)
    except OSError as error:
        if error.errno in _CANNOT:
            return False
        raise
    return True


def _copy(source: int, target: int, copied: Callable[[int], object]) -> None:
    """Copies in the kernel; where that is not possible, piece by piece. copied(size) is told how far it is."""
    in_kernel, done = True, 0
    while True:
        if in_kernel:
            try:
                count = os.copy_file_range(source, target, _AT_ONCE)
            except OSError as error:
                if error.errno not in _CANNOT:
                    raise
                in_kernel = False
                continue
        else:
            piece = os.read(source, _PIECE)
            view = memoryview(piece)
            while view:
                view = view[os.write(target, view) :]
            count = len(piece)
        if not count:
            return
        done += count
        copied(done)


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
