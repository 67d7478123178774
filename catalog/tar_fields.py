"""The parts of tar headers: numbers in their spellings, records of pax, maps of sparse files. Each is checked as it is read."""

from __future__ import annotations

from collections.abc import Mapping


class TarInvalid(Exception):
    """The bytes are no tar archive that can be taken. The text says what is wrong, with which member."""


def shown(name: bytes) -> str:
    """A member's name for a message: printable, one line, shortened."""
    text = name.decode("utf-8", "backslashreplace")
    text = "".join(sign if sign.isprintable() else sign.encode("unicode_escape").decode() for sign in text)
    return text if len(text) <= 120 else text[:117] + "..."


def pax(content: bytes) -> dict[bytes, bytes]:
    """The records of an extended header. Sparse pieces of format 0.0, which repeat a key, are joined into a map as in
    0.1.
    """
    records: dict[bytes, bytes] = {}
    pieces: list[bytes] = []
    at = 0
    while at < len(content):
        space = content.find(b" ", at, at + 20)
        length = digits(content[at:space]) if space > at else 0
        record = content[space + 1 : at + length]
        if length < 5 or at + length > len(content) or not record.endswith(b"\n"):
            raise TarInvalid("an extended header is malformed")
        key, equals, value = record[:-1].partition(b"=")
        if not equals or not key:
            raise TarInvalid("an extended header is malformed")
        if key in (b"GNU.sparse.offset", b"GNU.sparse.numbytes"):
            pieces.append(value)
        elif value:
            records[key] = value
        else:
            records.pop(key, None)
        at += length
    if pieces:
        records[b"GNU.sparse.map"] = b",".join(pieces)
    return records


def sparse_version(records: Mapping[bytes, bytes]) -> bytes:
    major, minor = records.get(b"GNU.sparse.major"), records.get(b"GNU.sparse.minor")
    if major is not None or minor is not None:
        version = (major or b"") + b"." + (minor or b"")
        if version not in (b"0.0", b"0.1", b"1.0"):
            raise TarInvalid(f"a sparse file has the unknown version {shown(version)}")
        return version
    return b"0.1" if b"GNU.sparse.map" in records else b""


def sparse_map(pieces: list[tuple[int, int]], stored: int, real: int) -> tuple[tuple[int, int], ...]:
    """A sparse map whose pieces follow each other within the file and make up what is stored."""
    end = total = 0
    for offset, length in pieces:
        if offset < end or offset + length > real:
            raise TarInvalid("a sparse file has pieces that overlap or lie outside of it")
        end = offset + length
        total += length
    if total != stored:
        raise TarInvalid("a sparse file stores other bytes than its map says")
    return tuple(pieces)


def number(field: bytes, name: str) -> int:
    """A numeric field: octal text, or GNU's base-256 when the first bit is set."""
    if field[0] & 0x80:
        value = int.from_bytes(field, "big") & ((1 << (8 * len(field) - 1)) - 1)
        if field[0] & 0x40:
            value -= 1 << (8 * len(field) - 1)
        if abs(value) >= 1 << 63:
            raise TarInvalid(f"a header's {name} is beyond 63 bits")
        return value
    text = field.partition(b"\0")[0].strip(b" ")
    if not text:
        return 0
    if not text.isdigit():
        raise TarInvalid(f"a header's {name} is no number")
    try:
        return int(text, 8)
    except ValueError:
        raise TarInvalid(f"a header's {name} is no number") from None


def decimal(records: Mapping[bytes, bytes], key: bytes, default: int) -> int:
    """A decimal record; a fraction (of a time) is cut off."""
    value = records.get(key)
    if value is None:
        return default
    whole, dot, fraction = value.partition(b".")
    if dot and fraction and not fraction.isdigit():
        raise TarInvalid(f"the extended header {shown(key)} is no number")
    if whole.startswith(b"-"):
        return -digits(whole[1:])
    return digits(whole)


def digits(text: bytes) -> int:
    if not text.isdigit() or len(text) > 19:
        raise TarInvalid(f"{shown(text)!r} in an extended header is no number")
    return int(text)
