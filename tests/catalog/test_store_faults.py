"""The store away, locked, full, or behind a partition: nothing is lost, nothing sticks, and each answer has a reason."""

from __future__ import annotations

import contextlib
import sqlite3
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from catalog.chain import verify
from tests.catalog.databases import running_postgres
from tests.catalog.gateway_fixture import ALICE, SYSTEM, Clock, Content, ImaginedRegistry, InProcess, wait_for
from tests.catalog.lying_registry import lying
from tests.catalog.test_restart import IMAGE, Bench
from tests.catalog.test_two_gateways import Pair
from tests.requires import requires, requires_root


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 3 MB."""
    place = tmp_path / "small"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", place], check=True)
    yield place
    subprocess.run(["umount", "-l", place], check=True)


def look_up(site: InProcess, tag: str = "bar:1") -> Any:
    return site.request("GET", f"/api/lookup/{SYSTEM}/docker/{tag}", ALICE)


@requires_root
def test_a_full_disk_is_said_and_after_room_is_made_all_goes_on(open_gateway: Any, small_disk: Path) -> None:
    site: InProcess = open_gateway(ImaginedRegistry({"bar": Content()}), StateDirectory=str(small_disk / "state"))
    site.pulled("bar:1", ALICE)
    ballast = small_disk / "ballast"
    with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(b"x" * 4096):
            pass
    refused = []
    for number in range(200):  # until the room that the databases still hold is used up
        answer = site.request("POST", f"/api/pull/{SYSTEM}/docker/bar:{number + 10}/", ALICE)
        if answer.status_code != 200:
            refused.append(answer)
            break
    assert refused
    assert refused[0].status_code == 503
    assert refused[0].json["error"] == "the gateway cannot reach its store now; try again in a moment"
    ballast.unlink()
    site.work()
    assert site.pulled("bar:2", ALICE)["status"] == "READY"
    assert look_up(site).status_code == 200
    log: Any = site.gateway.catalog.recorder
    assert verify(log) is None


def test_a_log_that_another_program_locks_makes_a_pull_wait_and_look_ups_not(site: InProcess) -> None:
    site.registry.contents["bar"] = Content()
    site.pulled("bar:1", ALICE)
    other = sqlite3.connect(site.directory / "state" / "events.sqlite", isolation_level=None, check_same_thread=False)
    other.execute("BEGIN IMMEDIATE")
    answers: list[Any] = []
    asking = threading.Thread(target=lambda: answers.append(site.pull("bar:2", ALICE)))
    asking.start()
    assert look_up(site).status_code == 200
    assert answers == []
    other.execute("ROLLBACK")
    asking.join(20)
    assert answers[0]["status"] == "INIT"


def test_an_outcome_that_cannot_be_recorded_is_recorded_when_the_store_is_back(
    site: InProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    from eventsourcing.persistence import OperationalError

    site.registry.contents["bar"] = Content()
    recorder = site.gateway.catalog.recorder
    insert, away = recorder.insert_events, [3]

    def flaky(events: Any, **options: Any) -> Any:
        if away[0] and any(event.topic == "PullCompleted" for event in events):
            away[0] -= 1
            raise OperationalError("the server closed the connection")
        return insert(events, **options)

    monkeypatch.setattr(recorder, "insert_events", flaky)
    monkeypatch.setattr("catalog.workers._RETRY_STORE", 0.01)
    assert site.pulled("bar:1", ALICE)["status"] == "READY"
    assert away == [0]
    assert site.registry.pulls == ["bar:1"]


def test_a_clock_that_jumps_back_an_hour_in_the_middle_of_a_pull_harms_nothing(open_gateway: Any) -> None:
    clock = Clock()
    registry = ImaginedRegistry({"bar": Content()})
    site: InProcess = open_gateway(registry, clock)

    def jump(stage: object) -> None:
        clock.now -= 3600

    registry.hook = jump
    assert site.pulled("bar:1", ALICE)["status"] == "READY"
    times = [row[0] for row in site.gateway.images.connection().execute("SELECT at FROM history ORDER BY id")]
    assert times == sorted(times)
    assert look_up(site).status_code == 200


@requires("munged", "tar2sqfs")
def test_a_gateway_cut_off_from_its_database_answers_with_a_reason_and_finishes_its_pulls_later(
    tmp_path: Path, munged: Any, minter: Any
) -> None:
    from catalog.config import EventStoreChoice

    with running_postgres() as server, lying(IMAGE) as registry:
        bench = Bench(tmp_path, munged, minter, registry)
        pair = Pair(bench, EventStoreChoice("postgresql", server.uri, "gateways"))
        with pair.serving(0) as gateway:
            bench.hold("/blobs/")
            bench.pull(gateway)
            wait_for(lambda: bench.pull(gateway)["status"] == "PULLING", what="the pull")
            server.stop()
            refused = bench.ask(gateway, "GET", f"/api/lookup/{SYSTEM}/docker/bar:1/")
            assert (refused["status"], refused["error"]) == (
                503,
                "the gateway cannot reach its store now; try again in a moment",
            )
            sick = bench.ask(gateway, "GET", "/healthz")
            assert sick["healthy"] is False
            server.start()
            bench.release()
            wait_for(lambda: bench.ready(gateway), seconds=40, what="READY after the partition")
        assert pair.events()["PullCompleted"] == 1
