"""Who holds how many bytes: a file counts once, and what removing would free is told apart from what it would not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from catalog import admin
from catalog.acl import PUBLIC
from catalog.history import Span
from catalog.reference import Reference
from catalog.usage import Share, usage
from tests.catalog.gateway_fixture import (
    ALICE,
    BOB,
    SYSTEM,
    Content,
    ImaginedRegistry,
    InProcess,
    Opener,
    document,
    minter,
    munged,
    open_gateway,
)
from tests.requires import requires, requires_root

__all__ = ["minter", "munged", "open_gateway"]  # fixtures


def span(tag: str, name: str, size: int, owner: int | None, system: str = SYSTEM) -> Span:
    return Span(Reference(system, "docker", tag), 1.0, None, f"id of {name}", name, size, owner, PUBLIC)


def test_a_file_counts_once_however_many_tags_it_has() -> None:
    found = usage([span("a:1", "x", 100, ALICE), span("a:2", "x", 100, ALICE), span("b:1", "y", 30, ALICE)])
    assert found.total == 130
    assert [(file.size, file.tags) for file in found.files] == [
        (100, ("docker:a:1", "docker:a:2")),
        (30, ("docker:b:1",)),
    ]
    assert found.users == (Share(ALICE, references=3, files=2, own=130, shared=0),)


def test_what_two_users_hold_is_shared_by_both_and_own_to_neither() -> None:
    found = usage([span("a:1", "x", 100, ALICE), span("b:1", "x", 100, BOB), span("b:2", "y", 7, BOB)])
    assert found.total == 107
    assert found.users == (Share(BOB, 2, 2, own=7, shared=100), Share(ALICE, 1, 1, own=0, shared=100))
    assert found.files[0].shared
    assert not found.files[1].shared


def test_the_same_content_on_two_systems_is_two_files_and_an_unknown_owner_is_told_apart() -> None:
    found = usage([span("a:1", "x", 100, ALICE), span("a:1", "x", 100, None, "other")])
    assert found.total == 200
    assert {share.uid for share in found.users} == {ALICE, None}


@pytest.fixture
def site(open_gateway: Opener) -> InProcess:
    """A gateway whose registry has "same" and "equal" with one content, and "alone"."""
    contents = {"same": Content("one"), "equal": Content("one"), "alone": Content("a longer text, alone")}
    return open_gateway(ImaginedRegistry(contents))


def used(site: InProcess, uid: int | None) -> dict[str, Any]:
    result = site.request("GET", f"/api/usage/{SYSTEM}/", uid)
    assert result.status_code == 200, result.text
    answer: dict[str, Any] = result.json
    return answer


@requires("munged")
@requires_root
def test_an_administrator_sees_all_and_a_user_only_what_the_user_may_see(site: InProcess) -> None:
    site.pulled("same:1", ALICE)
    site.pulled("equal:1", BOB, body={"allowed_uids": str(BOB)})
    site.pulled("alone:1", BOB, body={"allowed_uids": str(BOB)})
    size, alone = len("file of one"), len("file of a longer text, alone")
    everything = used(site, 0)
    assert everything["total"] == size + alone
    assert {share["uid"]: (share["own"], share["shared"]) for share in everything["users"]} == {
        ALICE: (0, size), BOB: (alone, size)
    }  # fmt: skip
    mine = used(site, ALICE)
    assert mine["users"] == [
        {"uid": ALICE, "user": str(ALICE), "references": 1, "files": 1, "own": size, "shared": 0}
    ]  # fmt: skip
    assert [(image["tags"], image["shared"]) for image in mine["images"]] == [(["docker:same:1"], False)]
    assert site.request("GET", f"/api/usage/{SYSTEM}/", None).status_code == 401
    assert site.request("GET", "/api/usage/nowhere/", ALICE).status_code == 404


@requires("munged")
@requires_root
def test_shifter_admin_usage_tells_users_images_and_the_past(
    site: InProcess, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    site.pulled("same:1", ALICE)
    site.clock.now += 3600
    site.pulled("alone:1", BOB)
    config = tmp_path / "imagemanager.json"
    config.write_text(json.dumps(document(tmp_path)))

    def run(*arguments: str) -> str:
        assert admin.main(["--config", str(config), "usage", *arguments]) == 0
        return capsys.readouterr().out

    lines = run().splitlines()
    assert lines[0].split() == ["user", "references", "files", "own", "MB", "shared", "MB"]
    assert [line.split()[0] for line in lines[1:3]] == [str(BOB), str(ALICE)]
    assert lines[3] == "all files together: 0.0 MB"
    assert "docker:alone:1" in run("--images").splitlines()[1]
    assert [user["uid"] for user in json.loads(run("--json"))["users"]] == [BOB, ALICE]
    before = json.loads(run("--json", "--as-of", str(site.clock.now - 1800)))
    assert [user["uid"] for user in before["users"]] == [ALICE]
    assert json.loads(run("--json", "--system", "other"))["total"] == 0
