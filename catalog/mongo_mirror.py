"""The collection `images`, kept in the shape that the original gateway gave it, for a site's scripts that read it.

Only with the event store in MongoDB. A copy for reading: nothing is read back from it, and it is brought up to date a second
or two after the event log, by one gateway at a time. One document for each image of a system and type, with its tags, as the
original has it; a reference that has no image yet has one of its own. A document of the original whose tags are all in one of
ours is moved to the collection `images_before`, so that scripts do not find an image twice.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from typing import Any

import pymongo
from pymongo.database import Database
from pymongo.errors import PyMongoError

from catalog.image_list import ImageList
from catalog.leases import SideTableUnavailable
from catalog.record import Record

_AT_ONCE = 500  # events
_SECONDS = 1.0  # in one `update`: the heart that calls it must go on beating

Group = tuple[str, str, str]
"""System, type, and the image's id or `none:` with the tag of a reference without an image."""


class MongoMirror:
    """Call `update` now and then; it does nothing while the event log has not grown. `turn` says whether this gateway is
    the one that keeps the collection.
    """

    def __init__(
        self, database: Database[dict[str, Any]], images: ImageList, expiration: float, turn: Callable[[], bool]
    ) -> None:
        self._collection = database["images"]
        self._before = database["images_before"]
        self._places = database["mirror"]
        self._images = images
        self._expiration = expiration
        self._turn = turn
        self._position: int | None = None  # None: whoever kept it before has noted it
        self._originals = True  # there may be documents of the original

    def update(self) -> None:
        """Brings the collection up to date, or some way towards it. Raises SideTableUnavailable."""
        if not self._turn():
            self._position = None
            return
        end = time.monotonic() + _SECONDS
        try:
            position = self._begin()
            while time.monotonic() < end:
                position, groups = self._touched(position)
                if not groups and position == self._position:
                    return
                self._write(groups)
                self._places.replace_one({"_id": "images"}, {"position": position}, upsert=True)
                self._position = position
        except PyMongoError as error:
            raise SideTableUnavailable(f"MongoDB: {error}") from error

    def _begin(self) -> int:
        self._images.connection()
        if self._position is None:
            noted = self._places.find_one({"_id": "images"})
            self._position = noted["position"] if noted else 0
            self._originals = self._collection.find_one({"mirror": {"$ne": True}}) is not None
        if self._position > self._images.position():  # the log was restored from a backup
            self._collection.delete_many({"mirror": True})
            self._position = 0
        return self._position

    def _touched(self, position: int) -> tuple[int, set[Group]]:
        """The groups that the next events after `position` changed, and the number of the last of these events."""
        connection = self._images.connection()
        rows = connection.execute(
            "SELECT id, ref FROM history WHERE id > ? ORDER BY id LIMIT ?", (position, _AT_ONCE)
        ).fetchall()
        groups: set[Group] = set()
        for ref in {row[1] for row in rows}:
            system, itype, tag, image = connection.execute(
                "SELECT system, itype, tag, image FROM records WHERE ref = ?", (ref,)
            ).fetchone()
            groups.add((system, itype, f"none:{tag}"))
            had = connection.execute("SELECT DISTINCT image FROM spans WHERE ref = ?", (ref,))
            groups |= {(system, itype, one) for one in ({one for (one,) in had} | {image}) if one is not None}
        return (rows[-1][0] if rows else position), groups

    def _write(self, groups: set[Group]) -> None:
        wanted = {group: self._records(group) for group in groups}
        made = {group: _document(records, self._expiration) for group, records in wanted.items() if records}
        changes: list[Any] = [
            pymongo.ReplaceOne({"_id": ":".join(group)}, document, upsert=True) for group, document in made.items()
        ]
        changes += [pymongo.DeleteOne({"_id": ":".join(group)}) for group in groups - made.keys()]
        if changes:
            self._collection.bulk_write(changes, ordered=False)
        if self._originals:
            self._put_away({group: document for group, document in made.items() if "id" in document})

    def _records(self, group: Group) -> list[Record]:
        system, itype, image = group
        if image.startswith("none:"):
            rows = self._images.connection().execute(
                "SELECT record FROM records WHERE system = ? AND itype = ? AND tag = ? AND image IS NULL",
                (system, itype, image.removeprefix("none:")),
            )
        else:
            rows = self._images.connection().execute(
                "SELECT record FROM records INDEXED BY records_image WHERE image = ? AND system = ? AND itype = ?",
                (image, system, itype),
            )
        return [Record.from_json(json.loads(text)) for (text,) in rows]

    def _put_away(self, made: Mapping[Group, Mapping[str, Any]]) -> None:
        """Moves documents of the original that say nothing more than ours."""
        ids = sorted({group[2] for group in made})
        for old in list(self._collection.find({"id": {"$in": ids}, "mirror": {"$ne": True}})):
            ours = made.get((old.get("system", ""), old.get("itype", ""), old["id"]))
            tags = old.get("tag") or []
            if ours is not None and set([tags] if isinstance(tags, str) else tags) <= set(ours["tag"]):
                self._before.replace_one({"_id": old["_id"]}, old, upsert=True)
                self._collection.delete_one({"_id": old["_id"]})


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
