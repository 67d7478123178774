"""A log that the first version wrote is read for ever: same chain, same references, same answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from eventsourcing.persistence import StoredEvent

from catalog.acl import Access
from catalog.application import Catalog
from catalog.chain import verify
from catalog.domain import EVENTS, ImageReference
from catalog.history import Filter, History
from catalog.image_list import ImageList
from catalog.reference import Reference
from catalog.sqlite_log import SqliteLog, SqliteLogFactory
from catalog.states import State

# Written by the first version; never to be written anew.
FIRST = Path(__file__).parent / "logs" / "version-1.jsonl"


def lines() -> list[dict[str, Any]]:
    return [json.loads(line) for line in FIRST.read_text().splitlines()]


@pytest.fixture
def catalog(tmp_path: Path) -> Catalog:
    factory = SqliteLogFactory.at(tmp_path / "events.sqlite")
    log = factory.application_recorder()
    for line in lines():
        event = StoredEvent(UUID(hex=line["stream"]), line["version"], line["topic"], line["state"].encode())
        log.insert_events([event])
    return Catalog(factory)


def test_the_log_has_every_event_that_there_is() -> None:
    assert {line["topic"] for line in lines()} == {event.__dict__["TOPIC"] for event in EVENTS}


def test_its_hashes_come_out_the_same(catalog: Catalog) -> None:
    log: Any = catalog.recorder
    assert isinstance(log, SqliteLog)
    assert [one.hash.hex() for one in log.select_linked(0, 1000)] == [line["hash"] for line in lines()]
    assert verify(log) is None


def test_its_references_are_what_they_were(catalog: Catalog, tmp_path: Path) -> None:
    images = ImageList(tmp_path / "images.sqlite", catalog.recorder, catalog.mapper)
    found = {str(record.reference): record for record in images.all()}
    assert {name: (record.state, record.usable) for name, record in found.items()} == {
        "docker:ubuntu:22.04": (State.READY, True),
        "custom:tool:1": (State.READY, True),
        "docker:quay.io/a/b:1": (State.READY, True),
        "docker:gone:1": (State.REMOVED, False),
    }
    ubuntu = found["docker:ubuntu:22.04"]
    assert ubuntu.access == Access(False, frozenset({1000}))
    assert ubuntu.owner == 1000
    assert ubuntu.attempt is not None
    assert ubuntu.attempt.joined == {1002: None}
    for record in found.values():
        stream = catalog.load(record.reference.uuid)
        assert stream is not None
        assert stream.record == record
    assert len(History(images).happenings(Filter(), limit=100)) == len(lines()) - 4
    images.close()


def test_an_event_of_an_older_class_is_brought_up_to_date_when_read(
    catalog: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As a later version would do it: the class counts up, and says how the older fields become the newer ones.
    def upcast(state: dict[str, Any]) -> None:
        state["user"] = f"user {state['user']}"

    monkeypatch.setattr(ImageReference.Used, "class_version", 2, raising=False)
    monkeypatch.setattr(ImageReference.Used, "upcast_v1_v2", staticmethod(upcast), raising=False)
    stream = Reference("mycluster", "docker", "ubuntu:22.04").uuid
    (used,) = [event for event in catalog.events.get(stream) if isinstance(event, ImageReference.Used)]
    assert used.user == "user bob"
