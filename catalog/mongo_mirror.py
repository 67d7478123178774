"""The collection `images`, kept in the shape that the original gateway gave it, for a site's scripts that read it.

Only with the event store in MongoDB. A copy for reading: nothing is read back from it, and it is brought up to date a second
or two after the event log. One document for each image of a system and type, with its tags, as the original has it; a
reference that has no image yet has one of its own.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

from pymongo.database import Database
from pymongo.errors import PyMongoError

from catalog.image_list import ImageList
from catalog.leases import SideTableUnavailable
from catalog.record import Record


class MongoMirror:
    """Call `update` now and then; it does nothing while the event log has not grown."""

    def __init__(self, database: Database[dict[str, Any]], images: ImageList, expiration: float) -> None:
        self._collection = database["images"]
        self._images = images
        self._expiration = expiration
        self._position = -1
        self._written: dict[str, int] | None = None  # a hash for each document: a hundred thousand would fill memory

    def update(self) -> None:
        """Brings the collection up to date. Raises SideTableUnavailable."""
        self._images.connection()
        position = self._images.position()
        if position == self._position:
            return
        wanted = documents(self._images.all(), self._expiration)
        hashes = {key: hash(repr(document)) for key, document in wanted.items()}
        try:
            if self._written is None:
                # What an earlier process of ours wrote; the original's own documents have other kinds of `_id`.
                ours = self._collection.find({"mirror": True}, {"_id": 1})
                self._written = {one["_id"]: 0 for one in ours}
            for key, document in wanted.items():
                if self._written.get(key) != hashes[key]:
                    self._collection.replace_one({"_id": key}, document, upsert=True)
            for key in self._written.keys() - wanted.keys():
                self._collection.delete_one({"_id": key})
        except PyMongoError as error:
            raise SideTableUnavailable(f"MongoDB: {error}") from error
        self._written = hashes
        self._position = position


def documents(records: Iterable[Record], expiration: float) -> dict[str, dict[str, Any]]:
    """The documents for `records`, by `_id`. expiration: seconds after the last use."""
    groups: dict[tuple[str, str, str], list[Record]] = defaultdict(list)
    for record in records:
        name = record.reference
        image = record.image.id if record.image is not None else f"none:{name.tag}"
        groups[name.system, name.itype, image].append(record)
    return {":".join(key): _document(group, expiration) for key, group in groups.items()}


def _document(group: list[Record], expiration: float) -> dict[str, Any]:
    # What is usable speaks for the image; else the newest that is known.
    record = max(group, key=lambda one: (one.usable, one.changed_at))
    image, access, attempt = record.image, record.access, record.attempt
    document: dict[str, Any] = {
        "system": record.reference.system,
        "itype": record.reference.itype,
        "pulltag": record.reference.tag,
        "tag": sorted(one.reference.tag for one in group if one.usable),
        "status": "READY" if record.usable else str(record.state),
        "status_message": (attempt.reason or "") if attempt is not None else "",
        "location": attempt.location if attempt is not None else "",
        "remotetype": "dockerv2",
        "mirror": True,
        "os": "linux",
        "ostcount": "0",
        "replication": "1",
        "userACL": sorted(access.uids) if access is not None and not access.public else None,
        "groupACL": sorted(access.gids) if access is not None and not access.public else None,
        "private": access is not None and not access.public,
    }
    if image is not None:
        document |= {
            "id": image.id,
            "format": image.format,
            "arch": image.arch,
            "ENV": list(image.env),
            "ENTRY": None if image.entrypoint is None else list(image.entrypoint),
            "WORKDIR": image.workdir,
            "LABELS": _labels(image.labels),
            "last_pull": record.pulled_at,
            "expiration": (record.used_at or 0.0) + expiration,
        }
    return document


def _labels(labels: Mapping[str, str]) -> dict[str, str]:
    # Old servers take a dot in a key for a path.
    return {key.replace(".", "\uff0e").removeprefix("$"): value for key, value in labels.items()}
