"""Bytes on their way into a store, piece by piece, hashed as they are written; and parts of them that outlive their writer."""

from __future__ import annotations

import contextlib
import fcntl
import os
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from cas.errors import DigestMismatch, SizeMismatch
from cas.files import naming
from cas.hashing import CHUNK, BothHashes

if TYPE_CHECKING:
    from cas.store import Object, Store


class Writer:
    """Bytes on their way into the store; a context manager. Without a `commit` or a `keep` nothing is left of them."""

    def __init__(self, store: Store, *, sha256: str | None, size: int | None, resume: bool = False) -> None:
        self._store = store
        self._sha256 = sha256
        self._size = size
        self._hashes = BothHashes()
        self._kept = False
        self._path = store.temporary()
        fd = _reopen(partial := store.root / "tmp" / f"partial-{sha256}") if resume and sha256 else None
        if fd is not None:
            self._path, self._fd = partial, fd
            with naming(partial, "reading"):
                while piece := os.read(fd, CHUNK):
                    self._hashes.update(piece)
            if size is not None and self._hashes.size > size:
                with naming(partial, "emptying"):
                    os.ftruncate(fd, 0)
                    os.lseek(fd, 0, os.SEEK_SET)
                self._hashes = BothHashes()
            return
        with naming(self._path, "creating"):
            self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)

    def __enter__(self) -> Writer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # Removed while it is still locked: who waits for the lock then finds no name, and begins anew.
        if not self._kept:
            with contextlib.suppress(OSError):
                self._path.unlink(missing_ok=True)
        os.close(self._fd)

    def keep(self) -> None:
        """Leaves what was written for a later writer with `resume`; gc takes it when none comes."""
        self._kept = self._path.name.startswith("partial-")

    @property
    def written(self) -> int:
        """Bytes taken so far."""
        return self._hashes.size

    def write(self, data: bytes | memoryview) -> int:
        """Takes all of `data`. Raises SizeMismatch as soon as there is more than was expected, StoreFull, StoreError."""
        if self._size is not None and self._hashes.size + len(data) > self._size:
            raise SizeMismatch(f"more than the expected {self._size} bytes came")
        with naming(self._path, "writing"):
            view = memoryview(data)
            while view:
                view = view[os.write(self._fd, view) :]
        self._hashes.update(data)
        return len(data)

    def commit(self) -> Object:
        """Verifies, names and syncs what was written. Raises DigestMismatch, SizeMismatch, StoreFull, StoreError."""
        names = self._hashes.names()
        if self._size is not None and names.size != self._size:
            raise SizeMismatch(f"{names.size} bytes came where {self._size} were expected")
        if self._sha256 is not None and names.sha256 != self._sha256:
            raise DigestMismatch(f"the bytes have the digest sha256:{names.sha256}, expected was sha256:{self._sha256}")
        return self._store.name_file(self._fd, self._path, names)


def _reopen(partial: Path) -> int | None:
    """A partial file, opened for this process alone; None when another has it, or the file system cannot say."""
    with naming(partial, "opening"):
        fd = os.open(partial, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(fd).st_ino == partial.stat().st_ino:
            return fd
    except OSError:  # held by another, gone meanwhile, or no locks here: none of it is a reason not to begin anew
        pass
    os.close(fd)
    return None
