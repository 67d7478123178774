"""Gateways for tests: one in the test's process with a pull that the test decides, and one as a process of its own.

Credentials are real ones of a munged of the test's own, made by child processes with the uid in question.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from falcon.testing import Result, TestClient

from cas.store import Store
from catalog.config import Configuration, parse
from catalog.credential import Credential
from catalog.failure import PullFailed
from catalog.gateway import READY_LINE, Gateway
from catalog.pull import Observer, PulledImage
from catalog.reference import RegistryReference
from catalog.states import Stage
from runtime import munge
from tests.runtime.munge_daemon import MungeDaemon, running

SYSTEM = "mycluster"
ALICE, BOB, CAROL = 61001, 61002, 61003
"""Uids that no account has; their primary gid is the same number."""


def document(directory: Path, **changes: Any) -> dict[str, Any]:
    """An imagemanager.json below `directory`; `changes` are top keys, None removes one."""
    platform = {
        "accesstype": "local",
        "admins": ["root"],
        "local": {"imageDir": str(directory / "images")},
    }
    made: dict[str, Any] = {
        "ListenHost": "127.0.0.1",
        "ListenPort": 0,
        "StateDirectory": str(directory / "state"),
        "CacheDirectory": str(directory / "cache"),
        "ExpandDirectory": str(directory / "expand"),
        "DefaultImageLocation": "site",
        "PullUpdateTimeout": 300,
        "LeaseSeconds": 5,
        "WorkerThreads": 2,
        "ImportUsers": "all",
        "Locations": {"site": {"remotetype": "dockerv2", "url": "http://127.0.0.1:1"}},
        "Platforms": {SYSTEM: platform, "other": {**platform, "local": {"imageDir": str(directory / "other")}}},
    }
    made.update(changes)
    return {key: value for key, value in made.items() if value is not None}


class Minter:
    """Makes munge credentials as any uid: one child process for each, since munged asks the kernel who connects."""

    def __init__(self, socket: Path) -> None:
        self._socket = socket
        self._lock = threading.Lock()
        self._children: dict[tuple[int, int], tuple[int, Any, Any]] = {}

    def credential(self, uid: int, payload: bytes = b"", *, gid: int | None = None) -> str:
        with self._lock:
            child = self._child(uid, uid if gid is None else gid)
            child[1].write(payload.hex() + "\n")
            child[1].flush()
            line: str = child[2].readline().strip()
        assert line.startswith("MUNGE:"), line
        return line

    def close(self) -> None:
        for pid, writing, reading in self._children.values():
            # Not by closing its pipe: children made later hold an end of it too.
            os.kill(pid, signal.SIGKILL)
            writing.close()
            reading.close()
            os.waitpid(pid, 0)

    def _child(self, uid: int, gid: int) -> tuple[int, Any, Any]:
        if (uid, gid) not in self._children:
            munge.encode(b"", self._socket)  # loads the library before the fork
            ask_read, ask_write = os.pipe()
            tell_read, tell_write = os.pipe()
            pid = os.fork()
            if pid == 0:
                try:
                    os.close(ask_write)
                    os.close(tell_read)
                    os.setgroups([])
                    os.setresgid(gid, gid, gid)
                    os.setresuid(uid, uid, uid)
                    with os.fdopen(ask_read) as asks, os.fdopen(tell_write, "w") as tells:
                        for line in asks:
                            tells.write(munge.encode(bytes.fromhex(line.strip()), self._socket) + "\n")
                            tells.flush()
                finally:
                    os._exit(0)
            os.close(ask_read)
            os.close(tell_write)
            self._children[uid, gid] = (pid, os.fdopen(ask_write, "w"), os.fdopen(tell_read))
        return self._children[uid, gid]


@dataclass
class Content:
    """What the imagined registry has under one name. secret: the password without which it gives nothing."""

    text: str = "content"
    secret: str | None = None
    failure: str | None = None


@dataclass
class ImaginedRegistry:
    """Takes the place of catalog.pull.pull: keeps the order of stages and puts a real object into the real store."""

    contents: dict[str, Content] = field(default_factory=dict)
    pulls: list[str] = field(default_factory=list)
    hook: Callable[[Stage], None] = lambda stage: None

    def __call__(
        self,
        source: RegistryReference,
        location: Any,
        platform: Any,
        credential: Credential | None,
        layers: Store,
        images: Store,
        observer: Observer,
        options: Any,
    ) -> PulledImage:
        self.pulls.append(str(source))
        observer.stage(Stage.PULLING)
        self.hook(Stage.PULLING)
        content = self.contents.get(str(source)) or self.contents.get(source.repository)
        if content is None:
            raise PullFailed(f"registry {location.name} has no {source}: check the name and the tag")
        if content.secret is not None and (credential is None or credential.password != content.secret):
            raise PullFailed(f"registry {location.name} refuses {source}: log in with shifterimg login")
        for stage in (Stage.EXAMINATION, Stage.CONVERSION, Stage.TRANSFER):
            observer.stage(stage)
            observer.progress(done=5, total=10, layers_done=1, layers=2)
            self.hook(stage)
        if content.failure is not None:
            raise PullFailed(content.failure)
        stored = images.put_stream(io.BytesIO(f"file of {content.text}".encode()))
        return PulledImage(
            id=hashlib.sha256(content.text.encode()).hexdigest(),
            object=stored.name,
            size=stored.size,
            format=options.format,
            env=("PATH=/bin", "A=b=c"),
            entrypoint=("/bin/x",),
            cmd=None,
            workdir="/work",
            labels={"l": "v"},
            arch="amd64",
            anonymous=content.secret is None,
            layers=(hashlib.sha256(content.text.encode()).hexdigest(),),
        )


class Clock:
    """A time that the test sets."""

    def __init__(self, now: float = 1_800_000_000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


@dataclass
class InProcess:
    """A gateway in this process, with its REST client. Workers run only as the test steps them (`work`)."""

    gateway: Gateway
    registry: ImaginedRegistry
    clock: Clock
    minter: Minter
    directory: Path

    def __post_init__(self) -> None:
        self._client = TestClient(self.gateway.app)

    def request(
        self,
        method: str,
        path: str,
        uid: int | None = 0,
        body: object = None,
        *,
        login: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        gid: int | None = None,
    ) -> Result:
        """A request as `uid` (None: without a credential); `login` are registry credentials, location -> user:password."""
        sent = dict(headers or {})
        if uid is not None:
            payload = json.dumps({"authorized_locations": dict(login)}).encode() if login else b""
            sent["authentication"] = self.minter.credential(uid, payload, gid=gid)
        text = json.dumps(body) if body is not None else None
        return self._client.simulate_request(method, path, headers=sent, body=text)

    def pull(self, tag: str, uid: int = 0, **options: Any) -> dict[str, Any]:
        """POST pull; the answer's JSON."""
        result = self.request("POST", f"/api/pull/{SYSTEM}/docker/{tag}/", uid, **options)
        assert result.status_code == 200, result.text
        answer: dict[str, Any] = result.json
        return answer

    def work(self) -> None:
        """Lets the workers do all that waits."""
        while self.gateway.workers.step():
            pass

    def pulled(self, tag: str, uid: int = 0, **options: Any) -> dict[str, Any]:
        """Asks for a pull, lets it happen, and asks how it ended, as a client does."""
        self.pull(tag, uid, **options)
        self.work()
        return self.pull(tag, uid, **options)

    def tags(self, uid: int | None = 0, **options: Any) -> list[str]:
        """The tags that `list` shows."""
        result = self.request("GET", f"/api/list/{SYSTEM}/", uid, **options)
        assert result.status_code == 200, result.text
        return sorted(tag for image in result.json["list"] for tag in image["tag"])

    def node_record(self, image_id: str) -> dict[str, Any]:
        """What nodes read about an image."""
        found: dict[str, Any] = json.loads((self.directory / "images" / f"{image_id}.json").read_text())
        return found


@pytest.fixture(scope="session")
def munged() -> Iterator[MungeDaemon]:
    from tests.requires import need, need_root

    need("munged", "munge")
    need_root()
    with running() as daemon:
        yield daemon


@pytest.fixture
def minter(munged: MungeDaemon) -> Iterator[Minter]:
    made = Minter(munged.socket)
    yield made
    made.close()


Opener = Callable[..., InProcess]


@pytest.fixture
def open_gateway(tmp_path: Path, munged: MungeDaemon, minter: Minter) -> Iterator[Opener]:
    """A function: changes of imagemanager.json -> a gateway in this process."""
    opened: list[Gateway] = []

    def open_one(registry: ImaginedRegistry | None = None, clock: Clock | None = None, **changes: Any) -> InProcess:
        configuration = configured(tmp_path, munged.socket, **changes)
        registry, clock = registry or ImaginedRegistry(), clock or Clock()
        gateway = Gateway(configuration, pull=registry, clock=clock)
        opened.append(gateway)
        return InProcess(gateway, registry, clock, minter, tmp_path)

    yield open_one
    for gateway in opened:
        gateway.close()


@pytest.fixture
def site(open_gateway: Opener) -> InProcess:
    """A gateway in this process with an empty imagined registry."""
    return open_gateway()


def configured(directory: Path, socket: Path, **changes: Any) -> Configuration:
    made = document(directory, **changes)
    for platform in made["Platforms"].values():
        platform["mungeSocketPath"] = str(socket)
    return parse(made)


@dataclass
class Served:
    """A gateway process."""

    process: subprocess.Popen[str]
    url: str
    log: Path

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(20)


@contextmanager
def serving(config: Path, *, environment: Mapping[str, str] | None = None) -> Iterator[Served]:
    """`shifter-gateway --config config`, from the line that says it serves until the block ends (killed then)."""
    log = config.with_name(f"gateway-{time.monotonic_ns()}.log")
    with log.open("w") as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", "catalog.gateway", "--config", str(config)],
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env={**os.environ, **(environment or {})},
        )
    try:
        assert process.stdout is not None
        ready, _, _ = select.select([process.stdout], [], [], 30)
        line = process.stdout.readline() if ready else ""
        assert line.startswith(READY_LINE), log.read_text()
        yield Served(process, line.removeprefix(READY_LINE).strip(), log)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
        if process.stdout is not None:
            process.stdout.close()


def wait_for(condition: Callable[[], Any], *, seconds: float = 60.0, what: str = "it") -> Any:
    """The first true value of `condition`, asked often; fails the test when there is none in time."""
    end = time.monotonic() + seconds
    pause = threading.Event()
    while time.monotonic() < end:
        value = condition()
        if value:
            return value
        pause.wait(0.01)
    raise AssertionError(f"waited {seconds} s in vain for {what}")
