"""Platforms whose images lie on another machine: a real sshd on loopback plays it."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from catalog.publication import stripe
from sim.ports import reserve
from tests.catalog.gateway_fixture import ALICE, SYSTEM, Content, ImaginedRegistry, InProcess, document, wait_for
from tests.requires import find, requires, requires_root

pytestmark = [requires("sshd", "ssh", "scp", "ssh-keygen"), requires_root]


class Far:
    """A machine that is reached by ssh only; its image directory is `images`."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.images = directory / "far images"  # a blank, which a careless quote would break at
        self.images.mkdir(parents=True)
        self.commands = directory / "commands"
        self.port = 0

    def ssh(self) -> dict[str, Any]:
        """The `ssh` section of a platform."""
        known = ["-o", f"UserKnownHostsFile={self.directory / 'known'}", "-o", "StrictHostKeyChecking=accept-new"]
        return {
            "username": "root",
            "key": str(self.directory / "key"),
            "port": self.port,
            "imageDir": str(self.images),
            "sshCmdOptions": known,
            "scpCmdOptions": known,
        }

    def objects(self) -> list[Path]:
        return [path for path in self.images.glob("cas/objects/*/*") if path.is_file()]


@pytest.fixture
def far(tmp_path: Path) -> Iterator[Far]:
    made = Far(tmp_path / "far")
    for name in ("host", "key"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", made.directory / name], check=True)
    (made.directory / "authorized").write_text((made.directory / "key.pub").read_text())
    (made.directory / "authorized").chmod(0o600)
    Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
    with reserve() as port:
        made.port = port.number
        config = made.directory / "sshd_config"
        config.write_text(
            f"Port {port.number}\nListenAddress 127.0.0.1\nHostKey {made.directory / 'host'}\n"
            f"AuthorizedKeysFile {made.directory / 'authorized'}\nPidFile none\nPermitRootLogin yes\nStrictModes no\n"
            "PasswordAuthentication no\nUsePAM no\nSubsystem sftp internal-sftp\nMaxStartups 100\n"
        )
        port.release()
        program = find("sshd")
        assert program is not None
        with (made.directory / "log").open("wb") as log:
            process = subprocess.Popen([program, "-D", "-e", "-f", config], stderr=log)
        try:
            wait_for(
                lambda: b"Server listening" in (made.directory / "log").read_bytes() or process.poll() is not None,
                what="sshd",
            )
            yield made
        finally:
            process.terminate()
            process.wait()


def opened(open_gateway: Any, tmp_path: Path, far: Far, **ssh: Any) -> InProcess:
    platform = {"accesstype": "remote", "admins": ["root"], "host": ["127.0.0.1"], "ssh": {**far.ssh(), **ssh}}
    registry = ImaginedRegistry({"bar": Content(), "foo": Content("other")})
    platforms = {SYSTEM: platform, "other": document(tmp_path)["Platforms"]["other"]}
    site: InProcess = open_gateway(registry, Platforms=platforms)
    return site


def test_an_image_arrives_whole_with_its_record_and_a_relative_link(
    open_gateway: Any, tmp_path: Path, far: Far
) -> None:
    site = opened(open_gateway, tmp_path, far)
    image = site.pulled("bar:1", ALICE, body={"allowed_uids": "1"})
    assert (image["status"], image["status_message"]) == ("READY", "")
    link = far.images / f"{image['id']}.squashfs"
    assert not link.readlink().is_absolute()
    assert link.read_bytes() == b"file of content"
    assert (far.images / f"{image['id']}.json").stat().st_mode & 0o777 == 0o644
    assert link.resolve().stat().st_mode & 0o777 == 0o444
    assert not (tmp_path / "images").exists()


def test_an_object_that_is_there_is_not_sent_again(open_gateway: Any, tmp_path: Path, far: Far) -> None:
    site = opened(open_gateway, tmp_path, far)
    site.pulled("bar:1", ALICE)
    (there,) = far.objects()
    before = there.stat()
    site.pulled("bar:2", ALICE)
    assert [(path.stat().st_ino, path.stat().st_mtime_ns) for path in far.objects()] == [
        (before.st_ino, before.st_mtime_ns)
    ]


def test_a_copy_that_was_cut_off_goes_on_where_it_ended(open_gateway: Any, tmp_path: Path, far: Far) -> None:
    site = opened(open_gateway, tmp_path, far)
    near = site.gateway.publication.place(site.gateway.configuration.platforms[SYSTEM]).store
    source = tmp_path / "file"
    source.write_bytes(b"file of content")
    name = near.put_file(source).name
    part = far.images / "cas" / "objects" / name[:2] / f".{name[2:]}.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(b"file of")
    inode = part.stat().st_ino
    assert site.pulled("bar:1", ALICE)["status"] == "READY"
    (arrived,) = far.objects()
    assert arrived.read_bytes() == b"file of content"
    assert arrived.stat().st_ino == inode


def test_a_damaged_copy_is_found_on_the_far_side_and_nodes_never_see_it(
    open_gateway: Any, tmp_path: Path, far: Far
) -> None:
    site = opened(open_gateway, tmp_path, far)
    near = site.gateway.publication.place(site.gateway.configuration.platforms[SYSTEM]).store
    source = tmp_path / "file"
    source.write_bytes(b"file of content")
    name = near.put_file(source).name
    part = far.images / "cas" / "objects" / name[:2] / f".{name[2:]}.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(b"WRONG")
    failed = site.pulled("bar:1", ALICE)
    assert failed["status_message"] == "the copy of the image on 127.0.0.1 is not what was sent; pull again"
    assert far.objects() == []
    assert not part.exists()
    assert site.pulled("bar:1", ALICE)["status"] == "READY"


def test_a_machine_that_does_not_answer_fails_the_pull_with_its_name(
    open_gateway: Any, tmp_path: Path, far: Far
) -> None:
    with reserve() as port:
        site = opened(open_gateway, tmp_path, far, port=port.number)
        failed = site.pulled("bar:1", ALICE)
    assert failed["status"] == "FAILURE"
    assert failed["status_message"].startswith(f"cannot reach {SYSTEM}: 127.0.0.1: ")
    assert "Connection" in failed["status_message"]


def test_a_wrong_key_fails_the_pull_and_asks_for_no_password(open_gateway: Any, tmp_path: Path, far: Far) -> None:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", tmp_path / "wrong"], check=True)
    site = opened(open_gateway, tmp_path, far, key=str(tmp_path / "wrong"))
    answers: list[Any] = []
    asking = threading.Thread(target=lambda: answers.append(site.pulled("bar:1", ALICE)))
    asking.start()
    asking.join(30)
    assert "Permission denied" in answers[0]["status_message"]


def test_a_machine_that_stops_in_the_middle_is_given_up(
    open_gateway: Any, tmp_path: Path, far: Far, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("catalog.remote._ALIVE", 1)
    monkeypatch.setattr("catalog.remote._MISSED", 1)
    stopped = tmp_path / "stopped"
    still = f'command="echo $PPID >>{stopped}; kill -STOP $PPID" '
    (far.directory / "authorized").write_text(still + (far.directory / "key.pub").read_text())
    try:
        failed = opened(open_gateway, tmp_path, far).pulled("bar:1", ALICE)
    finally:
        for pid in stopped.read_text().split():
            os.kill(int(pid), signal.SIGKILL)
    assert failed["status"] == "FAILURE"
    assert failed["status_message"].startswith(f"cannot reach {SYSTEM}: 127.0.0.1: ")


def test_a_removed_image_is_withdrawn_there_too(open_gateway: Any, tmp_path: Path, far: Far) -> None:
    site = opened(open_gateway, tmp_path, far)
    site.pulled("bar:1", ALICE)
    site.request("DELETE", f"/api/image/{SYSTEM}/docker/bar:1", ALICE)
    assert [path.name for path in far.images.iterdir()] == ["cas"]


def test_a_removal_that_does_not_reach_the_other_machine_says_so_and_a_later_one_does(
    open_gateway: Any, tmp_path: Path, far: Far
) -> None:
    site = opened(open_gateway, tmp_path, far)
    site.pulled("bar:1", ALICE)
    key = far.directory / "authorized"
    key.rename(far.directory / "away")
    lost = site.request("DELETE", f"/api/image/{SYSTEM}/docker/bar:1", ALICE)
    assert lost.status_code == 502
    assert f"cannot reach {SYSTEM}: 127.0.0.1: " in lost.json["error"]
    assert "the change is recorded" in lost.json["error"]
    (far.directory / "away").rename(key)
    site.pulled("bar:1", ALICE)
    assert site.request("DELETE", f"/api/image/{SYSTEM}/docker/bar:1", ALICE).status_code == 200
    assert [path.name for path in far.images.iterdir()] == ["cas"]


def test_one_gateway_serves_a_local_and_a_remote_platform(open_gateway: Any, tmp_path: Path, far: Far) -> None:
    site = opened(open_gateway, tmp_path, far)
    here = site.request("POST", "/api/pull/other/docker/foo:1/", ALICE)
    assert here.status_code == 200
    site.pulled("bar:1", ALICE)
    assert len(list((tmp_path / "other").glob("*.squashfs"))) == 1
    assert len(list(far.images.glob("*.squashfs"))) == 1


def test_new_files_are_striped_where_there_is_lustre(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # No Lustre is to be had in a test: what is asserted is the command that its administrator would give.
    asked = tmp_path / "asked"
    tool = tmp_path / "lfs"
    tool.write_text(f'#!/bin/sh\necho "$@" >> {asked}\n')
    tool.chmod(0o755)
    stripe(tmp_path, 8)
    assert not asked.exists()
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    stripe(tmp_path, None)
    stripe(tmp_path, 8)
    assert asked.read_text() == f"setstripe -c 8 {tmp_path}\n"
