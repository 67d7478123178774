"""Rows of the gateway: look-ups as clients make them, the list of a large site, the event log, and questions about the past."""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

from eventsourcing.persistence import StoredEvent
from eventsourcing.sqlite import SQLiteApplicationRecorder, SQLiteDatastore

from bench import Measured, row
from catalog.acl import Access
from catalog.application import Catalog
from catalog.domain import ImageReference
from catalog.history import Filter, History
from catalog.image_list import ImageList
from catalog.leases import Lookup, SqliteSideTable
from catalog.record import Image
from catalog.reference import Reference
from catalog.sqlite_log import SqliteLogFactory
from catalog.states import Stage
from catalog.usage import NOW, usage
from runtime import munge
from tests.catalog.gateway_fixture import SYSTEM, document, serving
from tests.catalog.lying_registry import lying
from tests.catalog.registry_fixture import build, file, gz, tar
from tests.runtime.munge_daemon import running

BIG = int(os.environ.get("SHIFTER_BENCH_EVENTS", "1000000"))


def image(number: int) -> Image:
    digest = hashlib.sha256(str(number).encode()).hexdigest()
    env = ("PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C.UTF-8")
    return Image(
        digest, digest[::-1], 10**8 + number, "squashfs", "amd64", True, env, ("/bin/sh",), None, "/", {"a": "b"}
    )


def fill(state: Path, references: int) -> None:
    """An event log in which `references` images of SYSTEM are ready, written in large saves."""
    state.mkdir(parents=True, exist_ok=True)
    catalog = Catalog(SqliteLogFactory.at(state / "events.sqlite"))
    now = time.time()
    batch: list[ImageReference] = []
    for number in range(references):
        one = ImageReference.name(Reference(SYSTEM, "docker", f"group{number % 97}/image{number}:1"), now)
        one.migrate(image(number), Access(True), now, owner=number % 50, user=f"u{number % 50}")
        batch.append(one)
        if len(batch) == 1000:
            catalog.save(*batch)
            batch = []
    if batch:
        catalog.save(*batch)
    catalog.close()


@contextmanager
def gateway(references: int, **changes: object) -> Iterator[tuple[str, int, Path, int]]:
    """A gateway process with so many images: host, port, munge socket, pid."""
    with tempfile.TemporaryDirectory() as place, running() as munged:
        directory = Path(place)
        fill(directory / "state", references)
        made = document(directory, Limits={"RequestsPerSecond": 0}, LogLevel="WARNING", **changes)
        made["Platforms"][SYSTEM]["mungeSocketPath"] = str(munged.socket)
        config = directory / "imagemanager.json"
        config.write_text(json.dumps(made))
        with serving(config) as served:
            host, _, port = served.url.removeprefix("http://").partition(":")
            yield host, int(port), munged.socket, served.process.pid


def lookups(connections: int, count: int) -> tuple[float, float]:
    """Look-ups a second and the 99th percentile in ms; each with a fresh credential, over kept connections.

    The clients are processes of their own: threads of one would measure their interpreter.
    """
    with gateway(1000) as (host, port, socket, _):
        per_client = count // connections
        clients = [
            subprocess.Popen(
                [sys.executable, "-m", "bench.lookup_client", host, str(port), str(socket), SYSTEM, str(share), str(per_client)],
                stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True,
            )
            for share in _shares(connections)
        ]  # fmt: skip
        for client in clients:
            assert client.stdout is not None
            client.stdout.readline()
        began = time.perf_counter()
        for client in clients:
            assert client.stdin is not None
            client.stdin.write("go\n")
            client.stdin.flush()
        waits: list[float] = []
        for client in clients:
            assert client.stdout is not None
            waits += json.loads(client.stdout.readline())
        took = time.perf_counter() - began
        for client in clients:
            client.communicate()
    waits.sort()
    return len(waits) / took, waits[int(len(waits) * 0.99)] * 1000


def _shares(connections: int) -> list[int]:
    """How many connections each client process keeps."""
    processes = 1 if connections == 1 else 2
    return [connections // processes] * processes


@row("lookup.c1", unit="look-ups/s")
def lookup_one() -> Measured:
    return Measured(lookups(1, 2000)[0])


@row("lookup.c32", unit="look-ups/s", goal=2000)
def lookup_many() -> Measured:
    return Measured(lookups(32, 8000)[0])


@row("lookup.p99", unit="ms", goal=50, better="less")
def lookup_slowest() -> Measured:
    """At 32 connections."""
    return Measured(lookups(32, 8000)[1])


@row("list.10k", unit="ms", goal=150, better="less")
def list_many() -> Measured:
    with gateway(10_000) as (host, port, socket, _):
        connection = http.client.HTTPConnection(host, port)
        best = float("inf")
        for _ in range(5):
            credential = munge.encode(b"", socket)
            began = time.perf_counter()
            connection.request("GET", f"/api/list/{SYSTEM}/", headers={"authentication": credential})
            body = connection.getresponse().read()
            best = min(best, time.perf_counter() - began)
        assert len(json.loads(body)["list"]) == 10_000
    return Measured(best * 1000)


@row("gateway.memory.100k", unit="MB", goal=150, better="less")
def memory() -> Measured:
    """Resident memory of a gateway with 100,000 references after a full list and a thousand look-ups."""
    with gateway(100_000) as (host, port, _socket, pid):
        connection = http.client.HTTPConnection(host, port)
        for number in range(1000):
            connection.request("GET", f"/api/lookup/{SYSTEM}/docker/group{number % 97}%2Fimage{number}%3A1/")
            connection.getresponse().read()
        status = Path(f"/proc/{pid}/status").read_text()
    (line,) = [line for line in status.splitlines() if line.startswith("VmRSS:")]
    return Measured(int(line.split()[1]) / 1000)


def _saves(insert: Callable[[Sequence[StoredEvent]], object], count: int) -> float:
    state = json.dumps({"stage": "PULLING", "worker": "host:1:1:abc/worker-0", "timestamp": "x" * 40}).encode()
    began = time.perf_counter()
    for _ in range(count):
        insert([StoredEvent(uuid4(), 1, "StageReached", state)])
    return time.perf_counter() - began


@row("append", unit="events/s", goal=1.3, against="bare library", better="less")
def append() -> Measured:
    """Single saves to disk; the ratio is our time over that of the library's own recorder, in turn on one disk."""
    count = 300
    with tempfile.TemporaryDirectory(dir=Path(__file__).parent.parent / "build") as place:
        ours = SqliteLogFactory.at(Path(place) / "ours.sqlite").application_recorder()
        bare = SQLiteApplicationRecorder(SQLiteDatastore(str(Path(place) / "bare.sqlite")))
        bare.create_table()
        mine, other = float("inf"), float("inf")
        for _ in range(5):
            mine = min(mine, _saves(ours.insert_events, count))
            other = min(other, _saves(bare.insert_events, count))
    return Measured(count / mine, mine / other)


@row("rebuild", unit="events/s", goal=20_000)
def rebuild() -> Measured:
    """The image list made anew from a log of pulls as they are: six events each."""
    with tempfile.TemporaryDirectory() as place:
        catalog, count = history_log(Path(place), 60_000)
        images = ImageList(Path(place) / "images.sqlite", catalog.recorder, catalog.mapper)
        began = time.perf_counter()
        images.rebuild()
        took = time.perf_counter() - began
        images.close()
        catalog.close()
    return Measured(count / took)


def history_log(place: Path, events: int) -> tuple[Catalog, int]:
    """A log of about so many events: pulls of a growing number of tags by fifty users, over a year."""
    catalog = Catalog(SqliteLogFactory.at(place / "events.sqlite"))
    draw = random.Random(1)
    known: list[ImageReference] = []
    written, now = 0, 1_700_000_000.0
    pending: dict[object, ImageReference] = {}
    while written < events:
        now += 31_000_000 / events * 6
        if len(known) < 20_000 and (not known or draw.random() < 0.3):
            one = ImageReference.name(Reference(SYSTEM, "docker", f"group{len(known) % 97}/image{len(known)}:1"), now)
            known.append(one)
        else:
            one = draw.choice(known)
        uid = draw.randrange(50)
        one.request_pull(now, uid=uid, user=f"u{uid}", gid=uid, asked=None, admin=False, credentialed=False,
                         gateway="g", location="site")  # fmt: skip
        number = one.record.attempt.number if one.record.attempt else 0
        for stage in (Stage.PULLING, Stage.CONVERSION, Stage.TRANSFER):
            one.reach(stage, now, "w", attempt=number, takeover=stage is Stage.PULLING)
        if draw.random() < 0.1:
            one.fail("the registry went away", now, "w", attempt=number)
        else:
            made = image(draw.randrange(100_000))
            access, owner = one.access_after(made)
            one.complete(made, access, owner, now, "w", attempt=number)
        written += len(one.pending_events) if one.id not in pending else 0
        pending[one.id] = one
        if len(pending) == 500:
            written = _flush(catalog, pending)
    _flush(catalog, pending)
    return catalog, catalog.recorder.max_notification_id() or 0


def _flush(catalog: Catalog, pending: dict[object, ImageReference]) -> int:
    # Not catalog.save: it would also take a snapshot of each, one by one.
    events = [event for one in pending.values() for event in one.collect_events()]
    catalog.events.put(events)
    pending.clear()
    return catalog.recorder.max_notification_id() or 0


@row("history.1M", unit="ms", goal=1000, better="less")
def history() -> Measured:
    """The slowest of the questions about the past, over a million events, and over as many look-ups."""
    with tempfile.TemporaryDirectory() as place:
        catalog, count = history_log(Path(place), BIG)
        images = ImageList(Path(place) / "images.sqlite", catalog.recorder, catalog.mapper)
        table = lookup_log(Path(place) / "leases.sqlite", BIG)
        past = History(images)
        middle = images.connection().execute("SELECT at FROM history WHERE id = ?", (count // 2,)).fetchone()[0]
        some = image(4711).id
        questions: dict[str, Callable[[], object]] = {
            "history": lambda: past.happenings(Filter(), limit=1000),
            "history --user": lambda: past.happenings(Filter(user="u7"), limit=1000),
            "history --image": lambda: past.happenings(Filter(image="group1/image1:1"), limit=1000),
            "history --image id": lambda: past.happenings(Filter(image=some), limit=1000),
            "history --image pattern": lambda: past.happenings(Filter(image="group1/*"), limit=1000),
            "history --since": lambda: past.happenings(Filter(since=middle, until=middle + 86400), limit=1000),
            "history of nobody": lambda: past.happenings(Filter(user="nobody"), limit=1000),
            "failures": lambda: past.happenings(Filter(action="failure"), limit=1000),
            "failures of one": lambda: past.happenings(Filter(action="failure", user="u7"), limit=1000),
            "images": lambda: past.spans_at(9e17),
            "images --as-of": lambda: past.spans_at(middle),
            "diff": lambda: past.difference(middle, middle + 30 * 86400),
            "who-can-run": lambda: past.who_can_run("group1/image1:1", 9e17),
            "who-can-run --as-of": lambda: past.who_can_run(some, middle),
            "who-ran": lambda: table.lookups(SYSTEM, limit=1000),
            "who-ran tag": lambda: table.lookups(SYSTEM, limit=1000, image="group1/image1:1"),
            "usage": lambda: usage(past.spans_at(NOW)),
            "usage --as-of": lambda: usage(past.spans_at(middle)),
        }
        took = {}
        for name, question in questions.items():
            began = time.perf_counter()
            question()
            took[name] = (time.perf_counter() - began) * 1000
        for name, milliseconds in sorted(took.items(), key=lambda item: -item[1]):
            print(f"  {name}: {milliseconds:.0f} ms over {count} events", file=sys.stderr)
        images.close()
        table.close()
        catalog.close()
    return Measured(max(took.values()))


def lookup_log(path: Path, lookups: int) -> SqliteSideTable:
    """The look-ups that Metrics records: of 20,000 tags by fifty users."""
    table = SqliteSideTable(path)
    for first in range(0, lookups, 10_000):
        table.add_lookups(
            Lookup(SYSTEM, "docker", f"group{n % 97}/image{n % 20_000}:1", image(n % 20_000).id, n % 50, f"u{n % 50}", 1.7e9 + n)
            for n in range(first, min(first + 10_000, lookups))
        )  # fmt: skip
    return table


@row("coalesce.100", unit="registry fetches", goal=1, better="less")
def coalesce() -> Measured:
    """A hundred simultaneous pulls of one tag: how often the registry gave the layer away."""
    content = build(gz(tar(file("bin/tool", os.urandom(2_000_000)))))
    with lying(content) as registry, gateway(0, Locations={"site": {"url": registry.url}}) as (host, port, socket, _):
        credentials = [munge.encode(b"", socket) for _ in range(100)]

        def ask(credential: str) -> None:
            connection = http.client.HTTPConnection(host, port)
            connection.request("POST", f"/api/pull/{SYSTEM}/docker/bar%3A1/", headers={"authentication": credential})
            connection.getresponse().read()

        threads = [threading.Thread(target=ask, args=(credential,)) for credential in credentials]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        connection = http.client.HTTPConnection(host, port)
        end = time.monotonic() + 30
        while time.monotonic() < end:
            connection.request("GET", f"/api/lookup/{SYSTEM}/docker/bar%3A1/")
            answer = connection.getresponse()
            answer.read()
            if answer.status == 200:
                break
            time.sleep(0.02)
        return Measured(len(registry.blob_requests()))
