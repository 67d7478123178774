"""The few file operations on which the store's promise of durability rests.

Each function here either returns with its effect on disk or raises a `StoreError` that names the path. Callers choose
with `sync=False` to skip waiting for the disk (tests, scratch stores); nothing else changes then.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

from cas.errors import StoreError, StoreFull

_FULL = {errno.ENOSPC, errno.EDQUOT}


@contextlib.contextmanager
def naming(path: Path, doing: str) -> Iterator[None]:
    """Turns an `OSError` in the block into a `StoreError` that says what was being done to which path."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise StoreFull(
                f"no space left while {doing} {path}: free some, or run `shifter-admin store gc`"
            ) from error
        raise StoreError(f"{doing} {path} failed: {error.strerror or error}") from error


def sync_directory(path: Path) -> None:
    """Makes the entries of a directory durable (fsync of the directory itself, see fsync(2), NOTES)."""
    with naming(path, "syncing directory"):
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def make_directory(path: Path, *, mode: int, sync: bool) -> None:
    """Creates a directory, mode not changed by the umask; no error when it is there. Its parent must exist."""
    with naming(path, "creating directory"):
        try:
            path.mkdir(mode=mode)
        except FileExistsError:
            return
        path.chmod(mode)
    if sync:
        sync_directory(path.parent)


def replace_with(path: Path, content: bytes, *, mode: int = 0o644, sync: bool = True) -> None:
    """Writes a small file so that a reader sees the old content or the new, never a part, also after a power cut."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{os.urandom(4).hex()}")
    try:
        with naming(path, "writing"):
            with temporary.open("xb") as file:
                file.write(content)
                file.flush()
                os.fchmod(file.fileno(), mode)
                if sync:
                    os.fsync(file.fileno())
            temporary.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    if sync:
        sync_directory(path.parent)
