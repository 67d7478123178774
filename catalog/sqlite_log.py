"""The event log in SQLite: the default store, with nothing to install.

The library's recorder with three differences: events carry the hash chain (catalog.chain), are numbered by us without gaps
inside the same transaction, and writers of several processes queue at a lock file (the database's own busy polling lets
one starve for seconds). A returned save is on disk (WAL, synchronous=FULL). For local file systems: SQLite's locks do
not hold on NFS; a site with gateways on several machines uses PostgreSQL or MongoDB.
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

from eventsourcing.persistence import (
    AggregateRecorder,
    ApplicationRecorder,
    Notification,
    OperationalError,
    StoredEvent,
)
from eventsourcing.sqlite import (
    SQLiteApplicationRecorder,
    SQLiteConnectionPool,
    SQLiteCursor,
    SQLiteDatastore,
    SQLiteFactory,
    SQLiteTransaction,
)

from catalog.chain import Head, Linked, identity, links, stream

LOCK_SECONDS = 30


class SqliteLog(SQLiteApplicationRecorder):
    """The application recorder of eventsourcing, and a catalog.chain.ChainedLog."""

    def __init__(self, datastore: SQLiteDatastore, events_table_name: str = "stored_events") -> None:
        super().__init__(datastore, events_table_name)
        self._insert = f"INSERT INTO {self.events_table_name} VALUES (?,?,?,?,?,?)"  # noqa: S608 — the name is ours
        self._local = threading.local()
        self._turns = _Turns(_lock_file(datastore.pool.db_name))

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
        with (
            self._turns.taken(),
            self.datastore.get_connection(commit=True) as connection,
            _Writing(connection, commit=True) as cursor,
        ):
            return self._insert_events(cursor, stored_events)

    def _insert_events(self, c: SQLiteCursor, stored_events: Sequence[StoredEvent], **_: Any) -> Sequence[int] | None:
        c.execute("SELECT id, hash FROM chain_head")
        row = c.fetchone()
        rows = [
            (number, stream(event), event.originator_version, event.topic, event.state, linked)
            for number, event, linked in links(Head(row["id"], row["hash"]), stored_events)
        ]
        c.executemany(self._insert, rows)
        if rows:
            c.execute("UPDATE chain_head SET id = ?, hash = ?", (rows[-1][0], rows[-1][-1]))
        return [row[0] for row in rows]

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
                        originator_id=identity(row["originator_id"]),
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

    def noted_end(self) -> Head:
        return self.head()

    def max_notification_id(self) -> int | None:  # type: ignore[override] # the base class says int, and returns None too
        """Asked at each look-up: by a connection of the thread's own, without the pool and a transaction around it."""
        if self.datastore.pool.is_sqlite_memory_mode:
            return self.head().id or None
        try:
            connection: sqlite3.Connection | None = getattr(self._local, "connection", None)
            if connection is None:
                self._local.connection = connection = sqlite3.connect(
                    self.datastore.pool.db_name, uri=True, timeout=LOCK_SECONDS, isolation_level=None, check_same_thread=False
                )  # fmt: skip
            (number,) = connection.execute("SELECT id FROM chain_head").fetchone()
        except sqlite3.Error as error:
            raise OperationalError(error) from error
        return number or None


class SqliteLogFactory(SQLiteFactory):
    """Makes the recorders of one log file."""

    application_recorder_class = SqliteLog
    defaults: ClassVar[dict[str, str]] = {"SQLITE_LOCK_TIMEOUT": str(LOCK_SECONDS), "IS_SNAPSHOTTING_ENABLED": "y"}

    @classmethod
    def at(cls, path: Path | str) -> SqliteLogFactory:
        """The factory for the log at `path`, or `:memory:`; the directory must exist."""
        return cls({**cls.defaults, "SQLITE_DBNAME": str(path)})

    def application_recorder(self) -> ApplicationRecorder:
        with _Turns(_lock_file(self.datastore.pool.db_name)).taken():
            return super().application_recorder()

    def aggregate_recorder(self, purpose: str = "events") -> AggregateRecorder:
        with _Turns(_lock_file(self.datastore.pool.db_name)).taken():
            return super().aggregate_recorder(purpose)


def _lock_file(database: str) -> str | None:
    return None if SQLiteConnectionPool.detect_memory_mode(database) else f"{database}.lock"


class _Writing(SQLiteTransaction):
    """A transaction that has the write lock from its beginning (and waits for it), so that what it reads is current."""

    def __enter__(self) -> SQLiteCursor:
        cursor = self.connection.cursor()
        try:
            cursor.execute("BEGIN IMMEDIATE")
        except sqlite3.Error as error:
            raise OperationalError(error) from error
        return cursor


class _Turns:
    """One writer at a time, also among threads and processes, and about in the order in which they came."""

    def __init__(self, lock_file: str | None) -> None:
        self._file = lock_file
        self._descriptor: int | None = None
        self._lock = threading.Lock()

    @contextmanager
    def taken(self) -> Iterator[None]:
        with self._lock:
            if self._file is None:
                yield
                return
            if self._descriptor is None:
                self._descriptor = os.open(self._file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            fcntl.flock(self._descriptor, fcntl.LOCK_EX)
            try:
                yield
            finally:
                fcntl.flock(self._descriptor, fcntl.LOCK_UN)

    def __del__(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
