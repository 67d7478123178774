"""Both names of a file are those of its bytes, in whatever pieces they come."""

from __future__ import annotations

import hashlib
import os
import random
from pathlib import Path

import blake3
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cas.hashing import CHUNK, Names, hash_blake3, hash_file, hash_side_by_side

NOISE = random.Random(5).randbytes(9 * CHUNK + 5)


def names(content: bytes) -> Names:
    return Names(blake3.blake3(content).hexdigest(), hashlib.sha256(content).hexdigest(), len(content))


@pytest.mark.parametrize("size", [0, 1, CHUNK, 6 * CHUNK - 1, 6 * CHUNK, 6 * CHUNK + 1, len(NOISE)])
def test_a_file_of_every_size(tmp_path: Path, size: int) -> None:
    path = tmp_path / "file"
    path.write_bytes(NOISE[:size])
    with path.open("rb") as file:
        file.seek(size // 2)
        assert hash_file(file.fileno()) == names(NOISE[:size])
        assert hash_blake3(file.fileno()) == names(NOISE[:size]).blake3
        assert file.tell() == size // 2


@given(st.lists(st.binary(min_size=1, max_size=100), max_size=30))
def test_pieces_of_any_length_give_the_names_of_the_whole(pieces: list[bytes]) -> None:
    left, written = list(reversed(pieces)), []

    def read(buffer: memoryview) -> int:
        piece = left.pop() if left else b""
        buffer[: len(piece)] = piece
        return len(piece)

    assert hash_side_by_side(read, lambda piece: written.append(bytes(piece))) == names(b"".join(pieces))
    assert written == pieces


def test_what_fails_in_between_is_raised_and_leaves_no_thread() -> None:
    import threading

    def broken(buffer: memoryview) -> int:
        raise OSError(5, os.strerror(5))

    def full(piece: memoryview) -> None:
        raise OSError(28, os.strerror(28))

    before = threading.active_count()
    with pytest.raises(OSError, match="Input/output"):
        hash_side_by_side(broken)
    with pytest.raises(OSError, match="No space"):
        hash_side_by_side(len, full)
    assert threading.active_count() == before
