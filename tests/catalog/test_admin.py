"""shifter-admin over a real event store: what people and programs get."""

from __future__ import annotations

import json
import os
import sqlite3
import struct
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pymongo
import pytest

from catalog.admin import main
from catalog.admin_session import show_table
from catalog.reference import Reference
from tests.catalog.databases import ferretdb
from tests.catalog.gateway_fixture import ALICE, BOB, CAROL, SYSTEM, Content, ImaginedRegistry, InProcess, document
from tests.requires import requires_root


class Admin:
    """Runs the command on the state of a gateway."""

    def __init__(self, config: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self._config = config
        self._capsys = capsys
        self.errors = ""

    def __call__(self, *words: str, status: int = 0) -> str:
        self._capsys.readouterr()
        found = main(["--config", str(self._config), *words])
        captured = self._capsys.readouterr()
        self.errors = captured.err
        assert found == status, captured
        return captured.out

    def said(self) -> str:
        """What was printed on standard error since the last command."""
        return self._capsys.readouterr().err

    def json(self, *words: str) -> Any:
        return json.loads(self(*words, "--json"))


@pytest.fixture
def lived(open_gateway: Any) -> InProcess:
    """A day of a gateway: 00:00 alice pulls, 01:00 bob's fails, 02:00 a private image, 03:00 the first expires."""
    site: InProcess = open_gateway(ImaginedRegistry({"bar": Content(), "secret": Content("s", secret="pw")}))
    start = site.clock.now
    site.pulled("bar:1", ALICE)
    site.clock.now = start + 3600
    site.pulled("gone:1", BOB)
    site.clock.now = start + 7200
    site.pulled("secret:1", ALICE, login={"site": "a:pw"}, body={"allowed_uids": str(BOB)})
    site.clock.now = start + 10800
    site.request("DELETE", f"/api/expire/{SYSTEM}/docker/bar:1", 0)
    return site


@pytest.fixture
def admin(lived: InProcess, capsys: pytest.CaptureFixture[str]) -> Admin:
    config = lived.directory / "imagemanager.json"
    config.write_text(json.dumps(document(lived.directory)))
    return Admin(config, capsys)


def at(lived: InProcess, hours: float) -> str:
    """The time `hours` after the first event, as a person writes it."""
    return datetime.fromtimestamp(1_800_000_000 + hours * 3600, tz=UTC).isoformat()


def test_history_says_who_did_what_when(admin: Admin) -> None:
    lines = admin("history").splitlines()
    assert lines[0].split() == ["event", "time", "user", "action", "system", "image", "what"]
    assert not any(" named " in line for line in lines)
    (failed,) = [line for line in lines if " failure " in line]
    assert str(BOB) in failed
    assert "registry site has no gone:1: check the name and the tag (at PULLING)" in failed
    times = [line.split()[1] for line in lines[1:]]
    assert all(datetime.fromisoformat(text).tzinfo is not None for text in times)


@pytest.mark.parametrize(
    ("words", "images"),
    [
        (["--image", "bar:1"], {"bar:1"}),
        (["--image", "*:1"], {"bar:1", "gone:1", "secret:1"}),
        (["--user", str(BOB)], {"gone:1"}),
        (["--action", "expired"], {"bar:1"}),
        (["--system", "other"], set()),
    ],
)
def test_history_is_narrowed_by_image_user_action_and_system(admin: Admin, words: list[str], images: set[str]) -> None:
    assert {event["tag"] for event in admin.json("history", *words)} == images


def test_history_is_narrowed_by_time(admin: Admin, lived: InProcess) -> None:
    found = admin.json("history", "--since", at(lived, 0.5), "--until", at(lived, 1.5))
    assert {event["tag"] for event in found} == {"gone:1"}
    assert admin.json("history", "--since", at(lived, 9)) == []
    assert len(admin.json("history", "--limit", "2")) == 2


def test_failures_have_their_reasons(admin: Admin) -> None:
    (failure,) = admin.json("failures")
    assert failure["detail"]["reason"] == "registry site has no gone:1: check the name and the tag"


def test_the_image_list_as_of_a_time(admin: Admin, lived: InProcess) -> None:
    def tags(*words: str) -> list[str]:
        return [image["tag"] for image in admin.json("images", *words)]

    assert tags() == ["secret:1"]
    assert tags("--as-of", at(lived, 0.5)) == ["bar:1"]
    assert tags("--as-of", at(lived, 2.5)) == ["bar:1", "secret:1"]
    assert tags("--as-of", at(lived, -1)) == []


def test_the_difference_between_two_times(admin: Admin, lived: InProcess) -> None:
    found = admin.json("diff", at(lived, 0.5), at(lived, 4))
    assert [image["tag"] for image in found["added"]] == ["secret:1"]
    assert [image["tag"] for image in found["gone"]] == ["bar:1"]
    lines = admin("diff", at(lived, 0.5)).splitlines()
    assert [line.split()[0] for line in lines[1:]] == ["-", "+"]


def test_the_same_image_pulled_again_is_no_difference_and_another_acl_is_one(admin: Admin, lived: InProcess) -> None:
    lived.pulled("bar:2", ALICE)
    lived.clock.now += 3600
    assert lived.pulled("bar:2", ALICE)["status"] == "READY"
    assert lived.registry.pulls.count("bar:2") == 2
    assert admin.json("diff", at(lived, 3.5), at(lived, 5)) == {"added": [], "gone": []}
    lived.request("POST", f"/api/acl/{SYSTEM}/docker/bar:2", ALICE, {"allowed_uids": str(CAROL)})
    found = admin.json("diff", at(lived, 3.5), at(lived, 5))
    assert [(one["tag"], one["access"]["public"]) for one in found["gone"] + found["added"]] == [
        ("bar:2", True), ("bar:2", False),
    ]  # fmt: skip


def test_who_can_run_an_image_now_and_then(admin: Admin, lived: InProcess) -> None:
    (now,) = admin.json("who-can-run", "secret:1")
    assert now["uids"] == [ALICE, BOB]
    lived.clock.now += 3600
    lived.request("POST", f"/api/acl/{SYSTEM}/docker/secret:1", ALICE, {"allowed_uids": str(CAROL)})
    assert admin.json("who-can-run", "secret:1")[0]["uids"] == [ALICE, CAROL]
    assert admin.json("who-can-run", "secret:1", "--as-of", at(lived, 2.5))[0]["uids"] == [ALICE, BOB]
    assert admin.json("who-can-run", "bar:1", "--as-of", at(lived, 2.5))[0]["public"] is True
    admin("who-can-run", "bar:1", status=1)
    assert admin.errors == "shifter-admin: no image bar:1\n"


def test_who_can_run_what_its_registry_gives_to_anybody_though_its_tag_is_private(
    admin: Admin, lived: InProcess
) -> None:
    lived.pulled("bar:9", ALICE, body={"allowed_uids": str(BOB)})
    assert lived.request("GET", f"/api/lookup/{SYSTEM}/docker/bar:9", CAROL).status_code == 404
    (found,) = admin.json("who-can-run", "bar:9")
    assert found["public"] is True
    assert lived.node_record(found["id"])["public"] is True


@pytest.mark.parametrize(
    "words",
    [
        ("history", "--limit", "0"),
        ("failures", "--limit", "-1"),
        ("usage", "--limit", "x"),
        ("who-ran", "--limit", "0"),
        ("history", "--action", "flies"),
        ("who-ran", "--limit", "9" * 30),
        ("audit", "export", "--after", "-3"),
    ],
)
def test_a_number_or_an_action_that_is_none_is_a_wrong_command_line(
    admin: Admin, words: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        admin(*words)
    assert ended.value.code == 2
    assert repr(words[-1]) in capsys.readouterr().err


def test_a_table_shows_what_registries_and_users_wrote_and_obeys_none_of_it(capsys: pytest.CaptureFixture[str]) -> None:
    show_table(("what",), [("\x1b]0;mine\x07 [red]a\\[/] \r\n\u202e b",)], empty="")
    assert capsys.readouterr().out.splitlines()[1].rstrip() == r"\x1b]0;mine\x07 [red]a\[/] \r\n\u202e b"


def test_who_ran_an_image(admin: Admin, lived: InProcess) -> None:
    lived.clock.now += 7200
    lived.request("GET", f"/api/lookup/{SYSTEM}/docker/secret:1", BOB)
    (found,) = admin.json("who-ran", "secret:1")
    assert (found["user"], found["tag"]) == (str(BOB), "secret:1")


def test_a_time_that_is_none_is_refused_with_the_forms(admin: Admin) -> None:
    admin("images", "--as-of", "yesterday", status=1)
    assert admin.errors.startswith("shifter-admin: 'yesterday' is not a time; write 2026-11-23T18:00:00+01:00")


@requires_root
def test_an_ordinary_user_is_told_who_may_look(admin: Admin, lived: InProcess, public_directory: Path) -> None:
    admin("history")  # all that it imports is read as root
    config = public_directory / "imagemanager.json"
    config.write_text(json.dumps(document(lived.directory)))
    os.seteuid(65534)
    try:
        status = main(["--config", str(config), "history"])
    finally:
        os.seteuid(0)
    said = admin.said()
    assert status == 1
    assert said.startswith("shifter-admin: /") and said.count("\n") == 1
    assert "Permission denied: run it as the gateway's account" in said


def test_the_past_up_to_now_is_a_period(admin: Admin) -> None:
    assert admin.json("diff", "2026-01-01", "now") == admin.json("diff", "2026-01-01", "0s")


def test_audit_verify_finds_a_changed_event_and_names_it(admin: Admin, lived: InProcess) -> None:
    said = admin("audit", "verify")
    assert "no fault; head" in said
    head = said.split()[-1]
    assert admin("audit", "verify", "--head", head) == said
    connection = sqlite3.connect(lived.directory / "state" / "events.sqlite", isolation_level=None)
    connection.execute("UPDATE stored_events SET state = replace(state, '\"uid\"', '\"gid\"') WHERE id = 2")
    admin("audit", "verify", status=1)
    assert "the event log is damaged: event 2 (PullRequested) is not what was recorded" in admin.errors


def test_a_damaged_log_is_audited_and_exported_also_without_an_image_list(admin: Admin, lived: InProcess) -> None:
    state = lived.directory / "state"
    connection = sqlite3.connect(state / "events.sqlite", isolation_level=None)
    connection.execute("UPDATE stored_events SET state = '{', originator_id = 'x' WHERE id = 2")
    for path in state.glob("images.sqlite*"):
        path.unlink()
    admin("audit", "verify", status=1)
    assert "the event log is damaged: event 2 (PullRequested) is not what was recorded" in admin.errors
    lines = [json.loads(line) for line in admin("audit", "export").splitlines()]
    assert (lines[1]["stream"], lines[1]["state"]) == ("x", "'{'")
    admin("rebuild", status=1)
    assert admin.errors.startswith("shifter-admin: event 2 of the log cannot be read (")
    assert admin.errors.count("\n") == 1
    assert not list(state.glob("images.sqlite.[0-9]*"))


def test_audit_verify_finds_a_log_that_was_written_anew(admin: Admin) -> None:
    admin("audit", "verify", "--head", "2:" + "0" * 64, status=1)
    assert "no longer has event 2 with that hash" in admin.errors


@pytest.mark.parametrize("head", ["x", "5", "9" * 30 + ":" + "0" * 64, "3:zz", ":"])
def test_a_head_that_is_none_is_refused(admin: Admin, head: str) -> None:
    admin("audit", "verify", "--head", head, status=1)
    assert admin.errors == f"shifter-admin: --head {head} is not NUMBER:HASH\n"


def test_the_head_of_an_empty_log_is_part_of_every_log(admin: Admin) -> None:
    assert "no fault" in admin("audit", "verify", "--head", "0:" + "0" * 64)


def test_audit_export_is_one_json_object_a_line(admin: Admin) -> None:
    lines = [json.loads(line) for line in admin("audit", "export").splitlines()]
    assert [line["event"] for line in lines] == list(range(1, len(lines) + 1))
    assert {"stream", "version", "topic", "state", "hash"} <= lines[0].keys()
    later = admin("audit", "export", "--after", "3").splitlines()
    assert json.loads(later[0])["event"] == 4


def test_rebuild_makes_the_list_anew_while_the_gateway_runs(admin: Admin, lived: InProcess) -> None:
    assert lived.tags(ALICE) == ["secret:1"]
    assert "image list rebuilt from" in admin("rebuild")
    assert lived.tags(ALICE) == ["secret:1"]
    lived.pulled("bar:2", ALICE)
    assert lived.tags(ALICE) == ["bar:2", "secret:1"]


def test_an_image_is_expired_and_brought_back_from_the_command_line(admin: Admin, lived: InProcess) -> None:
    assert admin("undelete", "bar:1", "--system", SYSTEM) == "docker:bar:1: back\n"
    assert lived.tags() == ["bar:1"]
    assert admin("expire", "bar:1", "--system", SYSTEM) == "docker:bar:1: expired\n"
    assert lived.tags() == []
    admin("expire", "bar:1", "--system", SYSTEM, status=1)
    assert admin.errors == "shifter-admin: cannot expire docker:bar:1: it has expired\n"
    admin("expire", "bar:1", status=1)
    assert "say which system: --system mycluster or other" in admin.errors


def test_the_queue_says_who_works_at_what_and_what_failed(admin: Admin, lived: InProcess) -> None:
    lived.pull("bar:7", CAROL)
    rows = {row["image"]: row for row in admin.json("queue")}
    assert (rows["docker:bar:7"]["state"], rows["docker:bar:7"]["user"]) == ("INIT", str(CAROL))
    assert rows["docker:gone:1"]["reason"].startswith("registry site has no gone:1")


# Taking over from the original gateway


def squashfs(content: bytes) -> bytes:
    """A squashfs 4.0 as far as its superblock goes."""
    size = 96 + len(content)
    return (
        struct.pack("<IIIIIHHHHHHQQQQQQQQ", 0x73717368, 1, 0, 1 << 17, 0, 6, 17, 0, 1, 4, 0, 0, size, *[0] * 6)
        + content
    )


@pytest.fixture
def old_mongo() -> Iterator[str]:
    with ferretdb() as uri:
        yield uri


def test_migrate_takes_over_records_files_acls_and_environment(
    tmp_path: Path, old_mongo: str, capsys: pytest.CaptureFixture[str], open_gateway: Any
) -> None:
    images = tmp_path / "images"
    images.mkdir()
    public, private, lost = "a" * 64, "b" * 64, "c" * 64
    half = "f" * 64
    (images / f"{public}.squashfs").write_bytes(squashfs(b"public image"))
    (images / f"{private}.squashfs").write_bytes(squashfs(b"private image"))
    (images / f"{half}.squashfs").write_bytes(squashfs(b"what a converter left that failed")[:-5])
    common = {"itype": "docker", "system": SYSTEM, "status": "READY", "format": "squashfs", "arch": "x86_64",
              "os": "linux", "location": "", "remotetype": "dockerv2", "ostcount": "0", "replication": "1",
              "last_pull": 1700000000.5, "expiration": 1.8e9}  # fmt: skip
    client: pymongo.MongoClient[dict[str, Any]] = pymongo.MongoClient(old_mongo)
    client["Shifter"]["images"].insert_many(
        [
            {**common, "id": public, "tag": ["ubuntu:22.04", "ubuntu:latest"], "pulltag": "ubuntu:latest",
             "ENV": ["PATH=/bin"], "ENTRY": ["/bin/sh"], "WORKDIR": "/w", "userACL": None, "groupACL": None,
             "private": False},
            {**common, "id": private, "tag": ["secret:1"], "userACL": [1000, 1001], "groupACL": [50], "private": True},
            {**common, "id": lost, "tag": ["lost:1"]},
            {**common, "id": "d" * 64, "tag": ["else:1"], "system": "elsewhere"},
            {**common, "id": "e" * 64, "tag": ["bad:1"], "status": "FAILURE"},
            {**common, "id": half, "tag": ["half:1"]},
            {**common, "id": "../x", "tag": ["out:1"]},
            {**common, "id": public, "tag": ["ubuntu:22.04"], "mirror": True, "system": "elsewhere"},
        ]
    )  # fmt: skip
    client.close()
    config = tmp_path / "imagemanager.json"
    config.write_text(json.dumps(document(tmp_path)))
    admin = Admin(config, capsys)
    words = ("migrate", "--from-mongo", old_mongo, "--image-dir", str(images))

    assert "migrated" in admin(*words, "--dry-run", status=1)
    assert not (images / f"{public}.squashfs").is_symlink()
    table = admin(*words, status=1)
    assert "3 migrated, 4 not possible" in admin.errors
    assert f"{images / lost}.squashfs is missing" in table
    assert "system elsewhere is not in Platforms" in table
    assert f"{half}.squashfs is cut off" in table
    assert "its record has the id '../x'" in table
    admin(*words, status=1)
    assert "0 migrated, 4 not possible" in admin.errors  # a second run finds all there

    site = open_gateway()
    found = site.request("GET", f"/api/lookup/{SYSTEM}/docker/ubuntu:22.04", None).json
    assert (found["id"], found["ENV"], found["ENTRY"], found["WORKDIR"]) == (public, ["PATH=/bin"], ["/bin/sh"], "/w")
    assert found["tag"] == ["ubuntu:22.04", "ubuntu:latest"]
    assert found["last_pull"] == 1700000000.5
    # It had been looked up since: it expires when it would have.
    record = site.gateway.images.get(Reference(SYSTEM, "docker", "secret:1"))  # nobody has looked it up yet
    assert record.used_at + site.gateway.configuration.image_expiration.total_seconds() == 1.8e9
    assert site.request("GET", f"/api/lookup/{SYSTEM}/docker/secret:1", 1001).status_code == 200
    assert site.request("GET", f"/api/lookup/{SYSTEM}/docker/secret:1", 1002).status_code == 404
    node = site.node_record(private)
    assert (node["public"], node["uids"], node["gids"]) == (False, [1000, 1001], [50])
    link = images / f"{private}.squashfs"
    assert link.is_symlink()
    assert link.read_bytes() == squashfs(b"private image")
