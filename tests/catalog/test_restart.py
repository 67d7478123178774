"""A gateway killed with -9 at any stage of a pull: its successor finishes the pull, unasked, or says why not.

Real processes, the real pipeline, and a registry and a converter that wait when they are told to.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from catalog.chain import verify
from catalog.sqlite_log import SqliteLog, SqliteLogFactory
from tests.catalog.gateway_fixture import ALICE, SYSTEM, Minter, Served, document, serving, wait_for
from tests.catalog.lying_registry import Answer, LyingRegistry, Request, error, lying
from tests.catalog.registry_fixture import build, file, gz, tar
from tests.requires import find, requires
from tests.runtime.munge_daemon import MungeDaemon

pytestmark = requires("munged", "tar2sqfs")

SCALE = int(os.environ.get("SHIFTER_TEST_SCALE", "1"))
IMAGE = build(gz(tar(file("bin/tool", os.urandom(200_000)))))


class Bench:
    """A gateway's configuration and what its pulls meet: a registry and a converter that can be held."""

    def __init__(self, directory: Path, munged: MungeDaemon, minter: Minter, registry: LyingRegistry) -> None:
        self.minter = minter
        self.registry = registry
        self.directory = directory
        self.released = threading.Event()
        made = document(directory, Locations={"site": {"url": registry.url}}, LeaseSeconds=2)
        made["Platforms"][SYSTEM]["mungeSocketPath"] = str(munged.socket)
        self.config = directory / "imagemanager.json"
        self.config.write_text(json.dumps(made))
        self.gate = directory / "converter-may-run"
        self.gate.touch()
        self.reached = directory / "converter-reached"
        tools = directory / "tools"
        tools.mkdir()
        converter = tools / "tar2sqfs"
        converter.write_text(
            f'#!/bin/sh\n[ "$1" = --version ] && exec {find("tar2sqfs")} --version\n: > {self.reached}\n'
            f"while [ ! -e {self.gate} ]; do sleep 0.02; done\n"
            f'exec {find("tar2sqfs")} "$@"\n'
        )
        converter.chmod(0o755)
        self.environment = {"PATH": f"{tools}:{os.environ['PATH']}"}

    def serving(self) -> Any:
        return serving(self.config, environment=self.environment)

    def ask(
        self, served: Served, method: str, path: str, *, uid: int = 0, login: str | None = None, body: Any = None
    ) -> dict[str, Any]:
        payload = json.dumps({"authorized_locations": {"site": login}}).encode() if login else b""
        headers = {"authentication": self.minter.credential(uid, payload)}
        request = urllib.request.Request(
            served.url + path,
            method=method,
            headers=headers,
            data=json.dumps(body).encode() if body else b"" if method == "POST" else None,
        )
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                found: dict[str, Any] = json.load(answer)
        except urllib.error.HTTPError as refused:
            found = json.load(refused)
        return found

    def pull(self, served: Served, tag: str = "bar:1", **options: Any) -> dict[str, Any]:
        return self.ask(served, "POST", f"/api/pull/{SYSTEM}/docker/{tag}/", **options)

    def ready(self, served: Served, tag: str = "bar:1") -> bool:
        return self.ask(served, "GET", f"/api/lookup/{SYSTEM}/docker/{tag}/").get("status") == "READY"

    def queue(self, served: Served) -> list[dict[str, Any]]:
        entries: list[dict[str, Any]] = self.ask(served, "GET", f"/api/queue/{SYSTEM}/")["list"]
        return entries

    def hold(self, part: str) -> None:
        """From now on the registry keeps who asks for a path with `part` in it waiting, until `released`."""
        self.released.clear()

        def hook(request: Request) -> Answer | None:
            if part in request.path and not self.released.is_set():
                self.released.wait(30)
                return error(503, "UNAVAILABLE", "held")
            return None

        self.registry.hook = hook

    def release(self) -> None:
        self.released.set()
        self.registry.hook = lambda request: None
        self.gate.touch()

    def log(self) -> SqliteLog:
        log = SqliteLogFactory.at(self.directory / "state" / "events.sqlite").application_recorder()
        assert isinstance(log, SqliteLog)
        return log


@contextmanager
def _bench(directory: Path, munged: MungeDaemon, minter: Minter) -> Iterator[Bench]:
    with lying(IMAGE) as registry:
        made = Bench(directory, munged, minter, registry)
        yield made
        made.release()


@pytest.fixture
def bench(tmp_path: Path, munged: MungeDaemon, minter: Minter) -> Iterator[Bench]:
    with _bench(tmp_path, munged, minter) as made:
        yield made


LAYER = json.loads(IMAGE.manifest)["layers"][0]["digest"]


@pytest.mark.parametrize(
    ("held", "stage"),
    [("/manifests/", "PULLING"), (f"/blobs/{LAYER}", "PULLING"), ("converter", "CONVERSION")],
    ids=["manifest", "layer", "converter"],  # the digest is another one in each of the parallel processes
)
def test_a_pull_whose_gateway_was_killed_at_a_stage_is_finished_by_the_next_one(
    bench: Bench, held: str, stage: str
) -> None:
    if held == "converter":
        bench.gate.unlink()
    else:
        bench.hold(held)
    with bench.serving() as first:
        bench.pull(first)
        wait_for(lambda: bench.pull(first)["status"] == stage, what=f"stage {stage}")
        if held == "converter":
            wait_for(bench.reached.exists, what="the converter")
        else:
            wait_for(lambda: bench.registry.paths(held), what="the request that is held")
        first.kill()
    bench.release()
    with bench.serving() as second:
        wait_for(lambda: bench.ready(second), what="READY, without being asked")
        assert bench.queue(second) == []
        assert second.stop() == 0
    link = bench.directory / "images" / f"{IMAGE.id}.squashfs"
    assert link.resolve().is_file()
    assert verify(bench.log()) is None


def test_a_gateway_killed_while_the_examiner_looks_at_an_image_has_it_examined_again(bench: Bench) -> None:
    asked = bench.directory / "examiner-reached"
    examiner = bench.directory / "tools" / "examiner"
    examiner.write_text(
        f"#!/bin/sh\n: > {asked}\nwhile [ ! -e {bench.gate} ]; do sleep 0.02; done\necho it is not for us >&2\nexit 1\n"
    )
    examiner.chmod(0o755)
    bench.config.write_text(json.dumps({**json.loads(bench.config.read_text()), "examiner": str(examiner)}))
    with bench.serving() as first:
        bench.pull(first)
        wait_for(bench.reached.exists, what="the converter")
        bench.gate.unlink()
        wait_for(asked.exists, what="the examiner")
        assert bench.pull(first)["status"] == "TRANSFER"
        first.kill()
    bench.release()
    with bench.serving() as second:

        def refused() -> list[str]:
            return [entry["status_message"] for entry in bench.queue(second) if entry["status"] == "FAILURE"]

        (reason,) = wait_for(refused, what="the refusal, without being asked")
        assert "it is not for us" in reason
        assert not list((bench.directory / "expand").iterdir())
    assert not list((bench.directory / "images").glob("*.squashfs"))


def test_a_gateway_killed_in_an_import_has_it_finished_by_the_next_one(bench: Bench) -> None:
    made = {**json.loads(bench.config.read_text()), "ImportUsers": "all"}
    bench.config.write_text(json.dumps(made))
    tree, file = bench.directory / "tree", bench.directory / "mine.squashfs"
    tree.mkdir()
    (tree / "big").write_bytes(os.urandom(20_000_000))
    subprocess.run(["mksquashfs", tree, file, "-quiet", "-no-xattrs", "-comp", "gzip"], check=True, capture_output=True)
    path = f"/api/doimport/{SYSTEM}/custom/mine:1/"
    with bench.serving() as first:
        answer = bench.ask(first, "POST", path, body={"filepath": str(file), "format": "squashfs"})
        assert answer["status"] in {"INIT", "HASHING", "TRANSFER"}
        first.kill()
    with bench.serving() as second:

        def there() -> bool:
            found = bench.ask(second, "GET", f"/api/lookup/{SYSTEM}/custom/mine:1/")
            return found.get("status") == "READY"

        wait_for(there, what="READY, without being asked")
        assert bench.queue(second) == []
    assert verify(bench.log()) is None


def test_gateways_killed_at_any_moment_lose_nothing_and_nothing_sticks(bench: Bench) -> None:
    # Moments are drawn from the whole length of a pull; a run with SHIFTER_TEST_SCALE=25 kills a hundred times.
    draw = random.Random(7)
    for number in range(4 * SCALE):
        tag = f"bar:{number}"
        with bench.serving() as served:
            bench.pull(served, tag)
            threading.Event().wait(draw.uniform(0, 0.15))
            served.kill()
    with bench.serving() as last:
        for number in range(4 * SCALE):
            wait_for(lambda number=number: bench.ready(last, f"bar:{number}"), what=f"bar:{number}")
        assert bench.queue(last) == []
    assert verify(bench.log()) is None
    temporary = [path for store in ("cache", "images/cas") for path in (bench.directory / store / "tmp").iterdir()]
    assert len(temporary) <= 4 * SCALE * 3  # what a killed converter left is swept by gc


def test_a_private_pull_that_lost_its_credential_fails_with_what_to_do(bench: Bench) -> None:
    bench.hold("/manifests/")
    with bench.serving() as first:
        bench.pull(first, uid=ALICE, login="alice:secret")
        wait_for(lambda: bench.pull(first, uid=ALICE, login="alice:secret")["status"] == "PULLING")
        first.kill()
    bench.release()
    with bench.serving() as second:

        def failed() -> list[dict[str, Any]]:
            entries = bench.ask(second, "GET", f"/api/queue/{SYSTEM}/", uid=ALICE)["list"]
            return [entry for entry in entries if entry["status"] == "FAILURE"]

        (entry,) = wait_for(failed, what="the failure")
        assert "keeps no credentials on disk; please pull again" in entry["status_message"]


def test_a_stopped_gateway_leaves_its_pull_to_the_next_start(bench: Bench) -> None:
    bench.gate.unlink()
    with bench.serving() as first:
        bench.pull(first)
        wait_for(bench.reached.exists, what="the converter")
        assert first.stop() == 0
    bench.release()
    with bench.serving() as second:
        wait_for(lambda: bench.ready(second), what="READY")


def test_the_command_refuses_a_bad_configuration_in_one_line(tmp_path: Path) -> None:
    import sys

    config = tmp_path / "imagemanager.json"
    config.write_text(json.dumps(document(tmp_path, WorkerThreads="many")))
    done = subprocess.run(
        [sys.executable, "-m", "catalog.gateway", "--config", str(config)], capture_output=True, text=True
    )
    assert done.returncode == 1
    assert done.stderr == (f"shifter-gateway: {config}: WorkerThreads is 'many'; allowed: a number from 1 to 256\n")


def test_a_port_that_is_taken_is_said_in_one_line(bench: Bench) -> None:
    import sys

    with bench.serving() as first:
        port = first.url.rpartition(":")[2]
        done = subprocess.run(
            [sys.executable, "-m", "catalog.gateway", "--config", str(bench.config), "--port", port],
            capture_output=True, text=True, timeout=30,
        )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == f"shifter-gateway: cannot listen on 127.0.0.1:{port}: Address already in use"
