"""Leases: one holder at a time, nobody waits for the dead, and no clock is compared."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from catalog.leases import Leases, Lookup, Progress, SideTableUnavailable, SqliteSideTable, new_instance, process_gone


class Time:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def table(tmp_path: Path) -> SqliteSideTable:
    return SqliteSideTable(tmp_path / "leases.sqlite")


def leases(table: SqliteSideTable, time: Time, host: str) -> Leases:
    return Leases(table, 10, instance=f"{host}:1:1:x", monotonic=time)


def test_one_process_holds_a_lease_at_a_time(table: SqliteSideTable) -> None:
    time = Time()
    one, two = leases(table, time, "one"), leases(table, time, "two")
    assert one.take("a")
    assert one.take("a")
    assert not two.take("a")
    one.drop("a")
    assert two.take("a")
    one.drop("a")  # not his any more
    assert two.holds("a")


def test_a_holder_whose_heart_beats_is_never_robbed_and_one_that_stopped_is(table: SqliteSideTable) -> None:
    time = Time()
    one, two = leases(table, time, "one"), leases(table, time, "two")
    one.take("a")
    for _ in range(10):
        time.now += 9
        one.beat()
        two.beat()
        assert not two.take("a")
    time.now += 9
    two.beat()
    assert not two.take("a")
    time.now += 2
    assert two.take("a")
    assert not one.holds("a")


def test_only_one_of_many_takes_a_dead_one_s_lease(table: SqliteSideTable) -> None:
    time = Time()
    dead = leases(table, time, "dead")
    dead.take("a")
    heirs = [leases(table, time, f"heir{number}") for number in range(5)]
    for heir in heirs:
        heir.beat()
    time.now += 11
    for heir in heirs * 2:
        heir.beat()
    assert sum(heir.take("a") for heir in heirs) == 1


def test_the_lease_of_a_process_that_is_gone_from_this_host_is_free_at_once(table: SqliteSideTable) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", "from catalog.leases import new_instance; print(new_instance())"],
        capture_output=True, text=True, check=True,
    ).stdout.strip()  # fmt: skip
    assert process_gone(ended)
    assert not process_gone(new_instance())
    assert not process_gone("otherhost:1:1:x")
    Leases(table, 1000, instance=ended).take("a")
    assert Leases(table, 1000).take("a")


def test_a_process_with_the_same_number_started_later_is_another_one() -> None:
    host, pid, start, rest = new_instance().rsplit(":", 3)
    assert pid == str(os.getpid())
    assert process_gone(f"{host}:{pid}:{int(start) - 1}:{rest}")


def test_a_process_of_another_process_namespace_is_not_judged_by_its_number() -> None:
    host, pid, start, rest = new_instance().rsplit(":", 3)
    name, _, namespace = host.partition("/")
    gone = f"{int(start) - 1}:{rest}"
    assert process_gone(f"{name}/{namespace}:{pid}:{gone}")
    assert not process_gone(f"{name}/{int(namespace) + 1}:{pid}:{gone}")


def test_leases_are_given_back_at_the_end(table: SqliteSideTable) -> None:
    time = Time()
    one, two = leases(table, time, "one"), leases(table, time, "two")
    one.take("a")
    one.close()
    assert two.take("a")
    assert "one:1:1:x" not in table.beats()


def test_each_user_is_told_once_an_attempt(table: SqliteSideTable) -> None:
    assert table.tell("k", 1, 7)
    assert not table.tell("k", 1, 7)
    assert table.tell("k", 1, 8)
    assert table.tell("k", 2, 7)


def test_progress_is_the_newest_written(table: SqliteSideTable) -> None:
    assert table.progress("k") is None
    table.save_progress("k", Progress(1, 5, 10))
    table.save_progress("k", Progress(1, 6, 10, 1, 2, "waiting"))
    assert table.progress("k") == Progress(1, 6, 10, 1, 2, "waiting")


def test_look_ups_are_listed_newest_last(table: SqliteSideTable) -> None:
    made = [Lookup("s", "docker", f"a:{n % 2}", "f" * 64, n, f"u{n}", float(n)) for n in range(6)]
    table.add_lookups(made)
    table.add_lookups([Lookup("other", "docker", "a:0", "f" * 64, 1, "u", 9.0)])
    assert table.lookups("s", limit=2) == made[-2:]
    assert table.lookups("s", limit=9, image="a:1") == made[1::2]
    assert table.lookups("s", limit=9, since=2, until=4) == made[2:4]


def test_look_ups_that_cannot_be_written_once_can_be_later(table: SqliteSideTable, tmp_path: Path) -> None:
    one = Lookup("s", "docker", "a:1", "f" * 64, 1, "u", 1.0)
    other = sqlite3.connect(tmp_path / "leases.sqlite", isolation_level=None)
    other.execute("CREATE TRIGGER full BEFORE INSERT ON lookups BEGIN SELECT RAISE(ABORT, 'disk full'); END")
    with pytest.raises(SideTableUnavailable, match="disk full"):
        table.add_lookups([one, one])
    other.execute("DROP TRIGGER full")
    table.add_lookups([one])
    assert table.lookups("s", limit=9) == [one]
