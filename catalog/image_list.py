"""The image list: what `list`, `lookup` and `queue` answer from, and the tables that questions about the past read.

A projection of the event log into an SQLite file of its own, next to the gateway. Promises that a read sees every event
that was in the log when the read began (it catches up first), that its position is recorded in the same transaction as
what follows from it, and that deleting the file loses nothing: it is rebuilt. Several processes may share one file.
"""

from __future__ import annotations

import fcntl
import json
import os
import sqlite3
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, cast
from uuid import UUID

from eventsourcing.persistence import ApplicationRecorder, Mapper, Notification, OperationalError

from catalog.answer import ready_fields
from catalog.domain import ImageReference
from catalog.record import Record
from catalog.reference import Reference

SCHEMA_VERSION = 2
OPEN = 1e18  # `until` of a span that has not ended
_PAGE = 2000

_TABLES = """
CREATE TABLE position (one INTEGER PRIMARY KEY CHECK (one = 1), id INTEGER NOT NULL, at REAL NOT NULL);
INSERT INTO position VALUES (1, 0, 0);
CREATE TABLE records (
    ref INTEGER PRIMARY KEY, uuid BLOB UNIQUE NOT NULL,
    system TEXT NOT NULL, itype TEXT NOT NULL, tag TEXT NOT NULL,
    state TEXT NOT NULL, live INTEGER NOT NULL, usable INTEGER NOT NULL,
    image TEXT, object TEXT, size INTEGER, owner INTEGER, used_at REAL, pulled_at REAL,
    access TEXT, shown TEXT, record TEXT NOT NULL);
CREATE TABLE history (
    id INTEGER PRIMARY KEY, at REAL NOT NULL, ref INTEGER NOT NULL, action TEXT NOT NULL,
    uid INTEGER, user TEXT, image TEXT, detail TEXT NOT NULL);
CREATE TABLE spans (
    ref INTEGER NOT NULL, since REAL NOT NULL, until REAL NOT NULL, image TEXT NOT NULL, object TEXT NOT NULL,
    size INTEGER NOT NULL, owner INTEGER, access TEXT NOT NULL, event INTEGER NOT NULL);
"""
_INDEXES = """
CREATE UNIQUE INDEX records_name ON records (system, itype, tag);
CREATE INDEX records_usable ON records (system, usable);
CREATE INDEX records_live ON records (live) WHERE live;
CREATE INDEX records_state ON records (system, state);
CREATE INDEX records_image ON records (image);
CREATE INDEX history_ref ON history (ref, id);
CREATE INDEX history_uid ON history (uid, id);
CREATE INDEX history_user ON history (user, id);
CREATE INDEX history_image ON history (image, id) WHERE image IS NOT NULL;
CREATE INDEX history_action ON history (action, id);
CREATE INDEX spans_open ON spans (ref, until);
CREATE INDEX spans_image ON spans (image);
"""


class Shown(NamedTuple):
    """A row of `list`. access: an Access in JSON; fields: catalog.answer.ready_fields in JSON."""

    itype: str
    tag: str
    image: str
    pulled_at: float
    access: str
    fields: str


class ImageList:
    """Reads and keeps the projection of `log` at `path`. Safe to use from many threads.

    Reads raise eventsourcing's PersistenceError when the log or the list cannot be read, sqlite3.Error when the list's
    file fails in the middle of an answer.
    """

    def __init__(self, path: Path, log: ApplicationRecorder, mapper: Mapper[UUID]) -> None:
        self.path = path
        self._log = log
        self._mapper = mapper
        self._local = threading.local()
        self._writing = threading.Lock()
        self._position = -1
        path.parent.mkdir(parents=True, exist_ok=True)
        with self._writing, _exclusive(path):
            if not self._usable_file():
                build(path, log, mapper)

    # Reading

    def connection(self) -> sqlite3.Connection:
        """A connection of this thread that sees all events up to now; for reading only."""
        newest = self._log.max_notification_id() or 0
        try:
            connection = self._connect()
            if newest > self._position:
                self.catch_up()
        except (sqlite3.Error, OSError) as error:
            raise OperationalError(f"the image list {self.path}: {error}") from error
        return connection

    def get(self, reference: Reference) -> Record | None:
        row = self.connection().execute(
            "SELECT record FROM records WHERE system = ? AND itype = ? AND tag = ?",
            (reference.system, reference.itype, reference.tag),
        )
        return _first(row)

    def get_by_uuid(self, identity: UUID) -> Record | None:
        return _first(self.connection().execute("SELECT record FROM records WHERE uuid = ?", (identity.bytes,)))

    def usable(self, system: str) -> list[Record]:
        """The references of `system` whose image can be run, sorted by type and tag."""
        return _records(
            self.connection().execute(
                "SELECT record FROM records WHERE system = ? AND usable ORDER BY itype, tag", (system,)
            )
        )

    def shown(self, system: str) -> Iterator[Shown]:
        """What `list` answers from, sorted by type and tag: cheap columns of what `usable` gives in full."""
        rows = self.connection().execute(
            "SELECT itype, tag, image, pulled_at, access, shown FROM records WHERE system = ? AND usable "
            "ORDER BY itype, tag",
            (system,),
        )
        return (Shown(*row) for row in rows)

    def tags(self, record: Record) -> list[str]:
        """The tags of one system and type that point at the image of `record` with the same ACL, sorted."""
        if record.image is None or record.access is None:
            return [record.reference.tag]
        rows = self.connection().execute(
            # Named, because the planner prefers one that gives the order, and reads the whole system.
            "SELECT tag FROM records INDEXED BY records_image "
            "WHERE image = ? AND usable AND system = ? AND itype = ? AND access = ? ORDER BY tag",
            (
                record.image.id,
                record.reference.system,
                record.reference.itype,
                json.dumps(record.access.to_json()),
            ),
        )
        return [tag for (tag,) in rows] or [record.reference.tag]

    def unfinished(self, system: str) -> list[Record]:
        """The references of `system` that are being brought in, or whose last attempt failed."""
        return _records(
            self.connection().execute(
                "SELECT record FROM records WHERE system = ? AND (live OR state = 'FAILURE') ORDER BY itype, tag",
                (system,),
            )
        )

    def live(self) -> list[Record]:
        """What is being pulled or imported on any system."""
        return _records(self.connection().execute("SELECT record FROM records WHERE live"))

    def with_image(self, image: str) -> list[Record]:
        """The references on all systems whose newest image has the id `image` and can be run."""
        return _records(self.connection().execute("SELECT record FROM records WHERE image = ? AND usable", (image,)))

    def all(self) -> Iterator[Record]:
        for row in self.connection().execute("SELECT record FROM records ORDER BY system, itype, tag"):
            yield Record.from_json(json.loads(row[0]))

    def unused_since(self, system: str, at: float) -> list[Record]:
        """The usable references of `system` that nobody has used since `at` (Unix seconds)."""
        return _records(
            self.connection().execute(
                "SELECT record FROM records WHERE system = ? AND usable AND used_at < ? ORDER BY used_at", (system, at)
            )
        )

    def position(self) -> int:
        """The number of the last event that the list knows, without catching up."""
        return cast(int, self._connect().execute("SELECT id FROM position").fetchone()[0])

    # Keeping up

    def catch_up(self) -> int:
        """Brings the list up to the newest event; returns its number."""
        with self._writing:
            connection = self._connect()
            while True:
                connection.execute("BEGIN IMMEDIATE")
                try:
                    position, at = connection.execute("SELECT id, at FROM position").fetchone()
                    page = self._log.select_notifications(position, _PAGE, inclusive_of_start=False)
                    if page:
                        position = _Fold(connection, self._mapper, at).take(page)
                    connection.execute("COMMIT")
                except BaseException:
                    connection.execute("ROLLBACK")
                    raise
                if len(page) < _PAGE:
                    self._position = position
                    return self._position

    def rebuild(self) -> int:
        """Makes the list anew from the log beside the old one, and puts it in its place; readers go on meanwhile."""
        with self._writing, _exclusive(self.path):
            build(self.path, self._log, self._mapper)
        return self.catch_up()

    def close(self) -> None:
        """Closes this thread's connection; those of other threads close with them."""
        connection = getattr(self._local, "connection", None)
        if connection is not None:
            connection.close()
            self._local.connection = None

    def _connect(self) -> sqlite3.Connection:
        inode = _inode(self.path)
        connection: sqlite3.Connection | None = getattr(self._local, "connection", None)
        if connection is None or self._local.inode != inode:
            # The file was replaced by a rebuild: the old connection would answer from the old file for ever.
            if connection is not None:
                connection.close()
            self._local.connection = connection = _open(self.path)
            self._local.inode = inode
            self._position = -1
        return connection

    def _usable_file(self) -> bool:
        if not self.path.exists():
            return False
        try:
            connection = _open(self.path)
        except sqlite3.DatabaseError:
            return False
        try:
            version = connection.execute("PRAGMA user_version").fetchone()[0]
            (position,) = connection.execute("SELECT id FROM position").fetchone()
        except sqlite3.DatabaseError:
            return False
        finally:
            connection.close()
        # A list that is ahead of the log belongs to another log (a restored backup, say).
        return bool(version == SCHEMA_VERSION and position <= (self._log.max_notification_id() or 0))


def build(path: Path, log: ApplicationRecorder, mapper: Mapper[UUID]) -> int:
    """Writes the whole projection of `log` into a fresh file and lets `path` point at it; returns the events' number.

    `path` is a symbolic link, so that the change is atomic and the files beside a database (-wal, -shm) never meet
    another one's.
    """
    fresh = path.with_name(f"{path.name}.{time.time_ns()}")
    fresh.touch(mode=0o600)
    connection = _open(fresh)
    try:
        connection.execute("PRAGMA journal_mode=OFF")
        connection.execute("PRAGMA synchronous=OFF")  # nobody reads it before it has its name
        connection.executescript(_TABLES)
        position, at = 0, 0.0
        while page := log.select_notifications(position, _PAGE, inclusive_of_start=False):
            connection.execute("BEGIN")
            fold = _Fold(connection, mapper, at)
            position = fold.take(page)
            at = fold.at
            connection.execute("COMMIT")
        connection.executescript(_INDEXES)
        connection.execute(f"PRAGMA user_version={SCHEMA_VERSION}")
        connection.execute("PRAGMA journal_mode=WAL")
    finally:
        connection.close()
    link = path.with_name(f"{path.name}.link")
    link.unlink(missing_ok=True)
    link.symlink_to(fresh.name)
    link.replace(path)
    for old in path.parent.glob(f"{path.name}.[0-9]*"):
        if not old.name.startswith(fresh.name):
            old.unlink(missing_ok=True)
    return position


class _Fold:
    """Applies events, in order, to the tables behind one connection, inside the caller's transaction."""

    def __init__(self, connection: sqlite3.Connection, mapper: Mapper[UUID], at: float) -> None:
        self.at = at
        self._connection = connection
        self._mapper = mapper
        self._known: dict[UUID, tuple[int, Record]] = {}

    def take(self, page: Sequence[Notification]) -> int:
        history = []
        for notification in page:
            event = cast(ImageReference.Event, self._mapper.to_domain_event(notification))
            identity = cast(UUID, notification.originator_id)
            # A clock that was set back must not put an event before its predecessor.
            self.at = max(self.at, event.timestamp.timestamp())
            if isinstance(event, ImageReference.Created):
                ref, before, after = self._begin(identity, event)
            else:
                ref, before = self._record(identity)
                after = event.after(before)
            self._known[identity] = (ref, after)
            if before is not after:
                self._span(ref, before, after, notification.id)
            history.append(
                (
                    notification.id,
                    self.at,
                    ref,
                    event.action,
                    getattr(event, "uid", None),
                    getattr(event, "user", None),
                    after.image.id if after.image else (before.image.id if before.image else None),
                    bytes(notification.state).decode(),
                )
            )
        self._connection.executemany("INSERT INTO history VALUES (?,?,?,?,?,?,?,?)", history)
        self._connection.executemany(
            "UPDATE records SET state=?, live=?, usable=?, image=?, object=?, size=?, owner=?, used_at=?, pulled_at=?, "
            "access=?, shown=?, record=? WHERE ref=?",
            [(*_columns(record), ref) for ref, record in self._known.values()],
        )
        self._connection.execute("UPDATE position SET id = ?, at = ?", (page[-1].id, self.at))
        return page[-1].id

    def _begin(self, identity: UUID, event: ImageReference.Created) -> tuple[int, Record, Record]:
        record = event.first()
        name = record.reference
        cursor = self._connection.execute(
            "INSERT INTO records (uuid, system, itype, tag, state, live, usable, record) VALUES (?,?,?,?,'',0,0,'')",
            (identity.bytes, name.system, name.itype, name.tag),
        )
        return cast(int, cursor.lastrowid), record, record

    def _record(self, identity: UUID) -> tuple[int, Record]:
        if identity not in self._known:
            row = self._connection.execute(
                "SELECT ref, record FROM records WHERE uuid = ?", (identity.bytes,)
            ).fetchone()
            self._known[identity] = (row[0], Record.from_json(json.loads(row[1])))
        return self._known[identity]

    def _span(self, ref: int, before: Record, after: Record, event: int) -> None:
        """Keeps `spans`: from when to when which image was to be had under a reference, and by whom."""
        same_image = before.image is after.image
        if before.usable == after.usable and same_image and before.access is after.access:
            return
        if before.usable:
            self._connection.execute("UPDATE spans SET until = ? WHERE ref = ? AND until = ?", (self.at, ref, OPEN))
        if after.usable and after.image is not None and after.access is not None:
            image = after.image
            access = json.dumps(after.access.to_json())
            self._connection.execute(
                "INSERT INTO spans VALUES (?,?,?,?,?,?,?,?,?)",
                (ref, self.at, OPEN, image.id, image.object, image.size, after.owner, access, event),
            )


def _columns(record: Record) -> tuple[Any, ...]:
    image = record.image
    # A reference that was only named is in no queue.
    live = record.state.live and record.attempt is not None
    return (
        str(record.state),
        live,
        record.usable,
        image.id if image else None,
        image.object if image else None,
        image.size if image else None,
        record.owner,
        record.used_at,
        record.pulled_at,
        json.dumps(record.access.to_json()) if record.access else None,
        json.dumps(ready_fields(record)) if image else None,
        json.dumps(record.to_json()),
    )


def _open(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, timeout=30, isolation_level=None, check_same_thread=False)
    # Losing the last moments of the list in a power cut is harmless: it catches up from the log.
    connection.execute("PRAGMA synchronous=NORMAL")
    return connection


def _inode(path: Path) -> int:
    return os.stat(path).st_ino  # noqa: PTH116 — on the path of every look-up, and twice as fast


def _first(rows: Iterable[Any]) -> Record | None:
    for (text,) in rows:
        return Record.from_json(json.loads(text))
    return None


def _records(rows: Iterable[Any]) -> list[Record]:
    return [Record.from_json(json.loads(text)) for (text,) in rows]


@contextmanager
def _exclusive(path: Path) -> Iterator[None]:
    """One process at a time builds the file."""
    descriptor = os.open(path.with_name(path.name + ".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
