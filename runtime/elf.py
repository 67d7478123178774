"""What a shared library or program says about itself: its names, what it needs, what it exports.

``read`` takes the facts that the dynamic linker decides by (names of libraries, symbols, symbol versions) out of a
64-bit ELF file of either byte order, through its section headers; see elf(5) and the "Linux Standard Base Core
Specification", chapter Symbol Versioning. It resolves nothing, follows no path and believes nothing: a table that
points outside the file is ``ElfInvalid``.
"""

from __future__ import annotations

import mmap
import os
import stat
import struct

from runtime.record import Record

_DYNAMIC, _DYNSYM, _VERDEF, _VERNEED = 6, 11, 0x6FFFFFFD, 0x6FFFFFFE
_NEEDED, _SONAME, _RPATH, _RUNPATH = 1, 14, 15, 29
_LOCAL = 0  # a symbol's binding, the upper half of st_info


class ElfInvalid(Exception):
    """The file is no 64-bit ELF object with a dynamic section, or it is damaged; the text names it."""


class Elf(Record):
    """``needs_versions``: (library, version) pairs it wants of others; ``gives_versions``: versions it defines.

    ``defined`` and ``undefined`` are its global dynamic symbols; ``machine`` is e_machine (62: x86-64).
    """

    path: str
    machine: int
    soname: str
    needed: tuple[str, ...]
    search: tuple[str, ...]
    defined: frozenset[str]
    undefined: frozenset[str]
    needs_versions: frozenset[tuple[str, str]]
    gives_versions: frozenset[str]


class _Section(Record):
    kind: int
    offset: int
    size: int
    link: int
    entry_size: int


def read(path: str) -> Elf:
    """The facts of the file at ``path``. Raises ElfInvalid, OSError."""
    # An image may hold a fifo of that name: never wait for a writer.
    with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise ElfInvalid(f"{path}: is no file")
        try:
            data = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
        except ValueError:
            raise ElfInvalid(f"{path}: is empty") from None
        with data:
            try:
                return _Parser(path, data).elf()
            except (struct.error, IndexError, RecursionError):
                raise ElfInvalid(f"{path}: is damaged: a table points outside the file") from None


class _Parser:
    def __init__(self, path: str, data: mmap.mmap) -> None:
        if data[:4] != b"\x7fELF" or data[4:5] != b"\x02" or data[5:6] not in (b"\x01", b"\x02"):
            raise ElfInvalid(f"{path}: is no 64-bit ELF file")
        self._path = path
        self._data = data
        self._order = "<" if data[5:6] == b"\x01" else ">"
        (self._machine,) = self._unpack("H", 18)
        (table,) = self._unpack("Q", 40)
        entry_size, count = self._unpack("HH", 58)
        self._sections = [self._section(table + number * entry_size) for number in range(count)]

    def _unpack(self, form: str, offset: int) -> tuple[int, ...]:
        return struct.unpack_from(self._order + form, self._data, offset)

    def _section(self, offset: int) -> _Section:
        _, kind, _, _, start, size, link, _, _, entry_size = self._unpack("IIQQQQIIQQ", offset)
        return _Section(kind, start, size, link, entry_size)

    def _one(self, kind: int) -> _Section | None:
        return next((section for section in self._sections if section.kind == kind), None)

    def _text(self, strings: _Section, offset: int) -> str:
        if not 0 <= offset < strings.size:
            raise IndexError(offset)
        start = strings.offset + offset
        end = self._data.find(b"\0", start, strings.offset + strings.size)
        if end < 0:
            raise IndexError(offset)
        return self._data[start:end].decode("utf-8", "surrogateescape")

    def elf(self) -> Elf:
        dynamic = self._one(_DYNAMIC)
        if dynamic is None:
            raise ElfInvalid(f"{self._path}: is linked statically, or has no section headers: it loads no libraries")
        names = self._sections[dynamic.link]
        values: dict[int, list[str]] = {_NEEDED: [], _SONAME: [], _RPATH: [], _RUNPATH: []}
        for offset in range(dynamic.offset, dynamic.offset + dynamic.size, 16):
            tag, value = self._unpack("qQ", offset)
            if tag == 0:
                break
            if tag in values:
                values[tag].append(self._text(names, value))
        search = values[_RUNPATH] or values[_RPATH]
        defined, undefined = self._symbols()
        return Elf(
            self._path, self._machine, "".join(values[_SONAME][:1]), tuple(values[_NEEDED]),
            tuple(part for text in search for part in text.split(":") if part),
            defined, undefined, self._needs_versions(), self._gives_versions(),
        )  # fmt: skip

    def _symbols(self) -> tuple[frozenset[str], frozenset[str]]:
        table = self._one(_DYNSYM)
        if table is None:
            return frozenset(), frozenset()
        names = self._sections[table.link]
        defined: set[str] = set()
        undefined: set[str] = set()
        for offset in range(table.offset + 24, table.offset + table.size, 24):  # the first is no symbol
            name, info, _, section = self._unpack("IBBH", offset)
            if info >> 4 != _LOCAL:
                (defined if section else undefined).add(self._text(names, name))
        return frozenset(defined), frozenset(undefined)

    def _needs_versions(self) -> frozenset[tuple[str, str]]:
        table = self._one(_VERNEED)
        found: set[tuple[str, str]] = set()
        if table is None:
            return frozenset()
        names = self._sections[table.link]
        offset = table.offset
        while True:
            _, count, library, first, following = self._unpack("HHIII", offset)
            each = offset + first
            for _ in range(count):
                _, _, _, version, step = self._unpack("IHHII", each)
                found.add((self._text(names, library), self._text(names, version)))
                if not step:
                    break
                each += step
            if not following:
                return frozenset(found)
            offset += following

    def _gives_versions(self) -> frozenset[str]:
        table = self._one(_VERDEF)
        found: set[str] = set()
        if table is None:
            return frozenset()
        names = self._sections[table.link]
        offset = table.offset
        while True:
            *_, first, following = self._unpack("HHHHIII", offset)
            version, _ = self._unpack("II", offset + first)
            found.add(self._text(names, version))
            if not following:
                return frozenset(found)
            offset += following
