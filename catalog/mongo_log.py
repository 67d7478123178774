"""The event log and the side table in MongoDB, for a site that runs one for its old gateway anyway.

Needs no transactions and no replica set: a save is one *commit document*, whose `_id` is the number of its first event.
Two writers that follow the same commit make the same `_id`; the server lets one in, the other looks again. A stream's
version is checked under the same rule, so neither a gap nor a double version can be written. Written with majority
concern.

{_id: 17, last: 18, events: [{o: "<stream>", v: 1, t: "PullRequested", s: <state>, h: <hash>}, ...]}

The number and hash of the newest event are noted once more in another collection, after each save: a log that was cut off
at its end is shorter than that.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any
from uuid import UUID

import pymongo
from eventsourcing.persistence import (
    AggregateRecorder,
    ApplicationRecorder,
    InfrastructureFactory,
    IntegrityError,
    Notification,
    OperationalError,
    ProcessRecorder,
    StoredEvent,
    Subscription,
    TrackingRecorder,
)
from pymongo.errors import BulkWriteError, DuplicateKeyError, PyMongoError
from pymongo.write_concern import WriteConcern

from catalog.chain import GENESIS, Head, Linked, extend, identity, stream
from catalog.leases import Lookup, Progress, SideTableUnavailable

log = logging.getLogger("shifter.store")

_TRIES = 200
_WAIT_FOR_SERVER = 5000  # milliseconds

Documents = pymongo.collection.Collection[dict[str, Any]]


class MongoSnapshots(AggregateRecorder):
    """Streams without an order among them: the snapshots."""

    def __init__(self, collection: Documents) -> None:
        self._collection = collection

    def insert_events(self, stored_events: Sequence[StoredEvent], **kwargs: Any) -> Sequence[int] | None:
        documents = [
            {"_id": f"{stream(one)}:{one.originator_version}", "o": stream(one), "v": one.originator_version,
             "t": one.topic, "s": one.state}
            for one in stored_events
        ]  # fmt: skip
        names = [one["_id"] for one in documents]
        with _translated():
            if len(set(names)) != len(names) or self._collection.find_one({"_id": {"$in": names}}) is not None:
                raise IntegrityError("a snapshot of that version is there already")
            if documents:
                self._collection.insert_many(documents)
        return None

    def select_events(
        self,
        originator_id: UUID | str,
        *,
        gt: int | None = None,
        lte: int | None = None,
        desc: bool = False,
        limit: int | None = None,
    ) -> Sequence[StoredEvent]:
        wanted: dict[str, Any] = {"o": originator_id.hex if isinstance(originator_id, UUID) else originator_id}
        if gt is not None or lte is not None:
            wanted["v"] = {k: v for k, v in (("$gt", gt), ("$lte", lte)) if v is not None}
        with _translated():
            found = self._collection.find(wanted).sort("v", -1 if desc else 1).limit(limit or 0)
            return [StoredEvent(identity(one["o"]), one["v"], one["t"], bytes(one["s"])) for one in found]


class MongoLog(ApplicationRecorder):
    """The application recorder of eventsourcing, and a catalog.chain.ChainedLog."""

    def __init__(self, collection: Documents, ends: Documents) -> None:
        self._collection = collection
        # Not by a majority: it lags behind the log at worst.
        self._ends = ends.with_options(write_concern=WriteConcern(w=1))
        with _translated():
            collection.create_index("last")
            collection.create_index("events.o")

    def insert_events(self, stored_events: Sequence[StoredEvent], **kwargs: Any) -> Sequence[int] | None:
        keys = [(stream(one), one.originator_version) for one in stored_events]
        if len(set(keys)) != len(keys):
            raise IntegrityError("one save has a version of a stream twice")
        if not keys:
            return []
        for attempt in range(_TRIES):
            head = self.head()
            self._check_versions(keys)
            linked = extend(head, stored_events)
            document = {
                "_id": linked[0].event.id,
                "last": linked[-1].event.id,
                "events": [
                    {
                        "o": stream(one.event),
                        "v": one.event.originator_version,
                        "t": one.event.topic,
                        "s": one.event.state,
                        "h": one.hash,
                    }
                    for one in linked
                ],
            }
            try:
                self._collection.insert_one(document)
            except DuplicateKeyError:
                time.sleep(random.uniform(0, 0.002 * min(attempt + 1, 20)))  # noqa: S311 — jitter, no secret
                continue
            except PyMongoError as error:
                raise OperationalError(f"MongoDB: {error}") from error
            self._note_end(linked[-1])
            return [one.event.id for one in linked]
        raise OperationalError("MongoDB: too many writers at once")

    def _note_end(self, newest: Linked) -> None:
        """Notes the newest event unless a newer one is noted. The events are in the log already: nothing is raised."""
        number = newest.event.id
        try:
            self._ends.update_one(
                {"_id": "commits", "end": {"$lt": number}}, {"$set": {"end": number, "h": newest.hash}}, upsert=True
            )
        except DuplicateKeyError:
            pass  # a newer one is
        except PyMongoError as error:
            log.warning("the end of the event log is noted with the next event: %s", error)

    def _check_versions(self, keys: Sequence[tuple[str, int]]) -> None:
        """Raises IntegrityError when one of the streams has one of the versions already.

        Whoever adds one after this look also takes the next number, and our insert fails: the look is made again.
        """
        taken = set()
        with _translated():
            for found in self._collection.find({"events.o": {"$in": sorted({key[0] for key in keys})}}):
                taken |= {(one["o"], one["v"]) for one in found["events"]}
        for key in keys:
            if key in taken:
                raise IntegrityError(f"stream {key[0]} has version {key[1]} already")

    def select_events(
        self,
        originator_id: UUID | str,
        *,
        gt: int | None = None,
        lte: int | None = None,
        desc: bool = False,
        limit: int | None = None,
    ) -> Sequence[StoredEvent]:
        name = originator_id.hex if isinstance(originator_id, UUID) else originator_id
        found = []
        with _translated():
            for document in self._collection.find({"events.o": name}).sort("_id", 1):
                for one in document["events"]:
                    after, until = gt is None or one["v"] > gt, lte is None or one["v"] <= lte
                    if one["o"] == name and after and until:
                        found.append(StoredEvent(identity(name), one["v"], one["t"], bytes(one["s"])))
        found.sort(key=lambda one: one.originator_version, reverse=desc)
        return found if limit is None else found[:limit]

    def select_notifications(
        self,
        start: int | None,
        limit: int,
        stop: int | None = None,
        topics: Sequence[str] = (),
        *,
        inclusive_of_start: bool = True,
    ) -> Sequence[Notification]:
        first = 1 if start is None else start if inclusive_of_start else start + 1
        found: list[Notification] = []
        for one in self._linked(first):
            if (stop is not None and one.event.id > stop) or len(found) == limit:
                break
            if not topics or one.event.topic in topics:
                found.append(one.event)
        return found

    def select_linked(self, after: int, limit: int) -> Sequence[Linked]:
        found: list[Linked] = []
        for one in self._linked(after + 1):
            if len(found) == limit:
                break
            found.append(one)
        return found

    def _linked(self, first: int) -> Iterator[Linked]:
        """Events from number `first` on, each numbered by where it stands and not by what it says of itself."""
        with _translated():
            for document in self._collection.find({"last": {"$gte": first}}).sort("_id", 1).batch_size(500):
                start = document["_id"] if isinstance(document["_id"], int) else 0
                for number, one in enumerate(document.get("events", ()), start=start):
                    if number >= first:
                        event = Notification(
                            id=number,
                            originator_id=identity(one.get("o")),
                            originator_version=one.get("v"),
                            topic=one.get("t"),
                            state=_bytes(one.get("s")),
                        )
                        yield Linked(event, _bytes(one.get("h")))

    def head(self) -> Head:
        with _translated():
            newest = self._collection.find_one({}, sort=[("_id", -1)])
        return Head(newest["last"], _bytes(newest["events"][-1]["h"])) if newest else Head(0, GENESIS)

    def noted_end(self) -> Head:
        with _translated():
            noted = self._ends.find_one({"_id": "commits"})
        return Head(noted["end"], _bytes(noted["h"])) if noted else Head(0, GENESIS)

    def max_notification_id(self) -> int | None:
        with _translated():
            newest = self._collection.find_one({}, {"last": 1}, sort=[("_id", -1)])
        return newest["last"] if newest else None

    def subscribe(self, gt: int | None = None, topics: Sequence[str] = ()) -> Subscription[ApplicationRecorder]:
        raise NotImplementedError("the image list polls")


class MongoLogFactory(InfrastructureFactory[Any]):
    """Makes the recorders of one database; `database` also holds the side table and the old catalog's `images`."""

    def __init__(self, uri: str, database: str) -> None:
        super().__init__({"IS_SNAPSHOTTING_ENABLED": "y"})
        client: pymongo.MongoClient[dict[str, Any]] = pymongo.MongoClient(
            uri, w="majority", serverSelectionTimeoutMS=_WAIT_FOR_SERVER, connectTimeoutMS=_WAIT_FOR_SERVER,
            socketTimeoutMS=30000, uuidRepresentation="standard",
        )  # fmt: skip
        self._client = client
        self.database = client[database]

    def application_recorder(self) -> ApplicationRecorder:
        return MongoLog(self.database["commits"], self.database["ends"])

    def aggregate_recorder(self, purpose: str = "events") -> AggregateRecorder:
        return MongoSnapshots(self.database[purpose])

    def tracking_recorder(self, tracking_recorder_class: type[TrackingRecorder] | None = None) -> TrackingRecorder:
        raise NotImplementedError("positions are kept with the image list")

    def process_recorder(self) -> ProcessRecorder:
        raise NotImplementedError("positions are kept with the image list")

    def close(self) -> None:
        self._client.close()


class MongoSideTable:
    """catalog.leases.SideTable in the database of the event log."""

    def __init__(self, database: pymongo.database.Database[dict[str, Any]]) -> None:
        self._beats, self._leases = database["beats"], database["leases"]
        self._progress, self._told, self._lookups = database["progress"], database["told"], database["lookups"]
        with _side():
            for field in ("system", "image", "tag"):
                self._lookups.create_index([(field, 1), ("at", -1)])

    def beat(self, instance: str) -> None:
        with _side():
            self._beats.update_one({"_id": instance}, {"$inc": {"count": 1}}, upsert=True)

    def beats(self) -> dict[str, int]:
        with _side():
            return {one["_id"]: one["count"] for one in self._beats.find()}

    def forget(self, instance: str) -> None:
        with _side():
            self._leases.delete_many({"instance": instance})
            self._beats.delete_one({"_id": instance})

    def holder(self, name: str) -> str | None:
        with _side():
            found = self._leases.find_one({"_id": name})
        return found["instance"] if found else None

    def take(self, name: str, instance: str, *, instead_of: str | None) -> bool:
        with _side():
            if instead_of is None:
                try:
                    self._leases.insert_one({"_id": name, "instance": instance})
                except DuplicateKeyError:
                    return False
                return True
            changed = self._leases.update_one({"_id": name, "instance": instead_of}, {"$set": {"instance": instance}})
            return changed.matched_count == 1

    def drop(self, name: str, instance: str) -> None:
        with _side():
            self._leases.delete_one({"_id": name, "instance": instance})

    def leases(self) -> dict[str, str]:
        with _side():
            return {one["_id"]: one["instance"] for one in self._leases.find()}

    def save_progress(self, key: str, progress: Progress) -> None:
        with _side():
            self._progress.replace_one({"_id": key}, asdict(progress), upsert=True)

    def progress(self, key: str) -> Progress | None:
        with _side():
            found = self._progress.find_one({"_id": key}, {"_id": 0})
        return Progress(**found) if found else None

    def tell(self, key: str, attempt: int, uid: int) -> bool:
        with _side():
            try:
                self._told.insert_one({"_id": f"{key}:{attempt}:{uid}"})
            except DuplicateKeyError:
                return False
        return True

    def add_lookups(self, lookups: Iterable[Lookup]) -> None:
        with _side():
            self._lookups.insert_many([asdict(one) for one in lookups])

    def lookups(
        self, system: str, *, limit: int, image: str | None = None, since: float = 0, until: float = 1e18
    ) -> list[Lookup]:
        wanted: dict[str, Any] = {"system": system, "at": {"$gte": since, "$lt": until}}
        if image is not None:
            wanted["$or"] = [{"image": image}, {"tag": image}]
        if limit == 0:
            return []
        with _side():
            found = list(self._lookups.find(wanted, {"_id": 0}).sort("at", -1).limit(limit))
        return [Lookup(**one) for one in reversed(found)]

    def close(self) -> None:
        """The connections are the event log's, which closes them."""


def _bytes(value: object) -> bytes:
    """The bytes of a field; of one that somebody rewrote with another type, some that are not what was recorded."""
    return bytes(value) if isinstance(value, bytes) else str(value).encode()


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except (DuplicateKeyError, BulkWriteError) as error:
        raise IntegrityError(str(error)) from error
    except PyMongoError as error:
        raise OperationalError(f"MongoDB: {error}") from error


@contextmanager
def _side() -> Iterator[None]:
    try:
        yield
    except PyMongoError as error:
        raise SideTableUnavailable(f"MongoDB: {error}") from error
