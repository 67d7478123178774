"""The event log in SQLite: the default store, with nothing to install.

The library's recorder with three differences: events carry the hash chain (catalog.chain), are numbered by us without gaps
inside the same transaction, and writers of several processes queue at a lock file (the database's own busy polling lets
one starve for seconds). A returned save is on disk (WAL, synchronous=FULL). For local file systems: SQLite's locks do
not hold on NFS; a site with gateways on several machines uses PostgreSQL or MongoDB.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

from eventsourcing.persistence import (
    AggregateRecorder,
    ApplicationRecorder,
    Notification,
    StoredEvent,
)
from eventsourcing.sqlite import (
    SQLiteApplicationRecorder,
    SQLiteConnectionPool,
    SQLiteCursor,
    SQLiteDatastore,
    SQLiteFactory,
)

from catalog.chain import Head, Linked, extend, stream

LOCK_SECONDS = 30


class SqliteLog(SQLiteApplicationRecorder):
    """The application recorder of eventsourcing, and a catalog.chain.ChainedLog."""

    def __init__(self, datastore: SQLiteDatastore, events_table_name: str = "stored_events") -> None:
        super().__init__(datastore, events_table_name)
        self._lock_file = _lock_file(datastore.pool.db_name)

    def construct_create_table_statements(self) -> list[str]:
        return [
            f"CREATE TABLE IF NOT EXISTS {self.events_table_name} ("
            "id INTEGER PRIMARY KEY, "
            "originator_id TEXT NOT NULL, "
            "originator_version INTEGER NOT NULL, "
            "topic TEXT NOT NULL, "
            "state BLOB NOT NULL, "
            "hash BLOB NOT NULL, "
            "UNIQUE (originator_id, originator_version))",
            "CREATE TABLE IF NOT EXISTS chain_head (one INTEGER PRIMARY KEY CHECK (one = 1), id INTEGER, hash BLOB)",
            "INSERT OR IGNORE INTO chain_head VALUES (1, 0, zeroblob(32))",  # catalog.chain.GENESIS
        ]

    def insert_events(self, stored_events: Sequence[StoredEvent], **kwargs: Any) -> Sequence[int] | None:
        if self.datastore.pool.is_sqlite_memory_mode:
            return super().insert_events(stored_events, **kwargs)
        with _turn(self._lock_file):
            return super().insert_events(stored_events, **kwargs)

    def _insert_events(self, c: SQLiteCursor, stored_events: Sequence[StoredEvent], **_: Any) -> Sequence[int] | None:
        # A write comes first in the transaction: it takes the write lock (waiting for it), so the head read is current.
        c.execute("UPDATE chain_head SET id = id RETURNING id, hash")
        row = c.fetchone()
        linked = extend(Head(row["id"], row["hash"]), stored_events)
        c.executemany(
            f"INSERT INTO {self.events_table_name} VALUES (?,?,?,?,?,?)",  # noqa: S608 — the table's name is ours
            [
                (
                    one.event.id,
                    stream(one.event),
                    one.event.originator_version,
                    one.event.topic,
                    one.event.state,
                    one.hash,
                )
                for one in linked
            ],
        )
        if linked:
            c.execute("UPDATE chain_head SET id = ?, hash = ?", (linked[-1].event.id, linked[-1].hash))
        return [one.event.id for one in linked]

    def select_notifications(
        self,
        start: int | None,
        limit: int,
        stop: int | None = None,
        topics: Sequence[str] = (),
        *,
        inclusive_of_start: bool = True,
    ) -> Sequence[Notification]:
        conditions, values = ["1"], []
        if start is not None:
            conditions.append("id >= ?" if inclusive_of_start else "id > ?")
            values.append(start)
        if stop is not None:
            conditions.append("id <= ?")
            values.append(stop)
        marks = ",".join("?" * len(topics))
        if topics:
            conditions.append(f"topic IN ({marks})")
        return [one.event for one in self._select(conditions, [*values, *topics], limit)]

    def select_linked(self, after: int, limit: int) -> Sequence[Linked]:
        return self._select(["id > ?"], [after], limit)

    def _select(self, conditions: Sequence[str], values: Sequence[object], limit: int) -> list[Linked]:
        statement = (
            f"SELECT * FROM {self.events_table_name} "  # noqa: S608 — the parts are constants, values are bound
            f"WHERE {' AND '.join(conditions)} ORDER BY id LIMIT ?"
        )
        with self.datastore.transaction(commit=False) as c:
            c.execute(statement, (*values, limit))
            return [
                Linked(
                    Notification(
                        id=row["id"],
                        originator_id=self.convert_originator_id(row["originator_id"]),
                        originator_version=row["originator_version"],
                        topic=row["topic"],
                        state=row["state"],
                    ),
                    row["hash"],
                )
                for row in c.fetchall()
            ]

    def head(self) -> Head:
        with self.datastore.transaction(commit=False) as c:
            c.execute("SELECT id, hash FROM chain_head")
            row = c.fetchone()
        return Head(row["id"], row["hash"])

    def max_notification_id(self) -> int | None:  # type: ignore[override] # the base class says int, and returns None too
        return self.head().id or None


class SqliteLogFactory(SQLiteFactory):
    """Makes the recorders of one log file."""

    application_recorder_class = SqliteLog
    defaults: ClassVar[dict[str, str]] = {"SQLITE_LOCK_TIMEOUT": str(LOCK_SECONDS), "IS_SNAPSHOTTING_ENABLED": "y"}

    @classmethod
    def at(cls, path: Path | str) -> SqliteLogFactory:
        """The factory for the log at `path`, or `:memory:`; the directory must exist."""
        return cls({**cls.defaults, "SQLITE_DBNAME": str(path)})

    def application_recorder(self) -> ApplicationRecorder:
        with _turn(_lock_file(self.datastore.pool.db_name)):
            return super().application_recorder()

    def aggregate_recorder(self, purpose: str = "events") -> AggregateRecorder:
        with _turn(_lock_file(self.datastore.pool.db_name)):
            return super().aggregate_recorder(purpose)


def _lock_file(database: str) -> str:
    return os.devnull if SQLiteConnectionPool.detect_memory_mode(database) else f"{database}.lock"


@contextmanager
def _turn(lock_file: str) -> Iterator[None]:
    """One writer at a time, also among processes, and in the order in which they came."""
    descriptor = os.open(lock_file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
