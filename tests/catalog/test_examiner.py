"""The site's examiner: its exit status decides, its last line is the reason, and it sees the image's own files."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.catalog.gateway_fixture import ALICE, SYSTEM, InProcess, Opener, minter, munged, open_gateway
from tests.requires import requires, requires_root

__all__ = ["minter", "munged", "open_gateway"]  # fixtures
pytestmark = [requires("munged", "mksquashfs", "unsquashfs", "rdsquashfs"), requires_root]


def program(directory: Path, text: str) -> Path:
    path = directory / "examiner"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def imported(site: InProcess, directory: Path) -> dict[str, Any]:
    """What becomes of an import of a squashfs file that holds `note`."""
    tree = directory / "tree"
    tree.mkdir()
    (tree / "note").write_text("what is inside\n")
    file = directory / "tool.squashfs"
    subprocess.run(["mksquashfs", tree, file, "-quiet", "-no-progress", "-no-xattrs"], check=True, capture_output=True)
    for path in (directory, file):
        path.chmod(0o755)

    def ask() -> dict[str, Any]:
        body = {"filepath": str(file), "format": "squashfs"}
        result = site.request("POST", f"/api/doimport/{SYSTEM}/custom/tool:1/", ALICE, body)
        assert result.status_code == 200, result.text
        answer: dict[str, Any] = result.json
        return answer

    ask()
    site.work()
    return ask()


@pytest.fixture
def place(public_directory: Path) -> Path:
    return public_directory


def test_an_image_that_the_examiner_accepts_is_ready_and_was_seen_by_it(open_gateway: Opener, place: Path) -> None:
    examiner = program(place, f'cat "$1/note" >{place}/seen; echo "$2" >>{place}/seen; rm -rf "$1"')
    site = open_gateway(examiner=str(examiner))
    answer = imported(site, place)
    assert answer["status"] == "READY", answer
    assert (place / "seen").read_text() == f"what is inside\n{answer['id']}\n"
    assert list((site.directory / "expand").iterdir()) == []


def test_an_image_that_it_refuses_fails_with_its_last_line(open_gateway: Opener, place: Path) -> None:
    examiner = program(place, "echo looking; echo 'license of note is missing' >&2; exit 3")
    answer = imported(open_gateway(examiner=str(examiner)), place)
    assert answer["status"] == "FAILURE"
    assert answer["status_message"] == "the site's examiner refuses the image: license of note is missing"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("exit 3", "the site's examiner refuses the image: it ended with status 3"),
        ("kill -9 $$", "the site's examiner refuses the image: it ended with status -9"),
        ("printf 'bad \\033[2J\\n'; exit 1", "the site's examiner refuses the image: bad ?[2J"),
    ],
)
def test_however_it_ends_there_is_a_reason(open_gateway: Opener, place: Path, text: str, reason: str) -> None:
    answer = imported(open_gateway(examiner=str(program(place, text))), place)
    assert (answer["status"], answer["status_message"]) == ("FAILURE", reason)


def test_an_examiner_that_is_not_there_fails_with_its_name(open_gateway: Opener, place: Path) -> None:
    answer = imported(open_gateway(examiner=str(place / "absent")), place)
    assert answer["status"] == "FAILURE"
    assert answer["status_message"] == f"the site's examiner cannot be run: {place}/absent: No such file or directory"


def test_without_one_nothing_is_unpacked(open_gateway: Opener, place: Path) -> None:
    site = open_gateway()
    assert imported(site, place)["status"] == "READY"
    assert not (site.directory / "expand").exists() or list((site.directory / "expand").iterdir()) == []
