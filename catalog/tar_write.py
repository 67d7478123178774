"""Headers of tar members, written: GNU for long names (any bytes), pax only for attributes."""

from __future__ import annotations

from collections.abc import Mapping

from catalog.tar import BLOCK, REGULAR, Member

_GNU_MAGIC = b"ustar  \0"


def encode(member: Member, path: bytes, link: bytes, mode: int, xattrs: Mapping[bytes, bytes]) -> bytes:
    """The header blocks for a member under this path: GNU for long names (any bytes), pax only for attributes."""
    head = b""
    if xattrs:
        content = b"".join(_record(b"SCHILY.xattr." + key, value) for key, value in sorted(xattrs.items()))
        head += _header(b"././@PaxHeader", b"x", 0, 0, 0, 0, len(content), b"") + _padded(content)
    if len(link) > 100:
        head += _header(b"././@LongLink", b"K", 0, 0, 0, 0, len(link) + 1, b"") + _padded(link + b"\0")
    if len(path) > 100:
        head += _header(b"././@LongLink", b"L", 0, 0, 0, 0, len(path) + 1, b"") + _padded(path + b"\0")
    size = member.size if member.kind == REGULAR else 0
    return head + _header(path, member.kind, mode, member.uid, member.gid, member.mtime, size, link)


def _header(path: bytes, kind: bytes, mode: int, uid: int, gid: int, mtime: int, size: int, link: bytes) -> bytes:
    block = b"".join(
        (
            path[:100].ljust(100, b"\0"),
            b"%07o\0" % mode,
            _field(uid, 8),
            _field(gid, 8),
            _field(size, 12),
            _field(mtime, 12),
            b"        ",
            kind,
            link[:100].ljust(100, b"\0"),
            _GNU_MAGIC,
            bytes(247),
        )
    )
    return block[:148] + b"%06o\0 " % sum(block) + block[156:]


def _field(value: int, width: int) -> bytes:
    if value < 8 ** (width - 1):
        return b"%0*o\0" % (width - 1, value)
    return b"\x80" + value.to_bytes(width - 1, "big")


def _padded(content: bytes) -> bytes:
    return content + bytes(-len(content) % BLOCK)


def _record(key: bytes, value: bytes) -> bytes:
    body = b" " + key + b"=" + value + b"\n"
    length = len(body) + 1
    while len(str(length)) + len(body) != length:
        length = len(str(length)) + len(body)
    return str(length).encode() + body
