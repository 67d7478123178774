"""Who holds how many bytes: image files by reference, owner and object, now or at a time.

A file counts once however many tags point to it. For a user, `own` are the bytes of files that only this user's references
hold, so that removing them would free that much; `shared` are the bytes of files that others hold too. Computed from the
spans of the image list (catalog.history), so it answers for the past as well.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from catalog.history import Span

NOW = 1e16
"""For History.spans_at: what is current, whatever the clocks of gateways say; any real time is before it."""


@dataclass(frozen=True)
class File:
    """One image file of one system. tags: `TYPE:TAG` texts that hold it, sorted; owners: who brought them (uids)."""

    system: str
    image: str
    object: str
    size: int
    tags: tuple[str, ...]
    owners: tuple[int, ...]

    @property
    def shared(self) -> bool:
        return len(self.owners) > 1


@dataclass(frozen=True)
class Share:
    """What one user holds: references, files and bytes. uid: None for images that came from an older installation."""

    uid: int | None
    references: int
    files: int
    own: int
    shared: int


@dataclass(frozen=True)
class Usage:
    """files: largest first. users: those who hold most first. total: bytes of all files, each once."""

    files: tuple[File, ...]
    users: tuple[Share, ...]
    total: int


def usage(spans: Iterable[Span]) -> Usage:
    """Adds up the references that `spans` are."""
    by_file: dict[tuple[str, str], list[Span]] = defaultdict(list)
    for span in spans:
        by_file[span.reference.system, span.object].append(span)
    files: list[File] = []
    held: dict[int | None, list[int]] = defaultdict(lambda: [0, 0, 0, 0])  # references, files, own, shared
    for (system, name), same in by_file.items():
        owners = {span.owner for span in same}
        size = same[0].size
        tags = sorted(f"{span.reference.itype}:{span.reference.tag}" for span in same)
        known = tuple(sorted(owner for owner in owners if owner is not None))
        files.append(File(system, same[0].image, name, size, tuple(tags), known))
        for owner in owners:
            share = held[owner]
            share[0] += sum(span.owner == owner for span in same)
            share[1] += 1
            share[2 if len(owners) == 1 else 3] += size
    files.sort(key=lambda file: (-file.size, file.tags))
    users = sorted((Share(uid, *numbers) for uid, numbers in held.items()), key=lambda one: -(one.own + one.shared))
    return Usage(tuple(files), tuple(users), sum(file.size for file in files))
