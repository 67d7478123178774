"""The stores of a site, seen from its catalog: which there are, what in them is needed, how much of it there is.

cas knows objects and not what they are for; this knows both, so it marks for gc and counts for people. It changes
nothing.
"""

from __future__ import annotations

import json
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from cas.errors import NameInvalid, ObjectMissing
from cas.store import Store, check_name
from catalog.admin_session import Session
from catalog.publish import published
from catalog.record import Image, Record

LAYERS = "layers"
KEEP_WITHDRAWN = 7 * 24 * 3600.0
"""Seconds for which the file of an expired or removed image stays, should somebody want it back."""


@dataclass(frozen=True)
class SiteStore:
    """One store. name: "layers", or the image directory. images: its image directory; None for the store of layers."""

    name: str
    store: Store
    images: Path | None


def stores(session: Session) -> list[SiteStore]:
    """The store of layers, and one of images for each image directory of this machine; those that exist."""
    configuration = session.configuration
    places: dict[Path, str] = {}
    for platform in configuration.platforms.values():
        if platform.accesstype == "local":
            places.setdefault(platform.image_dir, platform.name)
        else:
            places.setdefault(configuration.state_directory / "platforms" / platform.name, platform.name)
    found = []
    if (configuration.cache_directory / "objects").is_dir():
        found.append(SiteStore(LAYERS, Store(configuration.cache_directory), None))
    found += [
        SiteStore(str(directory), Store(directory / "cas"), directory)
        for directory in places
        if (directory / "cas" / "objects").is_dir()
    ]
    return found


def needed(session: Session, site: SiteStore) -> set[str]:
    """The objects that images of the catalog need, for gc's mark. Asks the catalog anew at each call."""
    session.images.catch_up()
    records = [record for record in session.images.all() if _counts(record)]
    if site.images is not None:
        names = {record.image.object for record in records if record.image is not None}
        # What nodes can see is needed, whatever the catalog thinks of it.
        return names | {name for name in published(site.images).values() if _is_name(name)}
    names = set()
    for record in records:
        if record.image is not None:
            for digest in (*record.image.layers, *documents(site.store, record.image)):
                name = site.store.find_sha256(digest) if _is_name(digest) else None
                if name is not None:
                    names.add(name)
    return names


def needed_documents(session: Session, site: SiteStore) -> set[str]:
    """Of the needed layers, what stays even when a budget takes the rest: manifests and configurations, which are
    small.
    """
    session.images.catch_up()
    names = set()
    for record in session.images.all():
        if record.image is not None and _counts(record):
            for digest in documents(site.store, record.image):
                name = site.store.find_sha256(digest) if _is_name(digest) else None
                if name is not None:
                    names.add(name)
    return names


def documents(layers: Store, image: Image) -> list[str]:
    """SHA-256 of an image's manifest and configuration, as far as they are known."""
    digests = [image.id]
    name = layers.find_sha256(image.id) if _is_name(image.id) else None
    if name is not None:
        try:
            with layers.open_verified(name) as file:
                config = json.load(file)["config"]["digest"]
            digests.append(str(config).removeprefix("sha256:"))
        except (ValueError, KeyError, TypeError, ObjectMissing):
            pass  # an import has no manifest: its id is the file's own hash
    return digests


@dataclass(frozen=True)
class Stats:
    """What is in a store. by_kind: objects and bytes of each kind. wanted_bytes: of all uses, each counted; objects
    that several images share count several times.
    """

    name: str
    objects: int
    bytes: int
    wanted_bytes: int
    by_kind: Mapping[str, tuple[int, int]]
    by_owner: Mapping[str, tuple[int, int]]

    @property
    def dedup(self) -> float:
        """How many times larger the store would be if nothing in it were shared."""
        return self.wanted_bytes / self.bytes if self.bytes else 1.0


def stats(session: Session, site: SiteStore) -> Stats:
    """Counts a store. An object of several owners counts for each of them."""
    session.images.catch_up()
    kinds: dict[str, str] = {}
    owners: defaultdict[str, set[str]] = defaultdict(set)
    uses: defaultdict[str, int] = defaultdict(int)
    for record in session.images.all():
        if record.image is None or not _counts(record):
            continue
        for name, kind in _objects(site, record.image):
            kinds[name] = kind
            uses[name] += 1
            owners["unknown" if record.owner is None else str(record.owner)].add(name)
    sizes = {}
    for name in site.store.names():
        try:
            sizes[name] = site.store.size(name)
        except ObjectMissing:
            continue
    by_kind: defaultdict[str, tuple[int, int]] = defaultdict(lambda: (0, 0))
    for name, size in sizes.items():
        count, total = by_kind[kinds.get(name, "unreferenced")]
        by_kind[kinds.get(name, "unreferenced")] = (count + 1, total + size)
    by_owner = {
        owner: (len(names & sizes.keys()), sum(sizes.get(name, 0) for name in names)) for owner, names in owners.items()
    }
    wanted = sum(size * max(1, uses[name]) for name, size in sizes.items())
    return Stats(site.name, len(sizes), sum(sizes.values()), wanted, dict(by_kind), by_owner)


def _objects(site: SiteStore, image: Image) -> Iterator[tuple[str, str]]:
    """The objects that an image has in a store, with their kind."""
    if site.images is not None:
        yield image.object, image.format
        return
    for kind, digests in (("layer", list(image.layers)), ("manifest", documents(site.store, image))):
        for digest in digests:
            name = site.store.find_sha256(digest) if _is_name(digest) else None
            if name is not None:
                yield name, kind


def _counts(record: Record) -> bool:
    """Whether what a record points to is kept: usable, or withdrawn so lately that it may be wanted back."""
    return record.image is not None and (record.usable or time.time() - record.changed_at < KEEP_WITHDRAWN)


def _is_name(text: str) -> bool:
    try:
        check_name(text)
    except NameInvalid:
        return False
    return True
