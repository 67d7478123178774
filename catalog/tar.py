"""Tar as a stream of bytes: members one by one, without an object for each file's data and without a file position.

Reads ustar, GNU (long names, base-256 numbers, old sparse files) and pax (path, linkpath, size, ids, mtime,
SCHILY.xattr, GNU.sparse 0.0, 0.1, 1.0), as POSIX.1-2017 pax and the GNU tar manual describe them. Every number and
length is checked against the limits before it is used; what does not parse is a TarInvalid. Names are bytes: nothing
here assumes an encoding.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple
from zlib import adler32

from catalog.limits import Limits
from catalog.tar_fields import TarInvalid, decimal, digits, number, pax, shown, sparse_map, sparse_version

BLOCK = 512
REGULAR, LINK, SYMLINK, CHARACTER, DEVICE, DIRECTORY, FIFO = b"0", b"1", b"2", b"3", b"4", b"5", b"6"

_ZERO = bytes(BLOCK)
_FIELDS = struct.Struct("100s8s8s8s12s12s8sc100s8s32s32s8s8s155s12s").unpack
# The numbers of a header as nearly every archive has them, from `mode` to `typeflag`: one look instead of six.
_USUAL = re.compile(rb"([0-7]{7})\0([0-7]{7})\0([0-7]{7})\0([0-7]{11})[\0 ]([0-7]{11})[\0 ]([0-7]{6})\0 ([0125])").match
_CHECKSUM_BLANK = 8 * 32
_ADLER = 65521
_HIGHEST_TIME = 2**32 - 1  # squashfs and this side of 2106
_HIGHEST_ID = 2**32 - 2
_GNU_MAGIC = b"ustar  \0"
_MAGICS = (_GNU_MAGIC, b"ustar\x0000")
_SLASH = ord("/")
_NO_XATTRS: Mapping[bytes, bytes] = {}


class Member(NamedTuple):
    """One entry of an archive, as its headers together describe it.

    name: as written, with an extended header applied. kind: one of the constants of this module (others are refused
    or skipped by the reader). size: bytes of the file. stored: bytes in the stream, less than `size` for a sparse
    file. sparse: (offset, length) of what is stored, None when all is. block: the header as read, when it alone says
    everything.
    """

    name: bytes
    kind: bytes
    mode: int
    uid: int
    gid: int
    mtime: int
    size: int
    link: bytes
    stored: int
    sparse: tuple[tuple[int, int], ...] | None
    xattrs: Mapping[bytes, bytes]
    block: bytes | None


class TarReader:
    """Members of one archive in order; after each, its data by `pieces` until the next is asked for."""

    def __init__(self, read: Callable[[], bytes], limits: Limits) -> None:
        """read: the next bytes of the archive, as many as it likes, b"" at the end."""
        self._read = read
        self._limits = limits
        self._buffer = b""
        self._at = 0
        self._left = 0  # bytes of the current member's data and padding not yet passed
        self._padding = 0  # how many of these fill the last block; some builders leave them out at the very end

    def next(self) -> Member | None:
        """The next member, None after the last. What was not taken of the one before is skipped. Raises TarInvalid."""
        if self._left:
            self._skip(self._left)
            self._left = 0
        name: bytes | None = None
        link: bytes | None = None
        records: dict[bytes, bytes] = {}
        extended = 0
        raw = b""  # the headers so far, for handing on as they are
        while True:
            at = self._at
            block = self._buffer[at : at + BLOCK]
            if len(block) == BLOCK:
                self._at = at + BLOCK
            else:
                block = self._take(BLOCK, ending=True)
                if not block:
                    if extended:
                        raise TarInvalid("the archive ends after an extended header")
                    return None
            if block == _ZERO:
                if extended:
                    raise TarInvalid("the archive ends after an extended header")
                second = self._take(BLOCK, ending=True)
                if second and second != _ZERO:
                    raise TarInvalid("a header follows a block of zeros")
                return None
            usual = _USUAL(block, 100)
            if usual is not None and block[257:265] in _MAGICS and not block[345]:
                mode, uid, gid, size, mtime, check = [int(number, 8) for number in usual.groups()[:6]]
                kind = usual[7]
                # adler32 is a sum modulo 65521 in C; on bytes, it is forty times as fast as `sum`.
                right = adler32(block) & 0xFFFF == (check + sum(block[148:156]) - 255) % _ADLER
                if right and mode <= 0o7777 and not records:
                    if name is None:
                        name = block[:100].partition(b"\0")[0]
                    if link is None:
                        link = block[157:257].partition(b"\0")[0] if kind in b"12" else b""
                    if name and (kind != REGULAR or name[-1] != _SLASH):
                        if kind != REGULAR:
                            size = 0
                        elif size > self._limits.unpacked:
                            raise TarInvalid(f"{shown(name)} is {size} bytes long, allowed are {self._limits.unpacked}")
                        self._left = (size + BLOCK - 1) & -BLOCK
                        self._padding = self._left - size
                        raw = raw + block if raw else block
                        return Member(name, kind, mode, uid, gid, mtime, size, link, size, None, _NO_XATTRS, raw)
            fields = _FIELDS(block)
            kind = fields[7]
            check = number(fields[6], "checksum")
            if adler32(block) & 0xFFFF != (check + sum(fields[6]) - 255) % _ADLER and not _checks(block, check):
                raise TarInvalid("a header has a wrong checksum: the archive is damaged, or no tar archive")
            if kind in b"xgLK":
                size = number(fields[4], "size of an extended header")
                if size > self._limits.header:
                    raise TarInvalid(f"an extended header is {size} bytes long, allowed are {self._limits.header}")
                extended += size + BLOCK
                if extended > self._limits.header + 8 * BLOCK:
                    raise TarInvalid(f"extended headers of one member exceed {self._limits.header} bytes")
                content = self._take(-(-size // BLOCK) * BLOCK)
                if kind in b"LK":
                    raw += block + content
                content = content[:size]
                if kind == b"L":
                    name = content.partition(b"\0")[0]
                elif kind == b"K":
                    link = content.partition(b"\0")[0]
                elif kind == b"x":
                    records = pax(content)
                else:
                    extended -= size + BLOCK  # a global header speaks of no member, and nothing in it is used
                continue
            return self._member(fields, block, name, link, records)

    def drain(self) -> None:
        """Passes over whatever follows the archive's end, so that what it is packed in is checked to its own end."""
        self._buffer = b""
        self._at = self._left = 0
        while self._read():
            pass

    def pieces(self) -> Iterator[bytes]:
        """The stored data of the current member, padded with whatever fills its last block."""
        while self._left:
            at = self._at
            piece = self._buffer[at : at + self._left]
            if not piece:
                try:
                    self._fill()
                except _Ended:
                    if self._left > self._padding:
                        raise
                    piece, self._left = bytes(self._left), 0
                    yield piece
                continue
            self._at = at + len(piece)
            self._left -= len(piece)
            yield piece

    def _member(
        self,
        fields: tuple[bytes, ...],
        block: bytes,
        name: bytes | None,
        link: bytes | None,
        records: dict[bytes, bytes],
    ) -> Member:
        kind = fields[7]
        size = number(fields[4], "size")
        mode, uid, gid = number(fields[1], "mode"), number(fields[2], "uid"), number(fields[3], "gid")
        mtime = number(fields[5], "mtime")
        plain = name is None and link is None and not records  # what is not plain, or not usual, is written anew
        sparse: tuple[tuple[int, int], ...] | None = None
        xattrs = _NO_XATTRS
        if name is None:
            name = fields[0].partition(b"\0")[0]
            if fields[9] != _GNU_MAGIC and fields[9][:5] == b"ustar" and fields[14][0]:
                name = fields[14].partition(b"\0")[0] + b"/" + name
        if link is None:
            link = fields[8].partition(b"\0")[0]
        version = b""
        if records:
            name, link = records.get(b"path", name), records.get(b"linkpath", link)
            size = decimal(records, b"size", size)
            uid, gid = decimal(records, b"uid", uid), decimal(records, b"gid", gid)
            mtime = decimal(records, b"mtime", mtime)
            found = {key[13:]: value for key, value in records.items() if key.startswith(b"SCHILY.xattr.")}
            xattrs = found or _NO_XATTRS
            version = sparse_version(records)
        if kind == b"\0":
            kind = DIRECTORY if name.endswith(b"/") else REGULAR
        elif kind == b"7":
            kind = REGULAR
        elif kind == REGULAR and name.endswith(b"/"):
            kind = DIRECTORY
        if size < 0:
            raise TarInvalid(f"{shown(name)} has a negative size")
        if kind in b"123456" and len(kind) == 1:
            size = 0
        elif kind not in (REGULAR, b"S"):
            raise TarInvalid(f"{shown(name)} is of the unknown type {kind!r}")
        stored = size
        self._left = -(-size // BLOCK) * BLOCK
        self._padding = self._left - size
        if kind == b"S":
            kind, plain = REGULAR, False
            sparse, size = self._old_sparse(block, fields, stored)
        elif version and kind == REGULAR:
            sparse, size, stored, name = self._pax_sparse(version, records, name, stored)
        if size > self._limits.unpacked:
            raise TarInvalid(f"{shown(name)} is {size} bytes long, allowed are {self._limits.unpacked}")
        if not name:
            raise TarInvalid("a member has no name")
        if b"\0" in name or b"\0" in link:
            raise TarInvalid(f"{shown(name)} has a zero byte in a name")
        if not 0 <= uid <= _HIGHEST_ID or not 0 <= gid <= _HIGHEST_ID:
            raise TarInvalid(f"{shown(name)} has the owner {uid}:{gid}, which cannot be")
        within = 0 <= mtime <= _HIGHEST_TIME
        # A header is handed on as it is only where any reader must understand it as this one does.
        canonical = (
            plain
            and within
            and fields[7] == kind
            and mode <= 0o7777
            and (fields[9] == b"ustar\x0000" or (fields[9] == _GNU_MAGIC and not fields[14].strip(b"\0")))
        )
        mtime = mtime if within else max(0, min(mtime, _HIGHEST_TIME))
        return Member(
            name, kind, mode & 0o7777, uid, gid, mtime, size, link, stored, sparse, xattrs, block if canonical else None
        )

    def _old_sparse(
        self, block: bytes, fields: tuple[bytes, ...], stored: int
    ) -> tuple[tuple[tuple[int, int], ...], int]:
        """GNU's type S: four pieces in the header, more in blocks that follow it (GNU tar manual, "Old GNU Format")."""
        if fields[9] != _GNU_MAGIC:
            raise TarInvalid("a sparse file of the old format has no GNU header")
        table, more, real = block[386:482], block[482], number(block[483:495], "size of a sparse file")
        pieces: list[tuple[int, int]] = []
        while True:
            pieces += [
                (number(table[at : at + 12], "offset"), number(table[at + 12 : at + 24], "length"))
                for at in range(0, len(table) - 23, 24)
                if table[at]
            ]
            if not more:
                break
            if len(pieces) > self._limits.header // 24:
                raise TarInvalid("a sparse file has too many pieces")
            following = self._take(BLOCK)
            table, more = following[:504], following[504]
        return sparse_map(pieces, stored, real), real

    def _pax_sparse(
        self, version: bytes, records: Mapping[bytes, bytes], name: bytes, stored: int
    ) -> tuple[tuple[tuple[int, int], ...], int, int, bytes]:
        """GNU.sparse of the versions 0.0, 0.1 and 1.0 (GNU tar manual, "PAX Format")."""
        name = records.get(b"GNU.sparse.name", name)
        real = decimal(records, b"GNU.sparse.realsize", decimal(records, b"GNU.sparse.size", -1))
        if real < 0:
            raise TarInvalid(f"{shown(name)} is a sparse file without a size")
        if version == b"1.0":
            before = self._left
            numbers = self._sparse_map(stored)
            stored -= before - self._left
        else:
            text = records.get(b"GNU.sparse.map", b"")
            numbers = [digits(number) for number in text.split(b",")] if text else []
        if len(numbers) % 2:
            raise TarInvalid(f"{shown(name)} has half a piece in its sparse map")
        pieces = list(zip(numbers[::2], numbers[1::2], strict=True))
        return sparse_map(pieces, stored, real), real, stored, name

    def _sparse_map(self, stored: int) -> list[int]:
        """The map at the front of the data of a 1.0 sparse file: decimal lines, filled up to a block."""
        lines: list[bytes] = []
        rest, wanted = b"", 1
        while len(lines) < wanted:
            if self._left < BLOCK or stored < BLOCK:
                raise TarInvalid("a sparse file ends in its map")
            rest += self._take(BLOCK)
            self._left -= BLOCK
            *complete, rest = rest.split(b"\n")
            lines += complete
            if lines and wanted == 1:
                wanted = 1 + 2 * digits(lines[0])
                if wanted > self._limits.header:
                    raise TarInvalid("a sparse file has too many pieces")
        return [digits(line) for line in lines[1:wanted]]

    def _take(self, size: int, *, ending: bool = False) -> bytes:
        """Exactly so many bytes; b"" at a clean end when that may be here."""
        while len(self._buffer) - self._at < size:
            try:
                self._fill()
            except _Ended:
                if ending and len(self._buffer) == self._at:
                    return b""
                raise TarInvalid("the archive ends in the middle of a member") from None
        at = self._at
        self._at = at + size
        return self._buffer[at : at + size]

    def _skip(self, size: int) -> None:
        while True:
            have = len(self._buffer) - self._at
            if have >= size:
                self._at += size
                return
            size -= have
            self._at = len(self._buffer)
            try:
                self._fill()
            except _Ended:
                if size > self._padding:
                    raise
                return

    def _fill(self) -> None:
        more = self._read()
        if not more:
            raise _Ended("the archive ends in the middle of a member")
        self._buffer = self._buffer[self._at :] + more if self._at < len(self._buffer) else more
        self._at = 0


class _Ended(TarInvalid):
    pass


def _checks(block: bytes, check: int) -> bool:
    unsigned = sum(block) - sum(block[148:156]) + _CHECKSUM_BLANK
    signed = unsigned - 256 * sum(byte > 127 for byte in block[:148] + block[156:])
    return check in (unsigned, signed)
