"""Both names of some bytes in one pass: BLAKE3 names objects, SHA-256 is what registries speak.

Nothing here knows of the store.
"""

from __future__ import annotations

import hashlib
import itertools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Protocol

import blake3

from cas.errors import SourceChanged

_LARGE = 4 << 20
_BUFFERS = 6
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
    names = hash_side_by_side(reading(fd))
    if names.size != size:
        raise SourceChanged(f"a file of {size} bytes was {names.size} bytes long when it was read")
    return names


def hash_blake3(fd: int) -> str:
    """The BLAKE3 name of an open file, read from its start; the file position is not used."""
    hasher, buffer, read = blake3.blake3(), memoryview(bytearray(CHUNK)), reading(fd)
    while size := read(buffer):
        hasher.update(buffer[:size])
    return hasher.hexdigest()


def hash_side_by_side(
    read: Callable[[memoryview], int], then: Callable[[memoryview], object] = lambda piece: None
) -> Names:
    """Both names of what `read` puts into one buffer after the other (bytes put there, 0 at the end).

    Each hash has a thread of its own; `then` gets each piece in this one meanwhile, and may not keep it. A few buffers
    go round, so the bytes are copied once and hashed while the processor still has them at hand.
    """
    hashes: tuple[_Hash, _Hash] = (blake3.blake3(), hashlib.sha256())
    size = 0
    with ThreadPoolExecutor(max_workers=len(hashes), thread_name_prefix="hash") as pool:
        followers = [_Follower(one) for one in hashes]
        following = [pool.submit(follower.run) for follower in followers]
        try:
            for number, buffer in enumerate(itertools.cycle([memoryview(bytearray(CHUNK)) for _ in range(_BUFFERS)])):
                if number >= _BUFFERS:
                    for follower in followers:
                        follower.done.get()
                if not (count := read(buffer)):
                    break
                for follower in followers:
                    follower.pieces.put(buffer[:count])
                then(buffer[:count])
                size += count
        finally:
            for follower in followers:
                follower.pieces.put(None)
        for one in following:
            one.result()
    return Names(hashes[0].hexdigest(), hashes[1].hexdigest(), size)


class _Hash(Protocol):
    def update(self, data: memoryview, /) -> object: ...

    def hexdigest(self) -> str: ...


class _Follower:
    """Feeds one hash with pieces in the order in which they are put; `done` gets an entry for each piece it is through
    with.
    """

    def __init__(self, hasher: _Hash) -> None:
        self._hasher = hasher
        self.pieces: SimpleQueue[memoryview | None] = SimpleQueue()
        self.done: SimpleQueue[None] = SimpleQueue()

    def run(self) -> None:
        failure: BaseException | None = None
        while (piece := self.pieces.get()) is not None:
            try:
                if failure is None:
                    self._hasher.update(piece)
            except BaseException as error:  # noqa: BLE001  # raised below: who puts pieces waits for `done` of each
                failure = error
            self.done.put(None)
        if failure is not None:
            raise failure


def reading(fd: int) -> Callable[[memoryview], int]:
    """Reads an open file piece by piece from its start, whatever its position."""
    position = 0

    def read(buffer: memoryview) -> int:
        nonlocal position
        count = os.preadv(fd, [buffer], position)
        position += count
        return count

    return read
