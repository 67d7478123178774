"""The image list: what `list`, `lookup` and `queue` answer from, and the tables that questions about the past read.

A projection of the event log into an SQLite file of its own, next to the gateway. Promises that a read sees every event
that was in the log when the read began (it catches up first), that its position is recorded in the same transaction as
what follows from it, and that deleting the file loses nothing: it is rebuilt, as is one that belongs to another log (one
restored from a backup, say): it keeps the hash of the last event that it knows. Several processes may share one file.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import sqlite3
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, cast
from uuid import UUID

from eventsourcing.persistence import ApplicationRecorder, Mapper, OperationalError

from catalog.chain import ChainedLog
from catalog.projection import PAGE, SCHEMA_VERSION, Fold, build, open_file
from catalog.record import Record
from catalog.reference import Reference

log = logging.getLogger("shifter.image_list")


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
        self._chain = cast(ChainedLog, log)
        self._mapper = mapper
        self._local = threading.local()
        self._writing = threading.Lock()
        self._known = (-1, -1)  # a file's inode, and the number of the last event in it
        path.parent.mkdir(parents=True, exist_ok=True)
        with self._writing, _exclusive(path):
            if not self._usable_file():
                build(path, self._chain, mapper)

    # Reading

    def connection(self) -> sqlite3.Connection:
        """A connection of this thread that sees all events up to now; for reading only."""
        newest = self._log.max_notification_id() or 0
        try:
            self._connect()
            if self._known != (self._local.inode, newest):
                self.catch_up()
        except (sqlite3.Error, OSError) as error:
            raise OperationalError(f"the image list {self.path}: {error}") from error
        return cast(sqlite3.Connection, self._local.connection)

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
            while True:
                connection = self._connect()
                connection.execute("BEGIN IMMEDIATE")
                try:
                    position, at, known = connection.execute("SELECT id, at, hash FROM position").fetchone()
                    # From the last one that is known, to see that it is still the one that it was.
                    page = self._chain.select_linked(max(position - 1, 0), PAGE)
                    whole = len(page) < PAGE
                    if position:
                        ours = bool(page) and (page[0].event.id, page[0].hash) == (position, known)
                        page = page[1:]
                    else:
                        ours = True
                    if ours and page:
                        newest = page[-1]
                        position = Fold(connection, self._mapper, at).take([one.event for one in page], newest.hash)
                    connection.execute("COMMIT")
                except BaseException:
                    connection.execute("ROLLBACK")
                    raise
                if not ours:
                    log.warning("the image list %s belongs to another event log: it is made anew", self.path)
                    self._make_anew()
                elif whole:
                    self._known = (self._local.inode, position)
                    return cast(int, position)

    def rebuild(self) -> int:
        """Makes the list anew from the log beside the old one, and puts it in its place; readers go on meanwhile."""
        with self._writing, _exclusive(self.path):
            build(self.path, self._chain, self._mapper)
        return self.catch_up()

    def _make_anew(self) -> None:
        with _exclusive(self.path):
            if not self._usable_file():  # another process may have been first
                build(self.path, self._chain, self._mapper)

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
            self._local.connection = connection = open_file(self.path)
            self._local.inode = inode
        return connection

    def _usable_file(self) -> bool:
        if not self.path.exists():
            return False
        try:
            connection = open_file(self.path)
        except sqlite3.DatabaseError:
            return False
        try:
            version = connection.execute("PRAGMA user_version").fetchone()[0]
            position, known = connection.execute("SELECT id, hash FROM position").fetchone()
        except sqlite3.DatabaseError:
            return False
        finally:
            connection.close()
        if version != SCHEMA_VERSION or not position:
            return bool(version == SCHEMA_VERSION)
        last = self._chain.select_linked(position - 1, 1)
        return bool(last) and (last[0].event.id, last[0].hash) == (position, known)


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
