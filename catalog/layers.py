"""Merging layers into one tar stream, from the top layer down, with nothing unpacked.

A member is passed on unless a layer above has its path, hides it (whiteout, opaque directory) or has something at its
path's place that is no directory. This needs to remember paths only, and reads each layer once. What cannot be
decided that way (a path twice in one layer, a hard link whose target is hidden above, a parent that turns out to be a
symbolic link below) raises `NeedsSurvey`: catalog.layers_survey then reads the layers' headers first. Both ways give
what unpacking the layers one over the other gives, less what the policy in ConversionOptions takes out.

Format of layers: https://github.com/opencontainers/image-spec/blob/main/layer.md.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from zlib import crc32

import blake3

from catalog.conversion_options import ConversionOptions
from catalog.limits import Limits
from catalog.tar import BLOCK, CHARACTER, DEVICE, DIRECTORY, LINK, REGULAR, SYMLINK, Member, TarReader
from catalog.tar_fields import TarInvalid, shown
from catalog.tar_write import encode

WHITEOUT = b".wh."
OPAQUE = b".wh..wh..opq"
_SETUID = 0o6000
_FLUSH = 512 << 10
_SAMPLES = 12
_SAMPLE_SIZE = 1 << 20
_HOLE = bytes(1 << 20)
_LINK = Member(b"", LINK, 0o644, 0, 0, 0, 0, b"", 0, None, {}, None)
_DIRECTORY = Member(b"", DIRECTORY, 0o755, 0, 0, 0, 0, b"", 0, None, {}, None)

# What a path is in the layers above. A directory that only follows from a path below it may still get its own entry
# from a lower layer; an explicit one has it already.
_HIDES, _EXPLICIT, _IMPLIED = 1, 2, 3


class NeedsSurvey(Exception):
    """These layers cannot be merged in one pass; the text says why (for logs)."""


@dataclass(frozen=True)
class Merged:
    """What came out of a merge.

    inodes: including directories that only follow from a path, and the root. contents: bytes of all files. sample: some
    files with the BLAKE3 of what they hold, to find again in the image file.
    """

    inodes: int
    members: int
    contents: int
    sample: Mapping[bytes, str] = field(default_factory=dict)


class Output:
    """Collects the stream into pieces worth a system call, applies the policy to each member, and counts."""

    def __init__(self, write: Callable[[bytes], object], options: ConversionOptions) -> None:
        self._write = write
        self._keep_setuid = options.keep_setuid
        self._keep_xattrs = options.keep_user_xattrs
        self._xattr_limit = options.limits.xattrs
        self._unpacked = options.limits.unpacked
        self._pending: list[bytes] = []
        self._sieve = 0
        self._size = 0
        self.members = 0
        self.contents = 0
        self.sample: dict[bytes, str] = {}

    def member(self, member: Member, path: bytes, link: bytes, pieces: TarReader | None) -> None:
        """Passes a member on under this path; pieces: the reader that has its data next, for a regular file."""
        mode = member.mode if self._keep_setuid or member.kind == DIRECTORY else member.mode & ~_SETUID
        xattrs = self._xattrs(member, path) if self._keep_xattrs and member.xattrs else {}
        if member.block is not None and mode == member.mode and link == member.link and _plainly(member.name, path):
            self._put(member.block)
        else:
            self._put(encode(member, path, link, mode, xattrs))
        self.members += 1
        if pieces is None or not member.size:
            return
        self.contents += member.size
        if self.contents > self._unpacked:  # by holes; what is stored was counted where it was decompressed
            raise TarInvalid(f"the image unpacks to more than {self._unpacked} bytes, which is the limit")
        if member.sparse is None:
            if member.size <= _SAMPLE_SIZE and len(self.sample) < _SAMPLES and not crc32(path) & self._sieve:
                self._sampled(member, path, pieces)
                return
            for piece in pieces.pieces():
                self._put(piece)
        else:
            self._sparse(member, pieces)

    def link(self, path: bytes, target: bytes) -> None:
        """A hard link to what was passed on as `target` before."""
        self._put(encode(_LINK, path, target, 0o644, {}))
        self.members += 1

    def end(self) -> None:
        self._put(bytes(2 * BLOCK))
        self.flush()

    def flush(self) -> None:
        if self._pending:
            self._write(b"".join(self._pending))
            self._pending.clear()
            self._size = 0

    def _put(self, piece: bytes) -> None:
        self._pending.append(piece)
        self._size += len(piece)
        if self._size >= _FLUSH:
            self.flush()

    def _sampled(self, member: Member, path: bytes, reader: TarReader) -> None:
        """Passes the data on and remembers their hash. Each fourth sample makes the next rarer: they come from all
        over.
        """
        data = b"".join(reader.pieces())
        self._put(data)
        self.sample[path] = blake3.blake3(data[: member.size]).hexdigest()
        if len(self.sample) % 4 == 0:
            self._sieve = self._sieve << 4 | 15

    def _sparse(self, member: Member, reader: TarReader) -> None:
        """Writes a sparse file with its holes filled; the squashfs writer makes holes of them again."""
        assert member.sparse is not None
        at, left = 0, 0
        pieces = iter(member.sparse)
        data = b""
        stream = reader.pieces()
        for offset, length in pieces:
            self._holes(offset - at)
            at, left = offset + length, length
            while left:
                if not data:
                    data = next(stream)
                take, data = data[:left], data[left:]
                self._put(take)
                left -= len(take)
        self._holes(member.size - at)
        self._put(bytes(-member.size % BLOCK))

    def _holes(self, size: int) -> None:
        while size > 0:
            self._put(_HOLE[:size])
            size -= len(_HOLE)

    def _xattrs(self, member: Member, path: bytes) -> Mapping[bytes, bytes]:
        kept = {key: value for key, value in member.xattrs.items() if key.startswith(b"user.")}
        if sum(len(key) + len(value) for key, value in kept.items()) > self._xattr_limit:
            raise TarInvalid(f"{shown(path)} has more than {self._xattr_limit} bytes of extended attributes")
        return kept


def _plainly(name: bytes, path: bytes) -> bool:
    """Whether a header's name is this path for every reader, so that the header may go on as it is."""
    return name is path or name in (path, path + b"/", b"./" + path, b"./" + path + b"/")


class LayerInvalid(Exception):
    """A layer that cannot be taken. number: counted from 1, the lowest. The text says what is wrong with it."""

    def __init__(self, number: int, reason: str) -> None:
        super().__init__(reason)
        self.number = number


def merge(count: int, reader: Callable[[int], TarReader], output: Output, limits: Limits) -> Merged:
    """Writes the merged tree of `count` layers as one archive to `output`. reader(n): layer n, 0 the lowest, from its
    start.

    Raises NeedsSurvey (what was written then is to be thrown away), LayerInvalid.
    """
    view = _View(output, limits)
    for layer in range(count - 1, -1, -1):
        try:
            view.add_below(reader(layer), lowest=layer == 0)
        except TarInvalid as error:
            raise LayerInvalid(layer + 1, str(error)) from error
    view.imply_directories()
    output.end()
    root = 0 if view.above.get(b"") == _EXPLICIT else 1
    return Merged(view.inodes + root, output.members, output.contents, output.sample)


class _View:
    """What is known of the tree so far, seen from the layers above."""

    def __init__(self, output: Output, limits: Limits) -> None:
        self.output = output
        self.limits = limits
        self.above: dict[bytes, int] = {}
        self.opaque: set[bytes] = set()
        self.walked: set[bytes] = set()  # directories that whiteouts lie in: below, they may not be symbolic links
        self.inodes = 0
        self.members = 0

    def add_below(self, reader: TarReader, *, lowest: bool = False) -> None:
        """Merges the next layer down. Its own whiteouts speak of the layers below it only. lowest: none follows, so that
        nothing needs to be remembered of its files, which are most of an image's.
        """
        above, opaque, walked, output, limits = self.above, self.opaque, self.walked, self.output, self.limits
        mine: dict[bytes, bytes] = {}  # what this layer has where: its kind
        implied: set[bytes] = set()  # directories that this layer has only because of what lies in them
        alias: dict[bytes, bytes] = {}  # hard links of this layer, and where their contents are
        whiteouts: list[bytes] = []
        opaques: list[bytes] = []
        verdicts: dict[bytes, bool] = {b"": b"" in opaque}

        def hides(directory: bytes) -> bool:
            """Whether layers above hide what lies in this directory."""
            known = verdicts.get(directory)
            if known is None:
                known = above.get(directory) == _HIDES or directory in opaque or hides(directory.rpartition(b"/")[0])
                verdicts[directory] = known
            return known

        next_member = reader.next
        while (member := next_member()) is not None:
            self.members += 1
            if self.members > limits.members:
                raise TarInvalid(f"the image has more than {limits.members} members, which is the limit")
            path = normal(member.name, limits)
            parent, _, base = path.rpartition(b"/")
            if base.startswith(WHITEOUT):
                if base == OPAQUE:
                    opaques.append(parent)
                elif not base.startswith(b".wh..wh."):
                    whiteouts.append(beside(parent, base[len(WHITEOUT) :], member.name))
                continue
            kind = member.kind
            if path in mine or (path in implied and kind != DIRECTORY):
                raise NeedsSurvey(f"{shown(path)} comes twice in a layer")
            mine[path] = kind
            if parent and parent not in implied and mine.get(parent) != DIRECTORY:
                _imply(parent, mine, implied)
            if hides(parent):
                continue
            state = above.get(path)
            if state is not None:
                if state == _IMPLIED and kind != DIRECTORY:
                    raise NeedsSurvey(f"{shown(path)} is a directory only by what lies in it above")
                if state != _IMPLIED:
                    continue
            if not path and kind != DIRECTORY:
                raise TarInvalid("the root of the image is not a directory")
            if kind == REGULAR:
                output.member(member, path, b"", reader)
            elif kind == DIRECTORY:
                output.member(member if path else member._replace(block=None), path or b"./", b"", None)
            elif kind == SYMLINK:
                if path in walked or path in opaque:
                    raise NeedsSurvey(f"{shown(path)} is a symbolic link with whiteouts in it above")
                check_symlink(member.link, path, limits)
                output.member(member, path, member.link, None)
            elif kind == LINK:
                target = hard_link_target(member.link, limits)
                target = alias.get(target, target)
                there = mine.get(target)
                if there is None or there == DIRECTORY or target == path:
                    raise NeedsSurvey(f"the hard link {shown(path)} leads out of its layer")
                if target in above or hides(target.rpartition(b"/")[0]):
                    raise NeedsSurvey(f"the target of the hard link {shown(path)} is hidden above")
                alias[path] = target
                if there not in (CHARACTER, DEVICE):
                    output.link(path, target)
                continue
            elif kind in (CHARACTER, DEVICE):
                continue
            else:
                output.member(member, path, b"", None)
            self.inodes += 1
        reader.drain()

        for path in [path for path in implied if not hides(path.rpartition(b"/")[0])]:
            above.setdefault(path, _IMPLIED)
        for path, kind in mine.items():
            state = above.get(path)
            if kind == DIRECTORY:
                if state != _HIDES:
                    above[path] = _EXPLICIT
            elif lowest:
                continue
            elif state is None:
                above[path] = _HIDES
            elif state == _EXPLICIT:
                opaque.add(path)  # the directory above replaced this, and with it what is below this
        for path in whiteouts:
            state = above.get(path)
            if state is None:
                above[path] = _HIDES
            elif state == _EXPLICIT:
                opaque.add(path)
            elif state == _IMPLIED:
                raise NeedsSurvey(f"{shown(path)} is taken away, and is above by what lies in it")
            _walk(path.rpartition(b"/")[0], walked)
        for path in opaques:
            opaque.add(path)
            _walk(path, walked)

    def imply_directories(self) -> None:
        """Passes on the directories of which no layer has an entry of its own."""
        for path, state in self.above.items():
            if state == _IMPLIED:
                self.output.member(_DIRECTORY, path, b"", None)
                self.inodes += 1


def _imply(directory: bytes, mine: Mapping[bytes, bytes], implied: set[bytes]) -> None:
    """Notes that a directory exists because something in it does."""
    while directory and directory not in implied:
        kind = mine.get(directory)
        if kind == DIRECTORY:
            return
        if kind is not None:
            raise NeedsSurvey(f"{shown(directory)} has entries below it and is no directory")
        implied.add(directory)
        directory = directory.rpartition(b"/")[0]


def _walk(directory: bytes, walked: set[bytes]) -> None:
    while directory and directory not in walked:
        walked.add(directory)
        directory = directory.rpartition(b"/")[0]


def normal(name: bytes, limits: Limits) -> bytes:
    """A member's path without "./", doubled and closing slashes; b"" is the root. Raises TarInvalid for what leads
    out.
    """
    if b"//" in name or b"./" in name or name[-1:] in b"/." or name[:1] == b"/":
        if name.startswith(b"/") and name.strip(b"/"):
            raise TarInvalid(f"the member {shown(name)} has an absolute name")
        parts = [part for part in name.split(b"/") if part not in (b"", b".")]
        if b".." in parts:
            raise TarInvalid(f"the member {shown(name)} leads out of the image")
        name = b"/".join(parts)
    if len(name) > 100:
        if len(name) > limits.name:
            raise TarInvalid(f"the member {shown(name)} has a name of {len(name)} bytes, allowed are {limits.name}")
        parts = name.split(b"/")
        if len(parts) > limits.depth:
            raise TarInvalid(f"the member {shown(name)} lies {len(parts)} directories deep, allowed are {limits.depth}")
        if max(map(len, parts)) > limits.part:
            raise TarInvalid(f"the member {shown(name)} has a part of more than {limits.part} bytes")
    elif name.count(b"/") >= limits.depth:
        raise TarInvalid(f"the member {shown(name)} lies too deep, allowed are {limits.depth} directories")
    return name


def hard_link_target(link: bytes, limits: Limits) -> bytes:
    """The path that a hard link names; some builders write it with a slash before, and mean the image's root."""
    return normal(link.lstrip(b"/") or b".", limits)


def beside(parent: bytes, base: bytes, name: bytes) -> bytes:
    """The path that a whiteout takes away. Raises TarInvalid for one that names nothing in its directory."""
    if base in (b"", b".", b".."):
        raise TarInvalid(f"the whiteout {shown(name)} names nothing")
    return parent + b"/" + base if parent else base


def check_symlink(target: bytes, path: bytes, limits: Limits) -> None:
    """A symbolic link may lead anywhere, the container's root holds it; its text must be one that a kernel takes."""
    if not target or len(target) > limits.name:
        raise TarInvalid(f"the symbolic link {shown(path)} has a target of {len(target)} bytes")
