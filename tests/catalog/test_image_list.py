"""The image list: rebuilt from the log it equals the live one, whatever happened."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sqlite3
import tempfile
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
from eventsourcing.persistence import PersistenceError
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from catalog.acl import Access
from catalog.application import Catalog
from catalog.domain import ImageReference, Superseded
from catalog.image_list import ImageList
from catalog.projection import build
from catalog.record import Image
from catalog.reference import Reference
from catalog.sqlite_log import SqliteLogFactory
from catalog.states import NotAllowed, Stage, State

SCALE = int(os.environ.get("SHIFTER_TEST_SCALE", "1"))
REFERENCES = [Reference(system, "docker", tag) for system in ("one", "two") for tag in ("a:1", "b:1")]
UIDS = st.sampled_from([0, 1, 2])
ACCESS = st.one_of(st.none(), st.builds(Access, st.just(False), st.frozensets(UIDS, min_size=1), st.frozensets(UIDS)))


def image(content: str, *, anonymous: bool = True) -> Image:
    digest = hashlib.sha256(content.encode()).hexdigest()
    return Image(digest, digest[::-1], len(content), "squashfs", "amd64", anonymous, ("A=1",), ("/x",), None, "/", {})


def dump(path: Path) -> dict[str, list[tuple[Any, ...]]]:
    """Every row that answers come from. `ref` is replaced by the reference's identity."""
    connection = sqlite3.connect(path)
    try:
        names = dict(connection.execute("SELECT ref, uuid FROM records"))
        records = connection.execute("SELECT * FROM records ORDER BY uuid").fetchall()
        history = connection.execute("SELECT * FROM history ORDER BY id").fetchall()
        spans = connection.execute("SELECT * FROM spans ORDER BY event").fetchall()
        return {
            "records": [row[1:] for row in records],
            "history": [(*row[:2], names[row[2]], *row[3:]) for row in history],
            "spans": [(names[row[0]], *row[1:]) for row in spans],
            "position": connection.execute("SELECT * FROM position").fetchall(),
        }
    finally:
        connection.close()


class Life(RuleBasedStateMachine):
    """Random commands on a few references, with a clock that also jumps back."""

    @initialize()
    def begin(self) -> None:
        self.directory = tempfile.TemporaryDirectory()
        root = Path(self.directory.name)
        self.now = 1_800_000_000.0
        self.catalog = Catalog(SqliteLogFactory.at(root / "events.sqlite"), lambda: self.now)
        self.images = ImageList(root / "images.sqlite", self.catalog.recorder, self.catalog.mapper)

    def change(self, reference: Reference, command: Any) -> None:
        with contextlib.suppress(NotAllowed, Superseded):
            self.catalog.change(reference, command)

    @rule(seconds=st.floats(-100, 5000))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule(reference=st.sampled_from(REFERENCES), uid=UIDS, asked=ACCESS, credentialed=st.booleans())
    def pull(self, reference: Reference, uid: int, asked: Access | None, credentialed: bool) -> None:
        self.change(
            reference,
            lambda it: it.request_pull(
                self.now, uid=uid, user=f"u{uid}", gid=uid, asked=asked, admin=uid == 0,
                credentialed=credentialed, gateway="g", location="site",
            ),
        )  # fmt: skip

    @rule(reference=st.sampled_from(REFERENCES), uid=UIDS)
    def import_file(self, reference: Reference, uid: int) -> None:
        self.change(
            reference,
            lambda it: it.request_import(
                self.now, uid=uid, user=f"u{uid}", gid=uid, asked=None, admin=False, gateway="g", path="/x",
                form="squashfs",
            ),
        )  # fmt: skip

    @rule(reference=st.sampled_from(REFERENCES), uid=UIDS, asked=ACCESS)
    def join(self, reference: Reference, uid: int, asked: Access | None) -> None:
        self.change(reference, lambda it: it.join_pull(self.now, uid=uid, user=f"u{uid}", gid=uid, asked=asked))

    @rule(reference=st.sampled_from(REFERENCES), stage=st.sampled_from(list(Stage)), worker=st.sampled_from("wv"))
    def reach(self, reference: Reference, stage: Stage, worker: str) -> None:
        self.change(
            reference,
            lambda it: it.reach(stage, self.now, worker, attempt=_attempt(it), takeover=stage is Stage.PULLING),
        )

    @rule(reference=st.sampled_from(REFERENCES), content=st.sampled_from("xyz"), anonymous=st.booleans())
    def complete(self, reference: Reference, content: str, anonymous: bool) -> None:
        def command(it: ImageReference) -> None:
            made = image(content, anonymous=anonymous)
            if it.record.attempt is not None:
                access, owner = it.access_after(made)
                worker = it.record.attempt.worker or "w"
                it.complete(made, access, owner, self.now, worker, attempt=_attempt(it))

        self.change(reference, command)

    @rule(reference=st.sampled_from(REFERENCES))
    def fail(self, reference: Reference) -> None:
        self.change(reference, lambda it: it.fail("a reason", self.now, None, attempt=_attempt(it)))

    @rule(reference=st.sampled_from(REFERENCES), access=ACCESS, uid=UIDS)
    def change_access(self, reference: Reference, access: Access | None, uid: int) -> None:
        wanted = access or Access(True)
        self.change(reference, lambda it: it.change_access(wanted, self.now, uid=uid, user="u"))

    @rule(reference=st.sampled_from(REFERENCES), what=st.sampled_from(["use", "expire", "remove", "restore", "untag"]))
    def end(self, reference: Reference, what: str) -> None:
        commands = {
            "use": lambda it: it.use(self.now, uid=1, user="u"),
            "expire": lambda it: it.expire(self.now, by="policy", uid=None, user=""),
            "remove": lambda it: it.remove(self.now, by="owner", uid=1, user="u"),
            "restore": lambda it: it.restore(self.now, uid=1, user="u"),
            "untag": lambda it: it.untag(self.now, by="owner", uid=1, user="u"),
        }
        self.change(reference, commands[what])

    @rule(reference=st.sampled_from(REFERENCES), content=st.sampled_from("xyz"), migrate=st.booleans())
    def given(self, reference: Reference, content: str, migrate: bool) -> None:
        access = Access(True)
        if migrate:
            self.change(reference, lambda it: it.migrate(image(content), access, self.now, owner=0, user="root"))
        else:
            self.change(reference, lambda it: it.tag_as(image(content), access, self.now, uid=0, user="root"))

    @rule()
    def read(self) -> None:
        self.images.catch_up()

    @invariant()
    def what_the_list_says_is_what_the_streams_say(self) -> None:
        if not hasattr(self, "images"):
            return
        for reference in REFERENCES:
            stream = self.catalog.load(reference.uuid)
            assert self.images.get(reference) == (stream.record if stream else None)

    @invariant()
    def nothing_usable_is_without_an_image_or_an_acl(self) -> None:
        if not hasattr(self, "images"):
            return
        for record in self.images.all():
            assert not record.usable or (record.image is not None and record.access is not None)
            assert record.state is not State.READY or record.usable

    def teardown(self) -> None:
        if not hasattr(self, "images"):
            return
        self.images.catch_up()
        again = Path(self.directory.name) / "rebuilt.sqlite"
        build(again, self.catalog.recorder, self.catalog.mapper)
        live = dump(self.images.path)
        assert dump(again) == live
        self.images.close()
        self.catalog.close()
        self.directory.cleanup()


def _attempt(it: ImageReference) -> int:
    return it.record.attempt.number if it.record.attempt else 0


TestLife = Life.TestCase
TestLife.settings = settings(
    max_examples=10 * SCALE,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)


def opened(root: Path) -> tuple[Catalog, ImageList]:
    catalog = Catalog(SqliteLogFactory.at(root / "events.sqlite"))
    return catalog, ImageList(root / "images.sqlite", catalog.recorder, catalog.mapper)


def add(catalog: Catalog, tag: str) -> None:
    catalog.change(
        Reference("one", "docker", tag), lambda it: it.migrate(image(tag), Access(True), 1e9, owner=0, user="root")
    )


def test_a_list_of_another_process_sees_a_write_at_once(tmp_path: Path) -> None:
    writer, _ = opened(tmp_path)
    _, reader = opened(tmp_path)
    for number in range(5):
        add(writer, f"a:{number}")
        assert len(reader.usable("one")) == number + 1


def test_a_lost_or_damaged_list_is_made_anew_from_the_log(tmp_path: Path) -> None:
    catalog, images = opened(tmp_path)
    add(catalog, "a:1")
    assert len(images.usable("one")) == 1
    images.close()
    for damage in (b"no database", b"", None):
        if damage is None:
            images.path.unlink()
        else:
            images.path.resolve().write_bytes(damage)
        again = ImageList(images.path, catalog.recorder, catalog.mapper)
        assert [record.reference.tag for record in again.usable("one")] == ["a:1"]
        again.close()


def test_a_list_that_is_ahead_of_the_log_is_not_believed(tmp_path: Path) -> None:
    catalog, images = opened(tmp_path)
    add(catalog, "a:1")
    images.catch_up()
    images.close()
    other = Catalog(SqliteLogFactory.at(tmp_path / "restored.sqlite"))
    assert ImageList(images.path, other.recorder, other.mapper).usable("one") == []


def _backup(source: Path, target: Path) -> None:
    """What `sqlite3 SOURCE ".backup TARGET"` does, also into a database that is in use."""
    one, two = sqlite3.connect(source), sqlite3.connect(target)
    one.backup(two)
    one.close()
    two.close()


def test_a_list_that_knows_a_future_that_a_restored_log_never_had_is_made_anew(tmp_path: Path) -> None:
    catalog, images = opened(tmp_path)
    add(catalog, "kept:1")
    _backup(tmp_path / "events.sqlite", tmp_path / "backup.sqlite")
    add(catalog, "lost:1")
    assert len(images.usable("one")) == 2
    _backup(tmp_path / "backup.sqlite", tmp_path / "events.sqlite")
    assert [record.reference.tag for record in images.usable("one")] == ["kept:1"]
    # By another gateway, and beyond where this one was.
    add(catalog, "lost:2")
    assert len(images.usable("one")) == 2
    _backup(tmp_path / "backup.sqlite", tmp_path / "events.sqlite")
    other, _ = opened(tmp_path)
    add(other, "new:1")
    add(other, "new:2")
    tags = [record.reference.tag for record in images.usable("one")]
    assert tags == ["kept:1", "new:1", "new:2"]
    images.close()
    # The same while it was not running.
    _backup(tmp_path / "backup.sqlite", tmp_path / "events.sqlite")
    for number in range(3):
        add(other, f"newer:{number}")
    _, again = opened(tmp_path)
    assert [record.reference.tag for record in again.usable("one")] == ["kept:1", "newer:0", "newer:1", "newer:2"]


def test_a_rebuild_that_meets_a_damaged_event_names_it_and_leaves_the_list_as_it_was(tmp_path: Path) -> None:
    catalog, images = opened(tmp_path)
    add(catalog, "a:1")
    add(catalog, "a:2")
    assert len(images.usable("one")) == 2
    connection = sqlite3.connect(tmp_path / "events.sqlite", isolation_level=None)
    connection.execute("UPDATE stored_events SET state = '{' WHERE id = 3")
    before = sorted(path.name for path in tmp_path.glob("images.sqlite*"))
    with pytest.raises(PersistenceError, match=r"^event 3 of the log cannot be read \(.*`shifter-admin audit verify`$"):
        images.rebuild()
    assert len(images.usable("one")) == 2
    assert sorted(path.name for path in tmp_path.glob("images.sqlite*")) == before


def test_a_rebuild_goes_on_under_readers_and_they_see_its_result(tmp_path: Path) -> None:
    catalog, images = opened(tmp_path)
    add(catalog, "a:1")
    assert len(images.usable("one")) == 1
    reading = images.connection().execute("SELECT tag FROM records")
    before = images.path.resolve()
    other = ImageList(images.path, catalog.recorder, catalog.mapper)
    other.rebuild()
    assert reading.fetchall() == [("a:1",)]
    assert images.path.resolve() != before
    add(catalog, "a:2")
    assert len(images.usable("one")) == 2
    assert [p for p in tmp_path.glob("images.sqlite.1*") if not p.name.endswith(("-wal", "-shm"))] == [
        images.path.resolve()
    ]


def test_a_crash_between_events_and_list_loses_nothing(tmp_path: Path) -> None:
    # The position is written in the same transaction as what follows from it: a page that fails half-way leaves neither.
    catalog, images = opened(tmp_path)
    add(catalog, "a:1")
    images.catch_up()
    connection = sqlite3.connect(images.path, isolation_level=None)
    connection.execute("CREATE TRIGGER broken BEFORE INSERT ON history BEGIN SELECT RAISE(ABORT, 'disk full'); END")
    add(catalog, "a:2")
    try:
        images.catch_up()
    except sqlite3.DatabaseError as error:
        assert "disk full" in str(error)
    assert images.position() == 2
    connection.execute("DROP TRIGGER broken")
    assert len(images.usable("one")) == 2


def test_event_details_are_kept_as_recorded(tmp_path: Path) -> None:
    catalog, images = opened(tmp_path)
    add(catalog, "a:1")
    rows = images.connection().execute("SELECT action, user, detail FROM history ORDER BY id").fetchall()
    assert [row[0] for row in rows] == ["named", "migrated"]
    assert json.loads(rows[1][2])["image"]["id"] == image("a:1").id
