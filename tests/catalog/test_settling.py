"""What nodes may run follows the catalog, also when a gateway died between the two, or a far side was away."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from tests.catalog.gateway_fixture import (
    ALICE,
    BOB,
    SYSTEM,
    Content,
    ImaginedRegistry,
    InProcess,
    minter,
    munged,
    open_gateway,
)

__all__ = ["minter", "munged", "open_gateway"]  # fixtures


class Killed(BaseException):
    """The end of a gateway, where a test wants it."""


@pytest.fixture
def lived(open_gateway: Any) -> InProcess:
    site: InProcess = open_gateway(ImaginedRegistry({"bar": Content(secret="pw")}))
    site.pulled("bar:1", ALICE, login={"site": "a:pw"}, body={"allowed_uids": f"{ALICE},{BOB}"})
    return site


def notes(site: InProcess) -> list[Path]:
    return sorted((site.directory / "images").glob(".*.unsettled"))


def killed_at(
    site: InProcess, monkeypatch: pytest.MonkeyPatch, step: str, method: str, path: str, body: Any = None
) -> None:
    """A request during which the gateway ends at a step of the publisher, after the change was recorded."""

    def end(*_: Any) -> None:
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(site.gateway.publication._publisher, step, end)
        with pytest.raises(Killed):
            site.request(method, path, ALICE, body)


def test_a_narrowed_list_reaches_the_nodes_after_a_kill(lived: InProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    (record,) = lived.gateway.images.usable(SYSTEM)
    assert record.image is not None
    assert lived.node_record(record.image.id)["uids"] == sorted({ALICE, BOB})
    killed_at(lived, monkeypatch, "publish", "POST", f"/api/acl/{SYSTEM}/docker/bar:1/", {"allowed_uids": str(ALICE)})
    assert lived.node_record(record.image.id)["uids"] == sorted({ALICE, BOB}), "the kill came before the nodes knew"
    assert len(notes(lived)) == 1
    assert lived.gateway.publication.pay(patience=0) == 0
    assert lived.node_record(record.image.id)["uids"] == [ALICE]
    assert notes(lived) == []


def test_a_removed_image_goes_after_a_kill(lived: InProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    (record,) = lived.gateway.images.usable(SYSTEM)
    assert record.image is not None
    killed_at(lived, monkeypatch, "withdraw", "DELETE", f"/api/image/{SYSTEM}/docker/bar:1/")
    link = lived.directory / "images" / f"{record.image.id}.squashfs"
    assert link.is_symlink()
    assert lived.gateway.publication.pay(patience=0) == 0
    assert not link.is_symlink()
    assert notes(lived) == []


def test_what_cannot_be_settled_stays_owed(lived: InProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    killed_at(lived, monkeypatch, "withdraw", "DELETE", f"/api/image/{SYSTEM}/docker/bar:1/")

    def away(*_: Any) -> None:
        raise OSError("the disk is away")

    with monkeypatch.context() as patched:
        patched.setattr(lived.gateway.publication._publisher, "withdraw", away)
        assert lived.gateway.publication.pay(patience=0) == 1
    assert len(notes(lived)) == 1
    assert lived.gateway.publication.pay(patience=0) == 0
    assert notes(lived) == []


def test_a_change_at_work_is_left_alone_and_one_that_is_refused_or_done_owes_nothing(lived: InProcess) -> None:
    assert notes(lived) == []
    assert lived.request("POST", f"/api/acl/{SYSTEM}/docker/bar:1/", BOB, {"allowed_uids": str(BOB)}).status_code == 403
    assert (
        lived.request("POST", f"/api/acl/{SYSTEM}/docker/bar:1/", ALICE, {"allowed_uids": str(BOB)}).status_code == 200
    )
    assert notes(lived) == []
    (record,) = lived.gateway.images.usable(SYSTEM)
    assert record.image is not None
    platform = lived.gateway.configuration.platforms[SYSTEM]
    with lived.gateway.publication.owing(platform, record.image.id):
        begun = notes(lived)
        assert lived.gateway.publication.pay(patience=time.time()) == 0
        assert notes(lived) == begun and len(begun) == 1
