"""Two gateway processes on one event store: one download, nothing lost, nothing done twice, and either can die."""

from __future__ import annotations

import contextlib
import json
import os
import random
import socket
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from catalog.application import open_factory
from catalog.chain import verify
from catalog.config import EventStoreChoice
from tests.catalog.databases import ferretdb, postgres
from tests.catalog.gateway_fixture import SYSTEM, Minter, serving, wait_for
from tests.catalog.lying_registry import LyingRegistry, lying
from tests.catalog.registry_fixture import build, file, gz, tar
from tests.catalog.test_restart import Bench
from tests.requires import requires
from tests.runtime.munge_daemon import MungeDaemon

pytestmark = requires("munged", "tar2sqfs")

SCALE = int(os.environ.get("SHIFTER_TEST_SCALE", "1"))
IMAGE = build(gz(tar(file("bin/tool", os.urandom(300_000)))))


_PLACE = {"postgresql": "schema", "mongodb": "database"}


class Pair:
    """Two configurations that differ in their own state directories only, and what their pulls meet."""

    def __init__(self, bench: Bench, store: EventStoreChoice, uris: dict[str, str] | None = None) -> None:
        """uris: another way to the store for the gateway `one` or `two`."""
        self.bench = bench
        self.store = store
        self.configs = []
        for name in ("one", "two"):
            made = json.loads(bench.config.read_text())
            made["StateDirectory"] = str(bench.directory / f"state-{name}")
            made["EventStore"] = (
                {"kind": "sqlite", "path": store.uri}
                if store.kind == "sqlite"
                else {"kind": store.kind, "uri": (uris or {}).get(name, store.uri), _PLACE[store.kind]: store.database}
            )
            config = bench.directory / f"{name}.json"
            config.write_text(json.dumps(made))
            self.configs.append(config)

    def serving(self, number: int) -> Any:
        return serving(self.configs[number], environment=self.bench.environment)

    def events(self) -> Counter[str]:
        factory = open_factory(self.store)
        log: Any = factory.application_recorder()
        assert verify(log) is None
        found = Counter(one.topic for one in log.select_notifications(1, 100_000))
        factory.close()
        return found


@pytest.fixture(params=["sqlite", "postgresql", "mongodb"])
def pair(
    request: pytest.FixtureRequest, tmp_path: Path, munged: MungeDaemon, minter: Minter
) -> Iterator[tuple[Pair, LyingRegistry]]:
    with ExitStack() as stack:
        registry = stack.enter_context(lying(IMAGE))
        bench = Bench(tmp_path, munged, minter, registry)
        stack.callback(bench.release)
        if request.param == "sqlite":
            store = EventStoreChoice("sqlite", str(tmp_path / "shared" / "events.sqlite"), "")
        elif request.param == "postgresql":
            store = EventStoreChoice("postgresql", stack.enter_context(postgres()), "gateways")
        else:
            store = EventStoreChoice("mongodb", stack.enter_context(ferretdb()), "gateways")
        yield Pair(bench, store), registry


def test_one_tag_asked_of_both_is_downloaded_once_and_both_see_each_state_at_once(
    pair: tuple[Pair, LyingRegistry],
) -> None:
    both, registry = pair
    bench = both.bench
    with both.serving(0) as one, both.serving(1) as two:
        bench.hold("/blobs/")
        asking = [threading.Thread(target=bench.pull, args=(gateway,)) for gateway in (one, two) for _ in range(3)]
        for thread in asking:
            thread.start()
        for thread in asking:
            thread.join()
        for gateway in (one, two):
            wait_for(lambda gateway=gateway: bench.pull(gateway)["status"] == "PULLING", what="PULLING at both")
        registry.hook = lambda request: None
        bench.released.set()
        wait_for(lambda: bench.pull(one)["status"] == "READY", what="READY at the first")
        assert bench.pull(two)["status"] == "READY"
        assert bench.ready(two)
    assert both.events()["PullRequested"] == 1
    assert both.events()["PullCompleted"] == 1


def test_two_tags_of_one_image_asked_of_two_gateways_are_one_download(pair: tuple[Pair, LyingRegistry]) -> None:
    both, registry = pair
    bench = both.bench
    with both.serving(0) as one, both.serving(1) as two:
        bench.pull(one, "bar:1")
        bench.pull(two, "bar:2")
        for gateway in (one, two):
            for tag in ("bar:1", "bar:2"):
                wait_for(lambda gateway=gateway, tag=tag: bench.ready(gateway, tag), what=f"{tag} everywhere")
    assert len(registry.blob_requests()) == 1


def test_gateways_killed_at_random_lose_no_pull_and_complete_none_twice(pair: tuple[Pair, LyingRegistry]) -> None:
    both, _ = pair
    bench = both.bench
    draw = random.Random(11)
    tags = [f"bar:{number}" for number in range(5 * SCALE)]
    with both.serving(0) as steady:
        for number, tag in enumerate(tags):
            with both.serving(1) as doomed:
                bench.pull([steady, doomed][number % 2], tag)
                threading.Event().wait(draw.uniform(0, 0.2))
                doomed.kill()
        for tag in tags:
            wait_for(lambda tag=tag: bench.ready(steady, tag), what=tag)
        assert bench.queue(steady) == []
    found = both.events()
    assert found["PullRequested"] == found["PullCompleted"] == len(tags)


class Cable:
    """A TCP way to 127.0.0.1:`port` that can be cut and mended; `number` is the port of its near end."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._whole = True
        self._ends: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.number = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        self._whole = False
        for end in self._ends:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def mend(self) -> None:
        self._whole = True

    def close(self) -> None:
        self.cut()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            if not self._whole:
                near.close()
                continue
            far = socket.create_connection(("127.0.0.1", self._port))
            self._ends += [near, far]
            for source, target in ((near, far), (far, near)):
                threading.Thread(target=self._carry, args=(source, target), daemon=True).start()

    def _carry(self, source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                target.sendall(data)
        for end in (source, target):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


@pytest.mark.parametrize("kind", ["postgresql", "mongodb"])
def test_a_pull_of_a_gateway_that_is_cut_off_from_the_store_is_finished_by_the_other_and_completed_once(
    kind: str, tmp_path: Path, munged: MungeDaemon, minter: Minter
) -> None:
    with ExitStack() as stack:
        registry = stack.enter_context(lying(IMAGE))
        bench = Bench(tmp_path, munged, minter, registry)
        stack.callback(bench.release)
        uri = stack.enter_context(postgres() if kind == "postgresql" else ferretdb())
        parts = urlsplit(uri)
        assert parts.port is not None
        cable = Cable(parts.port)
        stack.callback(cable.close)
        both = Pair(
            bench, EventStoreChoice(kind, uri, "gateways"), {"one": uri.replace(f":{parts.port}/", f":{cable.number}/")}
        )
        one, two = stack.enter_context(both.serving(0)), stack.enter_context(both.serving(1))
        bench.gate.unlink()
        bench.pull(one)
        wait_for(bench.reached.exists, what="the converter of the first")
        bench.reached.unlink()
        cable.cut()
        refused = bench.ask(one, "GET", f"/api/lookup/{SYSTEM}/docker/bar:1/")
        assert refused["error"] == "the gateway cannot reach its store now; try again in a moment"
        wait_for(bench.reached.exists, seconds=40, what="the converter of the second")
        bench.gate.touch()
        wait_for(lambda: bench.ready(two), seconds=40, what="READY at the second")
        cable.mend()
        wait_for(lambda: bench.ready(one), seconds=40, what="READY at the first")
        wait_for(lambda: bench.queue(one) == bench.queue(two) == [], what="empty queues")
        # The first still works on what the other has finished: it finds that out and takes new work.
        bench.pull(one, "bar:2")
        wait_for(lambda: bench.ready(one, "bar:2"), seconds=40, what="another pull by the first")
        found = both.events()
        assert (found["PullRequested"], found["PullCompleted"], found["PullFailed"]) == (2, 2, 0)
