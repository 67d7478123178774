"""Merging layers that the one-pass way of catalog.layers cannot: their headers are read first, lowest layer first.

The survey keeps a model of the tree that unpacking would leave (names, kinds, owners; no contents), following the
rules that umoci follows: symbolic links in a member's parents are followed within the image, a hard link means what
its target is at that moment, whiteouts spare what their own layer brings. Then the layers are read a second time for
the contents that are left. One rule is laxer than umoci's: where a layer has something below a path that is a file in
a lower layer, the file gives way.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence

from catalog.layers import (
    OPAQUE,
    WHITEOUT,
    LayerInvalid,
    Merged,
    Output,
    beside,
    check_symlink,
    hard_link_target,
    normal,
)
from catalog.limits import Limits
from catalog.tar import CHARACTER, DEVICE, DIRECTORY, LINK, REGULAR, SYMLINK, Member, TarReader
from catalog.tar_fields import TarInvalid, shown

_LINKS_FOLLOWED = 255
_PLAIN_DIRECTORY = Member(b"", DIRECTORY, 0o755, 0, 0, 0, 0, b"", 0, None, {}, None)

Path = tuple[bytes, ...]


class Node:
    """One inode of the model. children: of a directory, else None. source: of a regular file, its layer and place in
    it.
    """

    __slots__ = ("children", "member", "source")

    def __init__(self, member: Member, source: tuple[int, int] | None = None) -> None:
        self.member = member._replace(block=None) if member.block is not None else member
        self.source = source
        self.children: dict[bytes, Node] | None = {} if member.kind == DIRECTORY else None


class Survey:
    """The model. `add_layer` with each layer's members, the lowest layer first."""

    def __init__(self, limits: Limits) -> None:
        self.root = Node(_PLAIN_DIRECTORY)
        self._limits = limits
        self._members = 0
        self._upper: set[Path] = set()

    def add_layer(self, reader: TarReader, layer: int) -> None:
        """Applies one layer. Raises TarInvalid."""
        self._upper = set()
        ordinal = 0
        while (member := reader.next()) is not None:
            self._members += 1
            if self._members > self._limits.members:
                raise TarInvalid(f"the image has more than {self._limits.members} members, which is the limit")
            self._apply(member, layer, ordinal)
            ordinal += 1
        reader.drain()

    def _apply(self, member: Member, layer: int, ordinal: int) -> None:
        path = normal(member.name, self._limits)
        if not path:
            if member.kind != DIRECTORY:
                raise TarInvalid("the root of the image is not a directory")
            self.root.member = member._replace(block=None)
            return
        parent, _, base = path.rpartition(b"/")
        where = self._resolve(parent, path)
        if base.startswith(WHITEOUT):
            if base == OPAQUE:
                self._purge(where, opaque=True)
            elif not base.startswith(b".wh..wh."):
                beside(parent, base[len(WHITEOUT) :], member.name)
                self._purge((*where, base[len(WHITEOUT) :]), opaque=False)
            return
        container = self._directory(where)
        assert container.children is not None
        existing = container.children.get(base)
        if member.kind == DIRECTORY and existing is not None and existing.children is not None:
            existing.member = member._replace(block=None)
        else:
            container.children.pop(base, None)
            container.children[base] = self._node(member, path, layer, ordinal)
        full = (*where, base)
        while full and full not in self._upper:
            self._upper.add(full)
            full = full[:-1]

    def _node(self, member: Member, path: bytes, layer: int, ordinal: int) -> Node:
        if member.kind == LINK:
            target = hard_link_target(member.link, self._limits)
            parent, _, base = target.rpartition(b"/")
            node = self._look((*self._resolve(parent, path), base)) if base else self.root
            if node is None:
                raise TarInvalid(f"the hard link {shown(path)} leads to {shown(target)}, which is not there")
            if node.children is not None:
                raise TarInvalid(f"the hard link {shown(path)} leads to the directory {shown(target)}")
            return node
        if member.kind == SYMLINK:
            check_symlink(member.link, path, self._limits)
        return Node(member, (layer, ordinal) if member.kind == REGULAR else None)

    def _resolve(self, directory: bytes, path: bytes) -> Path:
        """Where a directory is when the symbolic links on its way are followed, never out of the image."""
        left = directory.split(b"/") if directory else []
        left.reverse()
        at: list[bytes] = []
        nodes: list[Node | None] = [self.root]
        followed = 0
        while left:
            part = left.pop()
            if part in (b"", b"."):
                continue
            if part == b"..":
                if at:
                    at.pop()
                    nodes.pop()
                continue
            here = nodes[-1]
            node = here.children.get(part) if here is not None and here.children is not None else None
            if node is not None and node.member.kind == SYMLINK:
                followed += 1
                if followed > _LINKS_FOLLOWED:
                    raise TarInvalid(f"the member {shown(path)} lies behind symbolic links that lead in a circle")
                if node.member.link.startswith(b"/"):
                    at, nodes = [], [self.root]
                left += reversed(node.member.link.split(b"/"))
                continue
            at.append(part)
            nodes.append(node)
            if len(at) > self._limits.depth or sum(map(len, at)) + len(at) > self._limits.name:
                raise TarInvalid(f"the member {shown(path)} lies too deep behind symbolic links")
        return tuple(at)

    def _look(self, path: Path) -> Node | None:
        node = self.root
        for part in path:
            following = node.children.get(part) if node.children is not None else None
            if following is None:
                return None
            node = following
        return node

    def _directory(self, path: Path) -> Node:
        """The directory at a resolved path; made when it is not there, also in the place of a file."""
        node = self.root
        for part in path:
            assert node.children is not None
            following = node.children.get(part)
            if following is None or following.children is None:
                following = node.children[part] = Node(_PLAIN_DIRECTORY)
            node = following
        return node

    def _purge(self, path: Path, *, opaque: bool) -> None:
        """Removes what lower layers have at a path; an opaque directory itself stays."""
        node = self._look(path)
        if node is None:
            return
        if not opaque and path not in self._upper:
            container = self._look(path[:-1])
            assert container is not None and container.children is not None
            del container.children[path[-1]]
            return
        waiting = [(node, path)]
        while waiting:
            node, path = waiting.pop()
            for name, child in list((node.children or {}).items()):
                inner = (*path, name)
                if inner in self._upper:
                    waiting.append((child, inner))
                else:
                    assert node.children is not None
                    del node.children[name]

    def walk(self) -> Iterator[tuple[bytes, Node]]:
        """All names, each directory before what is in it, in the order of their bytes; not the root."""
        waiting = [(b"", self.root)]
        while waiting:
            path, node = waiting.pop()
            if path:
                yield path, node
            for name in sorted(node.children or (), reverse=True):
                assert node.children is not None
                waiting.append((path + b"/" + name if path else name, node.children[name]))


def merge_surveyed(count: int, reader: Callable[[int], TarReader], output: Output, limits: Limits) -> Merged:
    """Writes the merged tree of `count` layers as one archive to `output`. reader(n): layer n, 0 the lowest, from its
    start.

    Raises LayerInvalid.
    """
    survey = Survey(limits)
    for layer in range(count):
        with _naming(layer):
            survey.add_layer(reader(layer), layer)
    output.member(survey.root.member, b"./", b"", None)
    inodes = 1
    first: dict[int, bytes] = {}  # of a node that has been passed on, by identity: where
    links: list[tuple[bytes, Node]] = []
    wanted: list[dict[int, list[bytes]]] = [{} for _ in range(count)]
    for path, node in survey.walk():
        if node.member.kind in (CHARACTER, DEVICE):
            continue
        if node.source is not None:
            names = wanted[node.source[0]].setdefault(node.source[1], [])
            inodes += not names
            names.append(path)
        elif id(node) in first:
            links.append((path, node))
        else:
            first[id(node)] = path
            output.member(node.member, path, node.member.link, None)
            inodes += 1
    for path, node in links:
        output.link(path, first[id(node)])
    for layer in range(count - 1, -1, -1):
        if wanted[layer]:
            with _naming(layer):
                _contents(reader(layer), wanted[layer], output, limits)
    output.end()
    return Merged(inodes, output.members, output.contents, output.sample)


def _contents(reader: TarReader, wanted: dict[int, list[bytes]], output: Output, limits: Limits) -> None:
    """Passes on the regular files of one layer that are left, each under all of its names."""
    ordinal = 0
    left = len(wanted)
    while left and (member := reader.next()) is not None:
        names: Sequence[bytes] | None = wanted.get(ordinal)
        ordinal += 1
        if names is None:
            continue
        left -= 1
        if normal(member.name, limits) != names[0]:
            member = member._replace(block=None)
        output.member(member, names[0], b"", reader)
        for name in names[1:]:
            output.link(name, names[0])


@contextlib.contextmanager
def _naming(layer: int) -> Iterator[None]:
    """Turns a TarInvalid in the block into a LayerInvalid that has the layer's number."""
    try:
        yield
    except TarInvalid as error:
        raise LayerInvalid(layer + 1, str(error)) from error
