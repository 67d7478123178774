"""One suite for all stores of events: SQLite, PostgreSQL, MongoDB's protocol. The library's own cases, and ours."""

from __future__ import annotations

import sqlite3
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar
from uuid import uuid4

import psycopg
import pymongo
import pytest
from eventsourcing.persistence import (
    AggregateRecorder,
    ApplicationRecorder,
    InfrastructureFactory,
    IntegrityError,
    StoredEvent,
)
from eventsourcing.tests.persistence import AggregateRecorderTestCase, ApplicationRecorderTestCase

from catalog.acl import Access
from catalog.application import Catalog, open_factory, open_side_table
from catalog.chain import verify
from catalog.config import EventStoreChoice
from catalog.image_list import ImageList
from catalog.leases import Leases, Lookup, Progress, SideTable
from catalog.reference import Reference
from catalog.states import NotAllowed, State
from tests.catalog.databases import ferretdb, postgres
from tests.catalog.test_image_list import image

KINDS = ["sqlite", "postgresql", "mongodb"]
Fresh = Callable[[], EventStoreChoice]


class Servers:
    """The servers of one test process, started when first asked for; each `fresh` is an empty store in one."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._uris: dict[str, str] = {}

    def fresh(self, kind: str) -> EventStoreChoice:
        name = f"t{uuid4().hex[:12]}"
        if kind == "sqlite":
            directory = Path(self._stack.enter_context(tempfile.TemporaryDirectory()))
            return EventStoreChoice("sqlite", str(directory / "events.sqlite"), "")
        if kind not in self._uris:
            self._uris[kind] = self._stack.enter_context(postgres() if kind == "postgresql" else ferretdb())
        if kind == "postgresql":
            return EventStoreChoice("postgresql", self._uris[kind], name)
        return EventStoreChoice("mongodb", self._uris[kind], name)

    def close(self) -> None:
        self._stack.close()


@pytest.fixture(scope="session")
def servers() -> Iterator[Servers]:
    made = Servers()
    yield made
    made.close()


@pytest.fixture(params=KINDS)
def fresh(request: pytest.FixtureRequest, servers: Servers) -> EventStoreChoice:
    return servers.fresh(request.param)


@pytest.fixture
def _for_cases(request: pytest.FixtureRequest, servers: Servers) -> None:
    request.instance.choice = servers.fresh(request.cls.kind)


class _OpenedByCase:
    kind: ClassVar[str]
    choice: EventStoreChoice
    factory: InfrastructureFactory[Any]

    def setUp(self) -> None:
        self.factory = open_factory(self.choice)

    def tearDown(self) -> None:
        # A case of the library leaves its reader running; closing a connection under it would crash the process.
        for thread in threading.enumerate():
            if "(read_continuously)" in thread.name:
                thread.join()
        self.factory.close()

    def test_performance(self) -> None:
        """Measured by the benchmarks."""

    def test_concurrent_throughput(self) -> None:
        """Measured by the benchmarks."""


class _LogCases(_OpenedByCase):
    def create_recorder(self) -> ApplicationRecorder:
        return self.factory.application_recorder()


class _SnapshotCases(_OpenedByCase):
    def create_recorder(self) -> AggregateRecorder:
        return self.factory.aggregate_recorder("snapshots")


@pytest.mark.usefixtures("_for_cases")
class TestSqliteLog(_LogCases, ApplicationRecorderTestCase[ApplicationRecorder]):
    kind = "sqlite"


@pytest.mark.usefixtures("_for_cases")
class TestPostgresLog(_LogCases, ApplicationRecorderTestCase[ApplicationRecorder]):
    kind = "postgresql"


@pytest.mark.usefixtures("_for_cases")
class TestMongoLog(_LogCases, ApplicationRecorderTestCase[ApplicationRecorder]):
    kind = "mongodb"

    def test_concurrent_no_conflicts(self) -> None:
        """Takes minutes on FerretDB, which has no index over lists; test_writers_at_once below is the same, smaller."""


@pytest.mark.usefixtures("_for_cases")
class TestSqliteSnapshots(_SnapshotCases, AggregateRecorderTestCase):
    kind = "sqlite"


@pytest.mark.usefixtures("_for_cases")
class TestPostgresSnapshots(_SnapshotCases, AggregateRecorderTestCase):
    kind = "postgresql"


@pytest.mark.usefixtures("_for_cases")
class TestMongoSnapshots(_SnapshotCases, AggregateRecorderTestCase):
    kind = "mongodb"


def test_an_opened_store_is_opened_again_with_what_was_written(fresh: EventStoreChoice) -> None:
    stream = uuid4()
    first = open_factory(fresh)
    first.application_recorder().insert_events([StoredEvent(stream, 1, "t", b"\x00\xff")])
    first.close()
    second = open_factory(fresh)
    log = second.application_recorder()
    assert log.max_notification_id() == 1
    assert list(log.select_events(stream)) == [StoredEvent(stream, 1, "t", b"\x00\xff")]
    second.close()


def test_writers_at_once_leave_one_chain_without_gaps(fresh: EventStoreChoice) -> None:
    factories = [open_factory(fresh) for _ in range(4)]
    streams = [uuid4() for _ in factories]

    def write(number: int) -> None:
        log = factories[number].application_recorder()
        for version in range(1, 21, 2):
            log.insert_events(
                [StoredEvent(streams[number], version, "t", b"a"), StoredEvent(streams[number], version + 1, "t", b"b")]
            )

    threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    log: Any = factories[0].application_recorder()
    assert [one.id for one in log.select_notifications(1, 1000)] == list(range(1, 81))
    assert verify(log) is None
    for factory in factories:
        factory.close()


def test_one_version_of_a_stream_is_written_once_however_many_try(fresh: EventStoreChoice) -> None:
    factories = [open_factory(fresh) for _ in range(4)]
    stream = uuid4()
    won: list[int] = []
    start = threading.Barrier(4)

    def write(number: int) -> None:
        log = factories[number].application_recorder()
        start.wait()
        try:
            log.insert_events([StoredEvent(stream, 1, "t", str(number).encode())])
            won.append(number)
        except IntegrityError:
            pass

    threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    log = factories[0].application_recorder()
    assert len(won) == 1
    assert [one.state for one in log.select_events(stream)] == [str(won[0]).encode()]
    assert log.max_notification_id() == 1
    for factory in factories:
        factory.close()


def test_a_save_is_whole_or_not_at_all(fresh: EventStoreChoice) -> None:
    factory = open_factory(fresh)
    log: Any = factory.application_recorder()
    one, two = uuid4(), uuid4()
    log.insert_events([StoredEvent(one, 1, "t", b"")])
    with pytest.raises(IntegrityError):
        log.insert_events([StoredEvent(two, 1, "t", b""), StoredEvent(one, 1, "t", b"")])
    with pytest.raises(IntegrityError):
        log.insert_events([StoredEvent(two, 1, "t", b""), StoredEvent(two, 1, "t", b"")])
    assert list(log.select_events(two)) == []
    log.insert_events([StoredEvent(two, 1, "t", b"")])
    assert log.max_notification_id() == 2
    assert verify(log) is None
    factory.close()


def _cut_off(choice: EventStoreChoice, number: int) -> None:
    """Removes the events from `number` on, as somebody with the database's own tools would."""
    if choice.kind == "sqlite":
        with sqlite3.connect(choice.uri) as connection:
            connection.execute("DELETE FROM stored_events WHERE id >= ?", (number,))
        connection.close()
    elif choice.kind == "postgresql":
        with psycopg.connect(choice.uri) as server:
            server.execute(f'DELETE FROM "{choice.database}".stored_events WHERE notification_id >= {number}')
    else:
        with pymongo.MongoClient[dict[str, Any]](choice.uri) as client:
            client[choice.database]["commits"].delete_many({"_id": {"$gte": number}})


def test_a_log_that_was_cut_off_at_its_end_is_found(fresh: EventStoreChoice) -> None:
    factory = open_factory(fresh)
    log: Any = factory.application_recorder()
    stream = uuid4()
    for version in range(1, 6):
        log.insert_events([StoredEvent(stream, version, "t", b"a")])
    assert verify(log) is None
    _cut_off(fresh, 4)
    fault = verify(log)
    assert fault is not None
    assert (fault.id, fault.reason) == (4, "events 4 to 5 are missing from the end of the log")
    factory.close()


def test_a_log_of_mongodb_whose_documents_were_changed_names_the_first_bad_event(servers: Servers) -> None:
    changes: list[tuple[dict[str, Any], dict[str, Any]]] = [
        ({"_id": 2}, {"$set": {"events.0.s": b"b"}}),
        ({"_id": 2}, {"$set": {"events.0.s": 7, "events.0.h": "x"}}),
        ({"_id": 2}, {"$unset": {"events.0.o": ""}}),
        ({"_id": 2}, {"$unset": {"events": ""}}),
    ]
    for which, change in changes:
        choice = servers.fresh("mongodb")
        factory = open_factory(choice)
        log: Any = factory.application_recorder()
        for version in range(1, 4):
            log.insert_events([StoredEvent(uuid4(), version, "t", b"a")])
        with pymongo.MongoClient[dict[str, Any]](choice.uri) as client:
            client[choice.database]["commits"].update_one(which, change)
        fault = verify(log)
        assert fault is not None
        assert fault.id == 2
        factory.close()


def test_what_a_postgresql_uri_says_beyond_the_library_s_words_reaches_the_server(servers: Servers) -> None:
    choice = servers.fresh("postgresql")
    factory: Any = open_factory(replace(choice, uri=f"{choice.uri}?application_name=gateway-one&sslmode=disable"))
    with factory.datastore.transaction() as cursor:
        cursor.execute("SELECT current_setting('application_name') AS name")
        assert cursor.fetchone()["name"] == "gateway-one"
    assert factory.datastore.pool.kwargs["sslmode"] == "disable"
    factory.close()


def test_changes_of_one_reference_from_two_catalogs_are_both_kept(fresh: EventStoreChoice, tmp_path: Path) -> None:
    one, two = Catalog(open_factory(fresh)), Catalog(open_factory(fresh))
    reference = Reference("s", "docker", "a:1")
    one.change(reference, lambda it: it.migrate(image("x"), Access(True), 1e9, owner=0, user="root"))
    catalogs = [one, two]

    def use(number: int) -> None:
        for _ in range(5):
            catalogs[number % 2].change(reference, lambda it: it.use(1e9, uid=number, user="u"))

    threads = [threading.Thread(target=use, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    stream = two.load(reference.uuid)
    assert stream is not None
    assert stream.version == 22
    images = ImageList(tmp_path / "images.sqlite", one.recorder, one.mapper)
    assert images.get(reference) == stream.record
    images.close()
    one.close()
    two.close()


def test_only_one_of_two_catalogs_begins_an_attempt(fresh: EventStoreChoice) -> None:
    catalogs = [Catalog(open_factory(fresh)) for _ in range(2)]
    reference = Reference("s", "docker", "a:1")
    begun, refused = [], []
    start = threading.Barrier(2)

    def begin(number: int) -> None:
        start.wait()
        try:
            begun.append(
                catalogs[number].change(
                    reference,
                    lambda it: it.request_pull(
                        1e9, uid=number, user="u", gid=0, asked=None, admin=False, credentialed=False,
                        gateway="g", location="l",
                    ),
                )
            )  # fmt: skip
        except NotAllowed as error:
            refused.append(str(error))

    threads = [threading.Thread(target=begin, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(begun), len(refused)) == (1, 1)
    assert begun[0].state is State.INIT
    for catalog in catalogs:
        catalog.close()


def test_a_long_stream_is_read_from_its_snapshot(fresh: EventStoreChoice) -> None:
    catalog = Catalog(open_factory(fresh))
    reference = Reference("s", "docker", "a:1")
    catalog.change(reference, lambda it: it.migrate(image("x"), Access(True), 1e9, owner=0, user="root"))
    for number in range(60):
        catalog.change(reference, lambda it, number=number: it.use(1e9 + number, uid=1, user="u"))
    assert catalog.snapshots is not None
    (snapshot,) = catalog.snapshots.get(reference.uuid, desc=True, limit=1)
    assert snapshot.originator_version == 50
    stream = catalog.load(reference.uuid)
    assert stream is not None
    assert (stream.version, stream.record.used_at) == (62, 1e9 + 59)
    catalog.close()


# The side table


@pytest.fixture
def table(fresh: EventStoreChoice) -> Iterator[SideTable]:
    factory = open_factory(fresh)
    yield open_side_table(factory, fresh)
    factory.close()


def test_a_lease_is_given_to_one_of_many_that_ask_at_once(table: SideTable) -> None:
    won: list[str] = []

    def take(name: str) -> None:
        if table.take("lease", name, instead_of=None):
            won.append(name)

    threads = [threading.Thread(target=take, args=(f"host:{n}:1:x",)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert table.holder("lease") == won[0]
    assert not table.take("lease", "other", instead_of="nobody")
    assert table.take("lease", "other", instead_of=won[0])
    table.drop("lease", won[0])
    assert table.leases() == {"lease": "other"}
    table.forget("other")
    assert table.leases() == {}


def test_heartbeats_progress_and_what_was_told_are_kept(table: SideTable) -> None:
    leases = Leases(table, 10, instance="h:1:1:x")
    leases.beat()
    assert table.beats() == {"h:1:1:x": 2}
    assert table.progress("k") is None
    for done in (1, 2):
        table.save_progress("k", Progress(3, done, 10, 1, 2, "note"))
    assert table.progress("k") == Progress(3, 2, 10, 1, 2, "note")
    assert [table.tell("k", 1, 7), table.tell("k", 1, 7), table.tell("k", 1, 8)] == [True, False, True]
    made = [Lookup("s", "docker", f"a:{n % 2}", "f" * 64, n, f"u{n}", float(n)) for n in range(4)]
    table.add_lookups(made)
    assert table.lookups("s", limit=2) == made[2:]
    assert table.lookups("s", limit=9, image="a:1", since=2) == [made[3]]
    assert table.lookups("none", limit=9) == []
