"""Platforms whose images lie on another machine: a real sshd on loopback plays it."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from catalog import remote
from catalog.admin import main
from catalog.publication import stripe
from catalog.record import changed
from sim.ports import reserve
from tests.catalog.gateway_fixture import ALICE, BOB, SYSTEM, Content, ImaginedRegistry, InProcess, document, wait_for
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
    registry = ImaginedRegistry({"bar": Content(), "foo": Content("other"), "own": Content("private", secret="pw")})
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
    site.gateway.workers.start()
    assert site.request("DELETE", f"/api/image/{SYSTEM}/docker/bar:1", ALICE).status_code == 200
    wait_for(lambda: [path.name for path in far.images.iterdir()] == ["cas"], what="the withdrawal")


def told(site: InProcess) -> dict[str, Any]:
    """What `acl` says of own:1."""
    answer: dict[str, Any] = site.request("GET", f"/api/acl/{SYSTEM}/docker/own:1", ALICE).json
    return answer


def test_a_change_of_the_acl_is_answered_before_the_other_machine_knows_and_says_so_until_it_does(
    open_gateway: Any, tmp_path: Path, far: Far
) -> None:
    site = opened(open_gateway, tmp_path, far)
    image = site.pulled("own:1", ALICE, login={"site": "a:pw"}, body={"allowed_uids": f"{ALICE},{BOB}"})["id"]
    assert "settled" not in told(site)
    narrowed = site.request("POST", f"/api/acl/{SYSTEM}/docker/own:1", ALICE, {"allowed_uids": str(ALICE)}).json
    assert (narrowed["userACL"], narrowed["settled"]) == ([ALICE], False)
    assert narrowed["status_message"] == f"recorded; the nodes of {SYSTEM} are told as soon as they can be reached"
    record = far.images / f"{image}.json"
    assert json.loads(record.read_text())["uids"] == sorted({ALICE, BOB})
    assert told(site)["settled"] is False
    assert "not yet told to the nodes" in told(site)["status_message"]
    site.gateway.workers.start()
    wait_for(lambda: "settled" not in told(site), what="the nodes to be told")
    assert json.loads(record.read_text())["uids"] == [ALICE]


def test_changes_are_answered_though_the_other_machine_takes_connections_and_says_nothing(
    open_gateway: Any, tmp_path: Path, far: Far
) -> None:
    """ssh gives such a machine up after its time limit, which no request may wait for: all of them are answered before
    anybody has called it.
    """
    with socket.create_server(("127.0.0.1", 0)) as mute:
        site = opened(open_gateway, tmp_path, far)
        site.pulled("bar:1", ALICE)
        site.pulled("foo:1", ALICE)
        platform = site.gateway.configuration.platforms[SYSTEM]
        assert platform.ssh is not None
        away = changed(platform, ssh=changed(platform.ssh, port=mute.getsockname()[1]))
        site.gateway.configuration.platforms[SYSTEM] = away  # type: ignore[index]
        answers = [
            site.request("POST", f"/api/acl/{SYSTEM}/docker/bar:1", ALICE, {"private": True}),
            site.request("DELETE", f"/api/image/{SYSTEM}/docker/bar:1", ALICE),
            site.request("DELETE", f"/api/expire/{SYSTEM}/docker/foo:1", 0),
            site.request("POST", f"/api/restore/{SYSTEM}/docker/foo:1", 0),
            site.request("GET", f"/api/expire/{SYSTEM}/docker/foo:1", 0),
        ]
        mute.setblocking(False)
        with pytest.raises(BlockingIOError):
            mute.accept()
    assert [(answer.status_code, answer.json["settled"]) for answer in answers] == [(200, False)] * 5


def test_what_is_expired_by_policy_there_says_that_the_machines_are_still_to_be_told(
    open_gateway: Any, tmp_path: Path, far: Far
) -> None:
    site = opened(open_gateway, tmp_path, far)
    site.pulled("bar:1", ALICE)
    site.clock.now += 91 * 86400
    answer = site.request("GET", f"/api/autoexpire/{SYSTEM}", 0).json
    assert (answer["images"], answer["settled"]) == (["docker:bar:1"], False)
    assert site.gateway.publication.pay() == 0
    assert [path.name for path in far.images.iterdir()] == ["cas"]


def test_a_machine_that_is_away_is_tried_once_a_round_and_told_everything_when_it_is_back(
    open_gateway: Any, tmp_path: Path, far: Far, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = opened(open_gateway, tmp_path, far)
    for tag in ("bar:1", "foo:1"):
        site.pulled(tag, ALICE)
    key = far.directory / "authorized"
    key.rename(far.directory / "away")
    for tag in ("bar:1", "foo:1"):
        assert site.request("DELETE", f"/api/image/{SYSTEM}/docker/{tag}", ALICE).json["settled"] is False
    connections: list[str] = []
    run = remote._run
    monkeypatch.setattr(remote, "_run", lambda ssh, host, command: connections.append(host) or run(ssh, host, command))
    assert site.gateway.publication.pay() == 2
    assert connections == ["127.0.0.1"]
    (far.directory / "away").rename(key)
    assert site.gateway.publication.pay() == 0
    assert [path.name for path in far.images.iterdir()] == ["cas"]


def test_an_administrator_s_command_tells_the_machines_itself_or_says_that_it_could_not(
    open_gateway: Any, tmp_path: Path, far: Far, capsys: pytest.CaptureFixture[str]
) -> None:
    site = opened(open_gateway, tmp_path, far)
    for tag in ("bar:1", "foo:1"):
        site.pulled(tag, ALICE)
    config = tmp_path / "imagemanager.json"
    platform = {"accesstype": "remote", "admins": ["root"], "host": ["127.0.0.1"], "ssh": far.ssh()}
    config.write_text(json.dumps(document(tmp_path, Platforms={SYSTEM: platform})))
    assert main(["--config", str(config), "expire", "bar:1"]) == 0
    assert capsys.readouterr().err == ""
    assert len(list(far.images.glob("*.squashfs"))) == 1
    (far.directory / "authorized").unlink()
    assert main(["--config", str(config), "expire", "foo:1"]) == 0
    assert "the nodes of mycluster cannot be told now; a gateway does it later" in capsys.readouterr().err


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
