"""The hash chain: whatever is changed, removed, put in or cut off is found, and the first bad event named."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from catalog.chain import verify
from catalog.sqlite_log import SqliteLog
from tests.catalog.test_image_list import add, opened


@pytest.fixture
def log(tmp_path: Path) -> tuple[SqliteLog, sqlite3.Connection]:
    catalog, _ = opened(tmp_path)
    for number in range(5):
        add(catalog, f"a:{number}")  # two events each
    recorder = catalog.recorder
    assert isinstance(recorder, SqliteLog)
    recorder.keep = catalog  # type: ignore[attr-defined]  # the catalog closes the log when it goes
    return recorder, sqlite3.connect(tmp_path / "events.sqlite", isolation_level=None)


def test_an_untouched_log_has_no_fault(log: tuple[SqliteLog, sqlite3.Connection]) -> None:
    assert verify(log[0]) is None
    assert verify(log[0], page=3) is None
    assert log[0].head().id == 10


@pytest.mark.parametrize(
    ("tampering", "number", "reason"),
    [
        ("UPDATE stored_events SET state = replace(state, 'a:1', 'a:9') WHERE id = 3", 3, "is not what was recorded"),
        ("UPDATE stored_events SET topic = 'Removed' WHERE id = 6", 6, "is not what was recorded"),
        ("UPDATE stored_events SET originator_version = 7 WHERE id = 4", 4, "is not what was recorded"),
        ("UPDATE stored_events SET hash = zeroblob(32) WHERE id = 5", 5, "is not what was recorded"),
        ("DELETE FROM stored_events WHERE id = 4", 4, "event 4 is missing; the next one found is 5"),
        ("DELETE FROM stored_events WHERE id = 1", 1, "event 1 is missing"),
        ("DELETE FROM stored_events WHERE id >= 9", 9, "events 9 to 10 are missing from the end"),
        ("DELETE FROM stored_events", 1, "events 1 to 10 are missing"),
        ("UPDATE stored_events SET originator_id = 'nobody' WHERE id = 3", 3, "is not what was recorded"),
        ("UPDATE stored_events SET state = 5 WHERE id = 7", 7, "is not what was recorded"),
        ("UPDATE stored_events SET topic = x'ff', hash = 'x' WHERE id = 7", 7, "is not what was recorded"),
        (
            "INSERT INTO stored_events SELECT 11, originator_id, 9, topic, state, hash FROM stored_events WHERE id = 3",
            11,
            "was put after the end of the log",
        ),
    ],
)
def test_the_first_bad_or_missing_event_is_named(
    log: tuple[SqliteLog, sqlite3.Connection], tampering: str, number: int, reason: str
) -> None:
    log[1].execute(tampering)
    fault = verify(log[0])
    assert fault is not None
    assert (fault.id, reason in fault.reason) == (number, True), fault


def test_two_events_that_changed_places_are_found(log: tuple[SqliteLog, sqlite3.Connection]) -> None:
    for old, new in ((3, 100), (5, 3), (100, 5)):
        log[1].execute("UPDATE stored_events SET id = ? WHERE id = ?", (new, old))
    fault = verify(log[0])
    assert fault is not None
    assert fault.id == 3


def test_a_log_that_was_cut_and_continued_is_found(log: tuple[SqliteLog, sqlite3.Connection], tmp_path: Path) -> None:
    log[1].execute("DELETE FROM stored_events WHERE id = 10")
    catalog, _ = opened(tmp_path)
    add(catalog, "new:1")
    fault = verify(log[0])
    assert fault is not None
    assert fault.id == 10
