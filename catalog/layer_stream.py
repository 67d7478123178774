"""A layer's tar as a stream of bytes, whatever it is compressed with.

What it is compressed with is taken from its first bytes, not from what the registry calls it. Output is bounded in
memory and in all: a bomb ends in TarInvalid before it has done harm.
"""

from __future__ import annotations

import os
from typing import BinaryIO, cast

import zstandard
from isal import isal_zlib

from catalog.limits import Limits
from catalog.tar_fields import TarInvalid

_GZIP_ERROR = cast("type[Exception]", isal_zlib.error)  # its stub declares an instance
_GZIP = b"\x1f\x8b"
_ZSTD = b"\x28\xb5\x2f\xfd"
_SKIPPABLE = 0x184D2A50
_OTHERS = {b"BZh": "bzip2", b"\xfd7zXZ\0": "xz", b"\x04\x22\x4d\x18": "lz4"}
_IN = 256 << 10
_OUT = 4 << 20
_LARGE = 1 << 30
_HEADER = 16


class LayerStream:
    """`read` gives the next bytes, b"" at the end. Raises TarInvalid for what cannot be decompressed or grows without
    measure.
    """

    def __init__(self, file: BinaryIO, compressed: int, limits: Limits, *, others: int = 0) -> None:
        """file: the layer, positioned at its start. compressed: its size in bytes. others: what the image's other
        layers, as far as they were read, have unpacked to.
        """
        self._file = file
        self._compressed = compressed
        self._limits = limits
        self._others = others
        self.total = 0
        head = file.read(_IN)
        if head.startswith(_GZIP):
            self._next = _Gzip(file, head).read
        elif head.startswith(_ZSTD) or int.from_bytes(head[:4], "little") & ~0xF == _SKIPPABLE:
            self._next = _Zstd(file, head).read
        else:
            for magic, name in _OTHERS.items():
                if head.startswith(magic):
                    raise TarInvalid(f"it is compressed with {name}, which container images do not use")
            self._next = _Plain(file, head).read

    def read(self) -> bytes:
        piece = self._next()
        self.total += len(piece)
        if self._others + self.total > self._limits.unpacked:
            raise TarInvalid(f"the image unpacks to more than {self._limits.unpacked} bytes, which is the limit")
        if self.total > _LARGE and self.total > self._compressed * self._limits.ratio:
            raise TarInvalid(f"it unpacks to more than {self._limits.ratio} times its size, which is the limit")
        return piece


class _Plain:
    def __init__(self, file: BinaryIO, head: bytes) -> None:
        self._file, self._head = file, head

    def read(self) -> bytes:
        head, self._head = self._head, b""
        return head or self._file.read(1 << 20)


class _Gzip:
    """Gzip of one or more parts (RFC 1952, 2.2), CRC and length of each checked by the decompressor."""

    def __init__(self, file: BinaryIO, head: bytes) -> None:
        self._file, self._head = file, head
        self._part = isal_zlib.decompressobj(wbits=31)
        self._ended = False

    def read(self) -> bytes:
        while not self._ended:
            if self._part.eof:
                rest = self._part.unused_data or self._file.read(_IN)
                if not rest.strip(b"\0"):
                    while more := self._file.read(_IN):
                        if more.strip(b"\0"):
                            raise TarInvalid("something follows the end of its gzip data")
                    break
                if not (rest.startswith(_GZIP) or _GZIP.startswith(rest)):
                    raise TarInvalid("something follows the end of its gzip data")
                self._part, self._head = isal_zlib.decompressobj(wbits=31), rest
            data = self._head or self._part.unconsumed_tail or self._file.read(_IN)
            self._head = b""
            if not data:
                raise TarInvalid("its gzip data end before they are complete")
            try:
                piece = self._part.decompress(data, _OUT)
            except (_GZIP_ERROR, ValueError, EOFError) as error:
                raise TarInvalid(f"its gzip data are damaged ({error})") from error
            if piece:
                return bytes(piece)
        self._ended = True
        return b""


class _Zstd:
    """Zstandard frames one after the other; the skippable frames of zstd:chunked say nothing that is needed."""

    def __init__(self, file: BinaryIO, head: bytes) -> None:
        start = file.seek(-len(head), os.SEEK_CUR)
        _check_frames(file)
        file.seek(start)
        frames = zstandard.ZstdDecompressor(max_window_size=128 << 20)
        self._stream = frames.stream_reader(file, read_size=_IN, read_across_frames=True)

    def read(self) -> bytes:
        try:
            return self._stream.read(1 << 20)
        except zstandard.ZstdError as error:
            raise TarInvalid(f"its zstd data are damaged ({error})") from error


def _check_frames(file: BinaryIO) -> None:
    """Walks over frames and blocks (RFC 8878, 3.1) to see that the last is complete: the decompressor does not say so."""
    length = file.seek(0, os.SEEK_END)
    at = 0

    def take(count: int) -> bytes:
        nonlocal at
        file.seek(at)
        taken = file.read(min(count, _HEADER))
        at += count
        if at > length:
            raise TarInvalid("its zstd data end before they are complete")
        return taken

    while at < length:
        magic = take(4)
        if int.from_bytes(magic, "little") & ~0xF == _SKIPPABLE:
            size = int.from_bytes(take(4), "little")
            take(size)
            continue
        if magic != _ZSTD:
            raise TarInvalid("something follows the end of its zstd data")
        descriptor = take(1)[0]
        single, checksum = descriptor >> 5 & 1, descriptor >> 2 & 1
        content = (1 if single else 0, 2, 4, 8)[descriptor >> 6]
        take((0 if single else 1) + (0, 1, 2, 4)[descriptor & 3] + content)
        last = False
        while not last:
            header = int.from_bytes(take(3), "little")
            last, kind, size = bool(header & 1), header >> 1 & 3, header >> 3
            if kind == 3:
                raise TarInvalid("its zstd data are damaged (a block of the reserved kind)")
            take(1 if kind == 1 else size)
        take(4 * checksum)
