"""The gateway's own application, in this process, as the simulated gateway's mind.

`Catalog` starts a real `catalog.gateway.Gateway` (REST application, event log, image list, workers) with a clock
that the simulation turns, callers that the simulation vouches for, and a pull that stores a small stand-in for the
image. Its event log lies in memory (a temporary directory on tmpfs where there is one). Requests go through the
WSGI application; an answer that cannot have changed is remembered, since ten thousand nodes ask the same.
"""

from __future__ import annotations

import hashlib
import io
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from falcon import testing

from cas.store import Store
from catalog import config
from catalog.callers import Caller, Callers
from catalog.config import Location, Platform
from catalog.conversion_options import ConversionOptions
from catalog.credential import Credential
from catalog.gateway import Gateway
from catalog.pull import Observer, PulledImage
from catalog.rates import Rates
from catalog.reference import RegistryReference
from catalog.rest import Gate, make_app
from catalog.routes import routes
from sim.gateway import Answer
from sim.parameters import Scenario

if TYPE_CHECKING:
    from sim.machine import Machine

SYSTEM = "imagined"
#: Unix time of the simulation's second 0: fixed, so that a run is the same whenever it is made.
EPOCH = 1_750_000_000.0
#: How long before the run the images were pulled: long enough that a tag pulled again is looked up at the registry.
BEFORE = 86_400.0


class Vouched(Callers):
    """Callers whose `authentication` header is their uid: the credential itself is the model's part (`GatewayService`)."""

    def __init__(self) -> None:
        """Needs no configuration, and no munge."""

    def authenticate(self, platform: Platform, header: str | None) -> Caller | None:
        if not header:
            return None
        uid = int(header)
        return Caller(uid=uid, gid=uid, name=f"user{uid}", groups=frozenset({uid}), admin=False)


class Catalog:
    """`Answers` by the real application. A context manager: its directory goes with it."""

    def __init__(self, scenario: Scenario, ready: list[str]) -> None:
        self._scenario = scenario
        self._now = -BEFORE
        self._directory = Path(tempfile.mkdtemp(prefix="shifter-sim-", dir=_memory()))
        self._machine: Machine | None = None
        self._changes = 0  # of what the application could answer
        self._known: dict[tuple[str, int, str], tuple[int, Answer]] = {}
        self._contents: dict[str, int] = {}
        self.working = 0
        self.downloads = 0
        try:
            self._open(ready)
        except BaseException:
            shutil.rmtree(self._directory)
            raise

    def _open(self, ready: list[str]) -> None:
        self._gateway = Gateway(
            self._configuration(),
            pull=self._pull,
            clock=lambda: EPOCH + self._now,
            monotonic=lambda: EPOCH + self._now,
        )
        rates = Rates(0, 0, lambda: EPOCH + self._now)  # the model's servers queue: nobody is turned away
        self._gateway.gate = Gate(self._gateway.desk, Vouched(), rates, rates)
        self._client = testing.TestClient(make_app(routes(self._gateway)))
        for reference in ready:
            self.pull(0, reference, -BEFORE)
            self._gateway.workers.step()
            self._changes += 1
        self.downloads = 0

    def __enter__(self) -> Catalog:
        return self

    def __exit__(self, *_: object) -> None:
        self._gateway.close()
        shutil.rmtree(self._directory)

    def attend(self, machine: Machine) -> None:
        """From now on, pulls take the simulated time of this machine's registry and workers."""
        self._machine = machine

    def lookup(self, user: int, reference: str, now: float) -> Answer:
        """GET /api/lookup, as `user`, at `now` simulated seconds."""
        return self._ask("GET", "lookup", user, reference, now)

    def pull(self, user: int, reference: str, now: float) -> Answer:
        """POST /api/pull, as `user`; a pull that waits gets a worker of the simulation."""
        answer = self._ask("POST", "pull", user, reference, now)
        if self._machine is not None and answer.state not in ("READY", "FAILURE", "") and not self.working:
            self.working += 1
            self._machine.start(self._machine.fetch_and_convert(self._work))
        return answer

    def _ask(self, method: str, verb: str, user: int, reference: str, now: float) -> Answer:
        key = (verb, user, reference)
        changes, answer = self._known.get(key, (-1, None))
        if answer is not None and changes == self._changes:
            return answer
        self._now = now
        path = f"/api/{verb}/{SYSTEM}/docker/{quote(reference, safe='')}/"
        result = self._client.simulate_request(method, path, headers={"authentication": str(user)})
        body = result.json if isinstance(result.json, dict) else {}
        identifier = body.get("id", "")
        reason = body.get("error") or body.get("status_message") or ""
        answer = Answer(
            status=result.status_code,
            identifier="" if identifier == "MISSING" else str(identifier),
            state=str(body.get("status", "")),
            reason="" if reason == "MISSING" else str(reason),
        )
        self._known[key] = (self._changes, answer)
        return answer

    def _work(self) -> None:
        """The imagined download and conversion are over: the real worker records the image."""
        assert self._machine is not None
        self._now = self._machine.environment.now
        self._gateway.workers.step()
        self.working -= 1
        self._changes += 1

    def _pull(
        self,
        source: RegistryReference,
        location: Location,
        platform: Platform,
        credential: Credential | None,
        layers: Store,
        images: Store,
        observer: Observer,
        options: ConversionOptions,
    ) -> PulledImage:
        """Stands where the pipeline from the registry stands: each pull of a name finds new content under it."""
        name = f"{source.repository}:{source.tag}"
        number = self._contents[name] = self._contents.get(name, 0) + 1
        self.downloads += 1
        content = f"{name} #{number}".encode()
        stored = images.put_stream(io.BytesIO(content))
        return PulledImage(
            id=hashlib.sha256(content).hexdigest(),
            object=stored.name,
            size=self._scenario.image.bytes,
            format="squashfs",
            env=(),
            entrypoint=None,
            cmd=None,
            workdir=None,
            labels={},
            arch=platform.arch,
            anonymous=True,
            layers=(),
        )

    def _configuration(self) -> config.Configuration:
        base = self._directory
        (base / "images").mkdir()
        return config.parse(
            {
                "DefaultImageLocation": "registry",
                "CacheDirectory": str(base / "cache"),
                "ExpandDirectory": str(base / "expand"),
                "StateDirectory": str(base / "state"),
                "PullUpdateTimeout": 300,
                "Locations": {"registry": {"remotetype": "dockerv2", "url": "http://127.0.0.1:9"}},
                "Platforms": {SYSTEM: {"accesstype": "local", "local": {"imageDir": str(base / "images")}}},
            }
        )


def _memory() -> str | None:
    """A directory in memory, if this machine has one."""
    return "/dev/shm" if Path("/dev/shm").is_dir() else None  # noqa: S108 - mkdtemp makes its own, private directory there
