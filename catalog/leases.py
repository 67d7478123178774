"""Who works at what, and how far it is: the side table beside the event log.

Leases, heartbeats, byte progress and "has this user been told" are not history: they change many times a second, and
losing them costs a repeated pull at worst. All gateways of one event store share one such table; this module has the
interface and the SQLite one (catalog.mongo_log and catalog.postgres_log have theirs).

A lease belongs to a gateway process. Nobody compares clocks: a process counts up its heartbeat, and another one takes it
for dead when it has watched the same count for `patience` seconds of its own monotonic clock, or at once when both
are on one host and that process is gone. Fencing is not done here but by the event log: a worker whose lease was taken
finds another worker's claim in the reference's stream and stops (catalog.domain.Superseded).
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol


@dataclass(frozen=True)
class Progress:
    """How far a worker is with one attempt. done, total: bytes (0: not known yet). note: a sentence worth showing."""

    attempt: int
    done: int = 0
    total: int = 0
    layers_done: int = 0
    layers: int = 0
    note: str = ""


@dataclass(frozen=True)
class Lookup:
    """One look-up, as /api/metrics shows it. at: Unix seconds."""

    system: str
    itype: str
    tag: str
    image: str
    uid: int
    user: str
    at: float


class SideTable(Protocol):
    """What a store of leases must do. Each call is atomic; any may raise SideTableUnavailable."""

    def beat(self, instance: str) -> None:
        """Counts up the heartbeat of `instance`."""

    def beats(self) -> dict[str, int]:
        """The heartbeat count of every instance that has beaten."""

    def forget(self, instance: str) -> None:
        """Removes the heartbeat and all leases of `instance`."""

    def holder(self, name: str) -> str | None:
        """The instance that holds the lease `name`."""

    def take(self, name: str, instance: str, *, instead_of: str | None) -> bool:
        """Gives the lease to `instance` if its holder is `instead_of` (None: nobody); True when it was given."""

    def drop(self, name: str, instance: str) -> None:
        """Ends the lease if `instance` holds it."""

    def leases(self) -> dict[str, str]:
        """Every lease and its holder."""

    def save_progress(self, key: str, progress: Progress) -> None: ...

    def progress(self, key: str) -> Progress | None: ...

    def tell(self, key: str, attempt: int, uid: int) -> bool:
        """Notes that `uid` was told how `attempt` ended; False when that was noted before."""

    def add_lookups(self, lookups: Iterable[Lookup]) -> None: ...

    def lookups(
        self, system: str, *, limit: int, image: str | None = None, since: float = 0, until: float = 1e18
    ) -> list[Lookup]:
        """The newest `limit` look-ups, newest last; `image` filters by id or by tag."""

    def close(self) -> None: ...


class SideTableUnavailable(Exception):
    """The side table cannot be reached or written; the message says why."""


class SqliteSideTable:
    """SideTable in a file of its own next to the event log."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._local = threading.local()
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(mode=0o600)
        self._run("PRAGMA journal_mode=WAL")
        for statement in (
            "CREATE TABLE IF NOT EXISTS beats (instance TEXT PRIMARY KEY, count INTEGER NOT NULL)",
            "CREATE TABLE IF NOT EXISTS leases (name TEXT PRIMARY KEY, instance TEXT NOT NULL)",
            "CREATE TABLE IF NOT EXISTS progress (key TEXT PRIMARY KEY, data TEXT NOT NULL)",
            "CREATE TABLE IF NOT EXISTS told (key TEXT, attempt INTEGER, uid INTEGER, PRIMARY KEY (key, attempt, uid))",
            "CREATE TABLE IF NOT EXISTS lookups (id INTEGER PRIMARY KEY, system TEXT, itype TEXT, tag TEXT, image TEXT, "
            "uid INTEGER, user TEXT, at REAL)",
            "CREATE INDEX IF NOT EXISTS lookups_image ON lookups (image, id)",
            "CREATE INDEX IF NOT EXISTS lookups_tag ON lookups (tag, id)",
        ):
            self._run(statement)

    def _run(self, statement: str, *values: Any) -> sqlite3.Cursor:
        connection: sqlite3.Connection | None = getattr(self._local, "connection", None)
        try:
            if connection is None:
                self._local.connection = connection = sqlite3.connect(self._path, timeout=30, isolation_level=None)
                # A power cut may take the last moments, which were about living processes; it must not damage the file.
                connection.execute("PRAGMA synchronous=NORMAL")
            return connection.execute(statement, values)
        except sqlite3.Error as error:
            raise SideTableUnavailable(f"{self._path}: {error}") from error

    def beat(self, instance: str) -> None:
        self._run("INSERT INTO beats VALUES (?, 1) ON CONFLICT DO UPDATE SET count = count + 1", instance)

    def beats(self) -> dict[str, int]:
        return dict(self._run("SELECT instance, count FROM beats").fetchall())

    def forget(self, instance: str) -> None:
        self._run("DELETE FROM leases WHERE instance = ?", instance)
        self._run("DELETE FROM beats WHERE instance = ?", instance)

    def holder(self, name: str) -> str | None:
        row = self._run("SELECT instance FROM leases WHERE name = ?", name).fetchone()
        return row[0] if row else None

    def take(self, name: str, instance: str, *, instead_of: str | None) -> bool:
        if instead_of is None:
            return self._run("INSERT OR IGNORE INTO leases VALUES (?, ?)", name, instance).rowcount == 1
        changed = self._run(
            "UPDATE leases SET instance = ? WHERE name = ? AND instance = ?", instance, name, instead_of
        )
        return changed.rowcount == 1

    def drop(self, name: str, instance: str) -> None:
        self._run("DELETE FROM leases WHERE name = ? AND instance = ?", name, instance)

    def leases(self) -> dict[str, str]:
        return dict(self._run("SELECT name, instance FROM leases").fetchall())

    def save_progress(self, key: str, progress: Progress) -> None:
        self._run("INSERT OR REPLACE INTO progress VALUES (?, ?)", key, json.dumps(asdict(progress)))

    def progress(self, key: str) -> Progress | None:
        row = self._run("SELECT data FROM progress WHERE key = ?", key).fetchone()
        return Progress(**json.loads(row[0])) if row else None

    def tell(self, key: str, attempt: int, uid: int) -> bool:
        return self._run("INSERT OR IGNORE INTO told VALUES (?, ?, ?)", key, attempt, uid).rowcount == 1

    def add_lookups(self, lookups: Iterable[Lookup]) -> None:
        self._run("BEGIN IMMEDIATE")
        try:
            for one in lookups:
                self._run(
                    "INSERT INTO lookups (system, itype, tag, image, uid, user, at) VALUES (?,?,?,?,?,?,?)",
                    *asdict(one).values(),
                )
            self._run("COMMIT")
        except BaseException:
            with suppress(SideTableUnavailable):
                self._run("ROLLBACK")  # else this thread could never begin another
            raise

    def lookups(
        self, system: str, *, limit: int, image: str | None = None, since: float = 0, until: float = 1e18
    ) -> list[Lookup]:
        statement = (
            "SELECT system, itype, tag, image, uid, user, at FROM lookups WHERE system = ? AND at >= ? AND at < ? "
        )
        values: list[Any] = [system, since, until]
        if image is not None:
            statement += "AND (image = ? OR tag = ?) "
            values += [image, image]
        rows = self._run(statement + "ORDER BY id DESC LIMIT ?", *values, limit).fetchall()
        return [Lookup(*row) for row in reversed(rows)]

    def close(self) -> None:
        connection: sqlite3.Connection | None = getattr(self._local, "connection", None)
        if connection is not None:
            connection.close()
            self._local.connection = None


def new_instance() -> str:
    """A name for this process that says where it runs: host and process namespace, pid, start time, something random."""
    return f"{_here()}:{os.getpid()}:{_start_time(os.getpid())}:{secrets.token_hex(4)}"


def _here() -> str:
    """Where a pid means the same process: two containers of one host name have namespaces of their own."""
    return f"{socket.gethostname()}/{Path('/proc/self/ns/pid').stat().st_ino}"


def process_gone(instance: str) -> bool:
    """True when `instance` ran on this host and its process is no more; False when it lives or cannot be judged."""
    host, _, rest = instance.partition(":")
    pid, _, rest = rest.partition(":")
    started = rest.partition(":")[0]
    if host != _here() or not pid.isdigit():
        return False
    return _start_time(int(pid)) != started


def _start_time(pid: int) -> str:
    """Field 22 of /proc/<pid>/stat (proc(5)): tells a process from a later one with its number. Empty when gone."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""
    words = stat.rpartition(")")[2].split()
    return "" if words[0] == "Z" else words[19]


class Leases:
    """This process's leases in a side table.

    `patience`: seconds without a heartbeat after which another process counts as dead; its own heart must beat
    several times in that. Call `beat` regularly (Workers does).
    """

    def __init__(
        self,
        table: SideTable,
        patience: float,
        *,
        instance: str | None = None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.table = table
        self.patience = patience
        self.instance = instance or new_instance()
        self._monotonic = monotonic
        self._watched: dict[str, tuple[int, float]] = {}
        self._lock = threading.Lock()
        self.table.beat(self.instance)

    def beat(self) -> None:
        """Shows that this process lives, and looks at the others."""
        self.table.beat(self.instance)
        self._watch()

    def take(self, name: str) -> bool:
        """Whether this process holds the lease `name` now: it did already, nobody did, or the holder was dead."""
        holder = self.table.holder(name)
        if holder == self.instance:
            return True
        if holder is not None and not self.dead(holder):
            return False
        return self.table.take(name, self.instance, instead_of=holder)

    def holds(self, name: str) -> bool:
        return self.table.holder(name) == self.instance

    def drop(self, name: str) -> None:
        self.table.drop(name, self.instance)

    def dead(self, instance: str) -> bool:
        """Whether `instance` has stopped: see the module's text."""
        if instance == self.instance:
            return False
        if process_gone(instance):
            return True
        self._watch()
        with self._lock:
            seen = self._watched.get(instance)
        return seen is not None and self._monotonic() - seen[1] > self.patience

    def close(self) -> None:
        """Gives everything back, so that others need not wait."""
        self.table.forget(self.instance)

    def _watch(self) -> None:
        counts = self.table.beats()
        # An instance that holds leases without ever having beaten is watched like one that stopped at 0.
        for holder in self.table.leases().values():
            counts.setdefault(holder, 0)
        now = self._monotonic()
        with self._lock:
            for instance, count in counts.items():
                if self._watched.get(instance, (-1, 0.0))[0] != count:
                    self._watched[instance] = (count, now)
