"""The catalog as an application: loads a reference, lets a command change it, saves; the only writer of the event log.

Promises that a change that returns is in the log, that two changes of one reference never overwrite each other (optimistic
concurrency, retried here and nowhere else), and that reads of `images` made afterwards see it. Knows no HTTP.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar
from uuid import UUID

from eventsourcing.application import AggregateNotFoundError, Application
from eventsourcing.domain import Snapshot
from eventsourcing.persistence import (
    InfrastructureFactory,
    IntegrityError,
    JSONTranscoder,
    Transcoding,
)
from eventsourcing.utils import Environment, EnvType

from catalog.config import Configuration, EventStoreChoice
from catalog.domain import ImageReference
from catalog.image_list import ImageList
from catalog.leases import Leases, SideTable, SqliteSideTable
from catalog.record import Record
from catalog.reference import Reference
from catalog.sqlite_log import SqliteLogFactory

_TRIES = 50
SNAPSHOT_EVERY = 50  # events of one reference; the longest replay of a busy tag


class RecordTranscoding(Transcoding):
    """How a Record is written into a snapshot."""

    type = Record
    name = "record"

    def encode(self, obj: Record) -> dict[str, Any]:
        return obj.to_json()

    def decode(self, data: dict[str, Any]) -> Record:
        return Record.from_json(data)


class Catalog(Application[UUID]):
    """All references of all systems. `clock` gives Unix seconds."""

    snapshotting_intervals: ClassVar[dict[Any, int]] = {ImageReference: SNAPSHOT_EVERY}
    snapshot_class = Snapshot

    def __init__(self, factory: InfrastructureFactory[Any], clock: Callable[[], float] = time.time) -> None:
        self._given_factory = factory
        self.clock = clock
        super().__init__()

    def construct_env(self, name: str, env: EnvType | None = None) -> Environment:
        # The configuration file alone decides: the library would take stores from the process's environment.
        return Environment(name, {})

    def construct_factory(self, env: Environment) -> InfrastructureFactory[Any]:
        return self._given_factory

    def register_transcodings(self, transcoder: JSONTranscoder) -> None:
        super().register_transcodings(transcoder)
        transcoder.register(RecordTranscoding())

    def load(self, identity: UUID) -> ImageReference | None:
        """The reference as its events say now; None when nobody has spoken of it."""
        try:
            return self.repository.get(identity)
        except AggregateNotFoundError:
            return None

    def change(self, reference: Reference, command: Callable[[ImageReference], None]) -> Record:
        """Lets `command` change `reference` (a new one when it is not known) and saves; returns the record after it.

        `command` may be called several times, each time with the newest state: it must have no effect of its own.
        What it raises (NotAllowed, Superseded) is passed on, with nothing saved. A command that triggers no event
        changes nothing.
        """
        for attempt in range(_TRIES):
            image = self.load(reference.uuid) or ImageReference.name(reference, self.clock())
            before = image.version
            command(image)
            if image.version == before:
                return image.record
            try:
                self.save(image)
            except IntegrityError:
                # Somebody else was first; back off a little more each time so that a crowd drains.
                time.sleep(random.uniform(0, 0.002 * (attempt + 1)))  # noqa: S311 — jitter, no secret
                continue
            return image.record
        raise Contended(f"{reference} is being changed by too many at once; try again")


class Contended(Exception):
    """A change lost against others too many times."""


def open_factory(choice: EventStoreChoice) -> InfrastructureFactory[Any]:
    """The store that the configuration names; creates its directory or tables. Raises StoreUnavailable."""
    if choice.kind == "sqlite":
        path = Path(choice.uri)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(mode=0o600)  # who pulled which private image is not for everybody; SQLite keeps the mode
        return SqliteLogFactory.at(choice.uri)
    if choice.kind == "postgresql":
        try:
            from catalog.postgres_log import PostgresLogFactory
        except ImportError as error:
            raise StoreUnavailable(
                f"EventStore postgresql needs psycopg ({error}): pip install shifter[postgres]"
            ) from error
        return PostgresLogFactory.at(choice.uri, choice.database)
    from pymongo.errors import PyMongoError  # 150 ms that other stores need not spend

    from catalog.mongo_log import MongoLogFactory

    try:
        return MongoLogFactory(choice.uri, choice.database)
    except PyMongoError as error:
        # Not its text: it may repeat the URI with the password.
        raise StoreUnavailable(f"EventStore.uri (MongoDBURI) is not usable: {type(error).__name__}") from error


def open_side_table(factory: InfrastructureFactory[Any], choice: EventStoreChoice) -> SideTable:
    """The side table that belongs to the event store. Raises SideTableUnavailable."""
    if choice.kind == "sqlite":
        return SqliteSideTable(Path(choice.uri).with_name("leases.sqlite"))
    if choice.kind == "postgresql":
        from catalog.postgres_log import PostgresLogFactory, PostgresSideTable

        assert isinstance(factory, PostgresLogFactory)
        return PostgresSideTable(factory.datastore)
    from catalog.mongo_log import MongoLogFactory, MongoSideTable

    assert isinstance(factory, MongoLogFactory)
    return MongoSideTable(factory.database)


def open_mirror(
    factory: InfrastructureFactory[Any], images: ImageList, configuration: Configuration, leases: Leases
) -> Callable[[], None]:
    """What keeps the old gateway's collection up to date; for stores other than MongoDB it does nothing."""
    if configuration.store.kind != "mongodb":
        return lambda: None
    from catalog.mongo_log import MongoLogFactory
    from catalog.mongo_mirror import MongoMirror

    assert isinstance(factory, MongoLogFactory)
    return MongoMirror(
        factory.database, images, configuration.image_expiration.total_seconds(), lambda: leases.take("mirror")
    ).update


class StoreUnavailable(Exception):
    """The event store cannot be opened or reached; the message says which and why."""
