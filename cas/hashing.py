"""Both names of some bytes in one pass: BLAKE3 names objects, SHA-256 is what registries speak.

Nothing here knows of the store.
"""

from __future__ import annotations

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

import blake3

from cas.errors import SourceChanged

_LARGE = 4 << 20
CHUNK = 1 << 20
"""Bytes read at a time: large enough for the threads of BLAKE3, small enough for the cache."""


@dataclass(frozen=True)
class Names:
    """The two names of one run of bytes, 64 lower-case hexadecimal digits each, and its length."""

    blake3: str
    sha256: str
    size: int


class BothHashes:
    """`update` with bytes as often as needed, then `names`."""

    def __init__(self) -> None:
        self._blake3 = blake3.blake3()
        self._sha256 = hashlib.sha256()
        self.size = 0

    def update(self, data: bytes | memoryview) -> None:
        self._sha256.update(data)
        self._blake3.update(data)
        self.size += len(data)

    def names(self) -> Names:
        return Names(self._blake3.hexdigest(), self._sha256.hexdigest(), self.size)


def hash_file(fd: int) -> Names:
    """Both names of an open file, read from its start; the file position is not used.

    Of a large file, the two hashes are computed side by side.
    """
    size = os.fstat(fd).st_size
    if size < _LARGE:
        hashes, position = BothHashes(), 0
        while chunk := os.pread(fd, CHUNK, position):
            hashes.update(chunk)
            position += len(chunk)
        return hashes.names()
    sha256 = hashlib.sha256()
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="sha256") as pool:
        other = pool.submit(_feed, fd, sha256)
        name = hash_blake3(fd)
        length = other.result()
    if length != size:
        raise SourceChanged(f"a file of {size} bytes was {length} bytes long when it was read")
    return Names(name, sha256.hexdigest(), size)


class _Hash(Protocol):
    def update(self, data: bytes, /) -> object: ...


def _feed(fd: int, hasher: _Hash) -> int:
    position = 0
    while chunk := os.pread(fd, CHUNK, position):
        hasher.update(chunk)
        position += len(chunk)
    return position


def hash_blake3(fd: int) -> str:
    """The BLAKE3 name of an open file, read from its start; the file position is not used."""
    hasher = blake3.blake3()
    _feed(fd, hasher)
    return hasher.hexdigest()
