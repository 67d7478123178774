"""Several processes on one SQLite event log. (What all stores must do is in test_stores.)"""

from __future__ import annotations

import multiprocessing
from pathlib import Path
from uuid import uuid4

from eventsourcing.persistence import StoredEvent

from catalog.chain import verify
from catalog.sqlite_log import SqliteLog, SqliteLogFactory


def write(path: Path, count: int) -> None:
    recorder = SqliteLogFactory.at(path).application_recorder()
    for _ in range(count):
        stream = uuid4()
        recorder.insert_events([StoredEvent(stream, 1, "t", b"a"), StoredEvent(stream, 2, "t", b"b")])


def test_processes_that_write_together_leave_one_chain_without_gaps(tmp_path: Path) -> None:
    path = tmp_path / "events.sqlite"
    SqliteLogFactory.at(path).application_recorder()
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=write, args=(path, 25)) for _ in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
        assert writer.exitcode == 0
    log = SqliteLogFactory.at(path).application_recorder()
    assert isinstance(log, SqliteLog)
    assert [one.id for one in log.select_notifications(1, 1000)] == list(range(1, 201))
    assert verify(log) is None
