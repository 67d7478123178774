"""How events become the tables of the image list: the file's shape, the fold of one event after another, and a whole list
made from a log. Reading and keeping up is catalog.image_list.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast
from uuid import UUID

from eventsourcing.persistence import Mapper, Notification, PersistenceError

from catalog.answer import ready_fields
from catalog.chain import ChainedLog
from catalog.domain import ImageReference
from catalog.record import Record

SCHEMA_VERSION = 3
OPEN = 1e18  # `until` of a span that has not ended
PAGE = 2000  # events of one transaction

_TABLES = """
CREATE TABLE position (one INTEGER PRIMARY KEY CHECK (one = 1), id INTEGER NOT NULL, at REAL NOT NULL, hash BLOB);
INSERT INTO position VALUES (1, 0, 0, zeroblob(32));
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
    size INTEGER NOT NULL, owner INTEGER, access TEXT NOT NULL, event INTEGER NOT NULL,
    anonymous INTEGER NOT NULL);
CREATE INDEX spans_open ON spans (ref, until);
"""
# The fold itself looks for nothing in these: they are made when a new list is full. Those above it needs.
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
CREATE INDEX spans_image ON spans (image);
"""


def build(path: Path, log: ChainedLog, mapper: Mapper[UUID]) -> int:
    """Writes the whole projection of `log` into a fresh file and lets `path` point at it; returns the events' number.

    `path` is a symbolic link, so that the change is atomic and the files beside a database (-wal, -shm) never meet
    another one's. When it fails, `path` is what it was and nothing is left.
    """
    fresh = path.with_name(f"{path.name}.{time.time_ns()}")
    fresh.touch(mode=0o600)
    try:
        position = _fill(fresh, log, mapper)
        link = path.with_name(f"{path.name}.link")
        link.unlink(missing_ok=True)
        link.symlink_to(fresh.name)
        link.replace(path)
    except BaseException:
        for left in path.parent.glob(f"{fresh.name}*"):
            left.unlink(missing_ok=True)
        raise
    for old in path.parent.glob(f"{path.name}.[0-9]*"):
        if not old.name.startswith(fresh.name):
            old.unlink(missing_ok=True)
    return position


def _fill(fresh: Path, log: ChainedLog, mapper: Mapper[UUID]) -> int:
    connection = open_file(fresh)
    try:
        connection.execute("PRAGMA journal_mode=OFF")
        connection.execute("PRAGMA synchronous=OFF")  # nobody reads it before it has its name
        connection.executescript(_TABLES)
        position, at = 0, 0.0
        while page := log.select_linked(position, PAGE):
            connection.execute("BEGIN")
            fold = Fold(connection, mapper, at)
            position = fold.take([one.event for one in page], page[-1].hash)
            at = fold.at
            connection.execute("COMMIT")
        connection.executescript(_INDEXES)
        connection.execute(f"PRAGMA user_version={SCHEMA_VERSION}")
        connection.execute("PRAGMA journal_mode=WAL")
    finally:
        connection.close()
    return position


class Fold:
    """Applies events, in order, to the tables behind one connection, inside the caller's transaction."""

    def __init__(self, connection: sqlite3.Connection, mapper: Mapper[UUID], at: float) -> None:
        self.at = at
        self._connection = connection
        self._mapper = mapper
        self._known: dict[UUID, tuple[int, Record]] = {}

    def take(self, page: Sequence[Notification], newest: bytes) -> int:
        """Takes in `page`, whose last event has the hash `newest`. Raises PersistenceError for an event that is damaged."""
        history = []
        number = 0
        try:
            for notification in page:
                number = notification.id
                history.append(self._one(notification))
        except (sqlite3.Error, PersistenceError):
            raise
        except Exception as error:  # whatever somebody made of it by hand
            raise PersistenceError(
                f"event {number} of the log cannot be read ({type(error).__name__}): run `shifter-admin audit verify`"
            ) from error
        self._connection.executemany("INSERT INTO history VALUES (?,?,?,?,?,?,?,?)", history)
        self._connection.executemany(
            "UPDATE records SET state=?, live=?, usable=?, image=?, object=?, size=?, owner=?, used_at=?, pulled_at=?, "
            "access=?, shown=?, record=? WHERE ref=?",
            [(*_columns(record), ref) for ref, record in self._known.values()],
        )
        self._connection.execute("UPDATE position SET id = ?, at = ?, hash = ?", (page[-1].id, self.at, newest))
        return page[-1].id

    def _one(self, notification: Notification) -> tuple[Any, ...]:
        """Folds one event; returns its row of `history`."""
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
        return (
            notification.id,
            self.at,
            ref,
            event.action,
            getattr(event, "uid", None),
            getattr(event, "user", None),
            after.image.id if after.image else (before.image.id if before.image else None),
            bytes(notification.state).decode(),
        )

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
                "INSERT INTO spans VALUES (?,?,?,?,?,?,?,?,?,?)",
                (ref, self.at, OPEN, image.id, image.object, image.size, after.owner, access, event, image.anonymous),
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


def open_file(path: Path) -> sqlite3.Connection:
    """A connection to a list's file; transactions are begun by hand."""
    connection = sqlite3.connect(path, timeout=30, isolation_level=None, check_same_thread=False)
    # Losing the last moments of the list in a power cut is harmless: it catches up from the log.
    connection.execute("PRAGMA synchronous=NORMAL")
    return connection
