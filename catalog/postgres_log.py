"""The event log and the side table in PostgreSQL, for a site with gateways on several machines.

The library's recorder with the hash chain: a writer first locks the row that holds the chain's head, so events are numbered
without gaps in the order of their commits, and a reader that has seen number n has seen all before it. Needs the extra
`shifter[postgres]`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any, LiteralString

import psycopg
from eventsourcing.persistence import AggregateRecorder, Notification, PersistenceError, StoredEvent
from eventsourcing.postgres import (
    PostgresApplicationRecorder,
    PostgresDatastore,
    PostgresFactory,
)
from psycopg.conninfo import conninfo_to_dict
from psycopg.sql import SQL, Composed, Identifier

from catalog.chain import GENESIS, Head, Linked, extend
from catalog.config_reader import ConfigError
from catalog.leases import Lookup, Progress, SideTableUnavailable


class PostgresLog(PostgresApplicationRecorder):
    """The application recorder of eventsourcing, and a catalog.chain.ChainedLog."""

    def __init__(self, datastore: PostgresDatastore, *, events_table_name: str = "stored_events") -> None:
        super().__init__(datastore, events_table_name=events_table_name)
        schema = Identifier(datastore.schema)
        self._names = {"schema": schema, "table": Identifier(self.events_table_name)}
        self.sql_create_statements = [
            SQL(
                "CREATE TABLE IF NOT EXISTS {schema}.{table} (notification_id bigint PRIMARY KEY, "
                "originator_id uuid NOT NULL, originator_version bigint NOT NULL, topic text NOT NULL, "
                "state bytea NOT NULL, hash bytea NOT NULL, UNIQUE (originator_id, originator_version))"
            ).format(**self._names),
            SQL(
                "CREATE TABLE IF NOT EXISTS {schema}.chain_head (one int PRIMARY KEY CHECK (one = 1), id bigint NOT NULL, "
                "hash bytea NOT NULL)"
            ).format(**self._names),
            SQL("INSERT INTO {schema}.chain_head VALUES (1, 0, {genesis}) ON CONFLICT DO NOTHING").format(
                genesis=GENESIS, **self._names
            ),
        ]

    def create_table(self) -> None:
        _create(self.datastore, self.sql_create_statements)

    def insert_events(self, stored_events: Sequence[StoredEvent], **kwargs: Any) -> Sequence[int] | None:
        with self.datastore.transaction(commit=True) as cursor:
            cursor.execute(self._sql("SELECT id, hash FROM {schema}.chain_head FOR UPDATE"))
            row = cursor.fetchone()
            assert row is not None
            linked = extend(Head(row["id"], bytes(row["hash"])), stored_events)
            cursor.executemany(
                self._sql(
                    "INSERT INTO {schema}.{table} (notification_id, originator_id, originator_version, topic, state, hash) "
                    "VALUES (%s, %s, %s, %s, %s, %s)"
                ),
                [
                    (
                        one.event.id,
                        one.event.originator_id,
                        one.event.originator_version,
                        one.event.topic,
                        one.event.state,
                        one.hash,
                    )
                    for one in linked
                ],
            )
            if linked:
                cursor.execute(
                    self._sql("UPDATE {schema}.chain_head SET id = %s, hash = %s"),
                    (linked[-1].event.id, linked[-1].hash),
                )
        return [one.event.id for one in linked]

    def select_linked(self, after: int, limit: int) -> Sequence[Linked]:
        with self.datastore.transaction() as cursor:
            cursor.execute(
                self._sql(
                    "SELECT * FROM {schema}.{table} WHERE notification_id > %s ORDER BY notification_id LIMIT %s"
                ),
                (after, limit),
            )
            return [
                Linked(
                    Notification(
                        id=row["notification_id"],
                        originator_id=row["originator_id"],
                        originator_version=row["originator_version"],
                        topic=row["topic"],
                        state=bytes(row["state"]),
                    ),
                    bytes(row["hash"]),
                )
                for row in cursor.fetchall()
            ]

    def head(self) -> Head:
        with self.datastore.transaction() as cursor:
            cursor.execute(self._sql("SELECT id, hash FROM {schema}.chain_head"))
            row = cursor.fetchone()
        assert row is not None
        return Head(row["id"], bytes(row["hash"]))

    def noted_end(self) -> Head:
        return self.head()

    def max_notification_id(self) -> int | None:
        return self.head().id or None

    def _sql(self, text: LiteralString) -> Any:
        return SQL(text).format(**self._names)


class PostgresLogFactory(PostgresFactory):
    """Makes the recorders of one database."""

    application_recorder_class = PostgresLog

    @classmethod
    def at(cls, uri: str, schema: str) -> PostgresLogFactory:
        """The factory for `uri` (postgresql://user:password@host:port/database). Raises ConfigError, PersistenceError."""
        try:
            given = conninfo_to_dict(uri)
        except psycopg.ProgrammingError as error:
            # Not the library's message: it may show the password.
            raise ConfigError("EventStore.uri is no postgresql://user:password@host:port/database") from error
        factory = cls(
            {
                "POSTGRES_DBNAME": str(given.get("dbname", "shifter")),
                "POSTGRES_HOST": str(given.get("host", "localhost")),
                "POSTGRES_PORT": str(given.get("port", 5432)),
                "POSTGRES_USER": str(given.get("user", "shifter")),
                "POSTGRES_PASSWORD": str(given.get("password", "")),
                "POSTGRES_SCHEMA": schema,
                "POSTGRES_POOL_SIZE": "2",
                "POSTGRES_MAX_OVERFLOW": "30",
                "POSTGRES_CONNECT_TIMEOUT": "5",
                "IS_SNAPSHOTTING_ENABLED": "y",
            }
        )
        # What the library has no name for: sslmode, sslrootcert, options, target_session_attrs ...
        kwargs = factory.datastore.pool.kwargs
        assert isinstance(kwargs, dict)
        kwargs.update({key: value for key, value in given.items() if key not in kwargs and value is not None})
        return factory

    def aggregate_recorder(self, purpose: str = "events") -> AggregateRecorder:
        _create(self.datastore, ())  # the library creates tables, and no schema
        return super().aggregate_recorder(purpose)


def _create(datastore: PostgresDatastore, statements: Iterable[Composed]) -> None:
    """Creates what is absent. Gateways that start together take turns: CREATE IF NOT EXISTS alone collides."""
    with datastore.transaction(commit=True) as cursor:
        cursor.execute("SELECT pg_advisory_xact_lock(7338620412)")
        cursor.execute(SQL("CREATE SCHEMA IF NOT EXISTS {schema}").format(schema=Identifier(datastore.schema)))
        for statement in statements:
            cursor.execute(statement)


class PostgresSideTable:
    """catalog.leases.SideTable in the database of the event log."""

    _TABLES = (
        "CREATE TABLE IF NOT EXISTS {schema}.beats (instance text PRIMARY KEY, count bigint NOT NULL)",
        "CREATE TABLE IF NOT EXISTS {schema}.leases (name text PRIMARY KEY, instance text NOT NULL)",
        "CREATE TABLE IF NOT EXISTS {schema}.progress (key text PRIMARY KEY, data text NOT NULL)",
        "CREATE TABLE IF NOT EXISTS {schema}.told (key text, attempt bigint, uid bigint, PRIMARY KEY (key, attempt, uid))",
        "CREATE TABLE IF NOT EXISTS {schema}.lookups (id bigserial PRIMARY KEY, system text, itype text, tag text, "
        "image text, uid bigint, username text, at double precision)",
        "CREATE INDEX IF NOT EXISTS lookups_image ON {schema}.lookups (image, id)",
        "CREATE INDEX IF NOT EXISTS lookups_tag ON {schema}.lookups (tag, id)",
    )

    def __init__(self, datastore: PostgresDatastore) -> None:
        self._datastore = datastore
        try:
            _create(datastore, [SQL(text).format(schema=Identifier(datastore.schema)) for text in self._TABLES])
        except PersistenceError as error:
            raise SideTableUnavailable(f"PostgreSQL: {error}") from error

    def _run(self, statement: LiteralString, *values: Any) -> tuple[int, list[tuple[Any, ...]]]:
        try:
            with self._datastore.transaction(commit=True) as cursor:
                cursor.execute(SQL(statement).format(schema=Identifier(self._datastore.schema)), values or None)
                rows = cursor.fetchall() if cursor.description else []
                return cursor.rowcount, [tuple(row.values()) for row in rows]
        except (PersistenceError, psycopg.Error) as error:
            raise SideTableUnavailable(
                f"PostgreSQL: {str(error).splitlines()[0] if str(error) else error!r}"
            ) from error

    def _pairs(self, statement: LiteralString) -> list[tuple[Any, Any]]:
        return [(row[0], row[1]) for row in self._run(statement)[1]]

    def beat(self, instance: str) -> None:
        self._run(
            "INSERT INTO {schema}.beats AS b VALUES (%s, 1) ON CONFLICT (instance) DO UPDATE SET count = b.count + 1",
            instance,
        )

    def beats(self) -> dict[str, int]:
        return dict(self._pairs("SELECT instance, count FROM {schema}.beats"))

    def forget(self, instance: str) -> None:
        self._run("DELETE FROM {schema}.leases WHERE instance = %s", instance)
        self._run("DELETE FROM {schema}.beats WHERE instance = %s", instance)

    def holder(self, name: str) -> str | None:
        rows = self._run("SELECT instance FROM {schema}.leases WHERE name = %s", name)[1]
        return rows[0][0] if rows else None

    def take(self, name: str, instance: str, *, instead_of: str | None) -> bool:
        if instead_of is None:
            return (
                self._run("INSERT INTO {schema}.leases VALUES (%s, %s) ON CONFLICT DO NOTHING", name, instance)[0] == 1
            )
        changed, _ = self._run(
            "UPDATE {schema}.leases SET instance = %s WHERE name = %s AND instance = %s", instance, name, instead_of
        )
        return changed == 1

    def drop(self, name: str, instance: str) -> None:
        self._run("DELETE FROM {schema}.leases WHERE name = %s AND instance = %s", name, instance)

    def leases(self) -> dict[str, str]:
        return dict(self._pairs("SELECT name, instance FROM {schema}.leases"))

    def save_progress(self, key: str, progress: Progress) -> None:
        self._run(
            "INSERT INTO {schema}.progress VALUES (%s, %s) ON CONFLICT (key) DO UPDATE SET data = EXCLUDED.data",
            key,
            json.dumps(asdict(progress)),
        )

    def progress(self, key: str) -> Progress | None:
        rows = self._run("SELECT data FROM {schema}.progress WHERE key = %s", key)[1]
        return Progress(**json.loads(rows[0][0])) if rows else None

    def tell(self, key: str, attempt: int, uid: int) -> bool:
        return (
            self._run("INSERT INTO {schema}.told VALUES (%s, %s, %s) ON CONFLICT DO NOTHING", key, attempt, uid)[0] == 1
        )

    def add_lookups(self, lookups: Iterable[Lookup]) -> None:
        try:
            with self._datastore.transaction(commit=True) as cursor:
                cursor.executemany(
                    SQL(
                        "INSERT INTO {schema}.lookups (system, itype, tag, image, uid, username, at) "
                        "VALUES (%s, %s, %s, %s, %s, %s, %s)"
                    ).format(schema=Identifier(self._datastore.schema)),
                    [tuple(asdict(one).values()) for one in lookups],
                )
        except (PersistenceError, psycopg.Error) as error:
            raise SideTableUnavailable(f"PostgreSQL: {error}") from error

    def lookups(
        self, system: str, *, limit: int, image: str | None = None, since: float = 0, until: float = 1e18
    ) -> list[Lookup]:
        rows = self._run(
            "SELECT system, itype, tag, image, uid, username, at FROM {schema}.lookups WHERE system = %s AND at >= %s "
            "AND at < %s AND (%s::text IS NULL OR image = %s OR tag = %s) ORDER BY id DESC LIMIT %s",
            system,
            since,
            until,
            image,
            image,
            image,
            limit,
        )[1]
        return [Lookup(*row) for row in reversed(rows)]

    def close(self) -> None:
        """The connections are the event log's, which closes them."""
