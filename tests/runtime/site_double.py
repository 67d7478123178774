"""A site that is only a double: udiRoot.conf, munge and HOME point shifterimg at answers that a test writes down."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest

from runtime import shifterimg_wait
from tests.runtime.gateway_double import Answer, Asked, GatewayDouble, Script, answering
from tests.runtime.munge_daemon import MungeDaemon

Site = Callable[[Script], AbstractContextManager[GatewayDouble]]


@pytest.fixture
def site(munged: MungeDaemon, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    """Points shifterimg at a double, whose script the test gives."""
    monkeypatch.setenv("MUNGE_SOCKET", str(munged.socket))
    monkeypatch.setenv("SHIFTER_UDIROOT_CONF", str(tmp_path / "udiRoot.conf"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr(shifterimg_wait, "LONGEST_PAUSE", 0.01)
    (tmp_path / "home").mkdir()

    @contextmanager
    def pointed(script: Script) -> Iterator[GatewayDouble]:
        with answering(script) as gateway:
            write_configuration(tmp_path / "udiRoot.conf", gateway.url)
            yield gateway

    return pointed


def write_configuration(path: Path, urls: str) -> None:
    paths = {"udiMount": "/var/udiMount", "loopMount": "/var/loopMount", "imagePath": "/images", "system": "mycluster"}
    settings = {**paths, "imageGateway": urls, "gatewayTimeout": "2"}
    path.write_text("".join(f"{key}={value}\n" for key, value in settings.items()))


class Polls:
    """A pull that goes through `records`, one at each poll; the last one stays."""

    def __init__(self, *records: dict[str, Any]) -> None:
        self.records = list(records)

    def __call__(self, asked: Asked) -> Answer:
        return 200, self.records.pop(0) if len(self.records) > 1 else self.records[0]
