"""What a wish for an image means: joining, waiting, freshness, failure, ownership. The registry is imagined, all else real."""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, given, settings

from tests.catalog.gateway_fixture import ALICE, BOB, CAROL, SYSTEM, Content, InProcess


def status(site: InProcess, tag: str, uid: int = 0) -> int:
    return site.request("GET", f"/api/lookup/{SYSTEM}/docker/{tag}", uid).status_code


@pytest.fixture(autouse=True)
def _images(site: InProcess) -> None:
    site.registry.contents["bar"] = Content()
    site.registry.contents["secret"] = Content("private", secret="pw")


def test_many_wishes_for_one_tag_are_one_download(site: InProcess) -> None:
    for uid in (ALICE, BOB, CAROL, ALICE, BOB):
        assert site.pull("bar:1", uid)["status"] == "INIT"
    site.work()
    for uid in (ALICE, BOB, CAROL):
        assert site.pull("bar:1", uid)["status"] == "READY"
    assert site.registry.pulls == ["bar:1"]


def test_the_states_are_visible_while_the_pull_runs(site: InProcess) -> None:
    seen: list[tuple[str, str]] = []

    def look(stage: object) -> None:
        answer = site.pull("bar:1")
        seen.append((answer["status"], answer["status_message"]))

    site.registry.hook = look
    site.pulled("bar:1")
    assert [state for state, _ in seen] == ["PULLING", "EXAMINATION", "CONVERSION", "TRANSFER"]
    assert all(message for _, message in seen)


def test_progress_in_bytes_and_layers_is_in_the_answer_to_a_poll(site: InProcess) -> None:
    seen = []
    site.registry.hook = lambda stage: seen.append(site.pull("bar:1")["progress"])
    site.pulled("bar:1")
    assert [(one["stage"], one["done"], one["total"], one["layers_done"], one["layers"]) for one in seen][1] == (
        "EXAMINATION", 5, 10, 1, 2,
    )  # fmt: skip


def test_a_failure_is_told_with_its_reason_once_to_each_who_waited_and_polling_restarts_nothing(
    site: InProcess,
) -> None:
    site.pull("gone:1", ALICE)
    site.pull("gone:1", BOB)
    site.work()
    for uid in (ALICE, BOB):
        answer = site.pull("gone:1", uid)
        assert (answer["status"], answer["status_message"]) == (
            "FAILURE",
            "registry site has no gone:1: check the name and the tag",
        )
    assert site.registry.pulls == ["gone:1"]
    assert site.pull("gone:1", ALICE)["status"] == "INIT"


def test_somebody_who_did_not_wait_starts_anew_after_a_failure(site: InProcess) -> None:
    site.pulled("gone:1", ALICE)
    assert site.pull("gone:1", BOB)["status"] == "INIT"


def test_a_failure_of_long_ago_is_no_answer(site: InProcess) -> None:
    site.pull("gone:1", ALICE)
    site.work()
    site.clock.now += 3600
    assert site.pull("gone:1", ALICE)["status"] == "INIT"


def test_a_fresh_tag_is_answered_from_the_catalog_and_a_stale_one_is_asked_of_the_registry(site: InProcess) -> None:
    site.pulled("bar:1", ALICE)
    site.clock.now += 299
    assert site.pull("bar:1", BOB)["status"] == "READY"
    assert len(site.registry.pulls) == 1
    site.clock.now += 2
    assert site.pull("bar:1", BOB)["status"] == "INIT"
    site.work()
    assert len(site.registry.pulls) == 2


def test_with_no_update_timeout_a_client_s_polls_still_end(open_gateway: object) -> None:
    from tests.catalog.gateway_fixture import ImaginedRegistry

    site = open_gateway(ImaginedRegistry({"bar": Content()}), PullUpdateTimeout=0)  # type: ignore[operator]
    site.pull("bar:1", ALICE)
    site.work()
    assert site.pull("bar:1", ALICE)["status"] == "READY"
    assert site.pull("bar:1", ALICE)["status"] == "INIT"


def test_the_old_image_is_usable_until_the_new_one_is_ready(site: InProcess) -> None:
    old = site.pulled("bar:1")["id"]
    site.clock.now += 1000
    site.registry.contents["bar"] = Content("newer")
    during = []
    site.registry.hook = lambda stage: during.append(
        site.request("GET", f"/api/lookup/{SYSTEM}/docker/bar:1").json["id"]
    )
    new = site.pulled("bar:1")["id"]
    assert set(during) == {old}
    assert site.request("GET", f"/api/lookup/{SYSTEM}/docker/bar:1").json["id"] == new != old
    assert not (site.directory / "images" / f"{old}.squashfs").exists()
    assert (site.directory / "images" / f"{new}.squashfs").exists()


def test_the_old_image_stays_usable_when_the_new_pull_fails(site: InProcess) -> None:
    old = site.pulled("bar:1")["id"]
    site.clock.now += 1000
    site.registry.contents["bar"] = Content("newer", failure="the converter ended with status 1")
    failed = site.pulled("bar:1")
    assert (failed["status"], failed["status_message"]) == ("FAILURE", "the converter ended with status 1")
    assert site.request("GET", f"/api/lookup/{SYSTEM}/docker/bar:1").json["id"] == old


def test_a_digest_reference_never_goes_stale(site: InProcess) -> None:
    tag = "bar@sha256:" + "a" * 64
    site.pulled(tag)
    site.clock.now += 10**6
    assert site.pull(tag)["status"] == "READY"


def test_a_clock_that_jumps_back_does_not_make_an_image_fresh_for_ever(site: InProcess) -> None:
    site.pulled("bar:1")
    site.clock.now -= 86400
    assert site.pull("bar:1", BOB)["status"] == "INIT"
    site.work()
    assert site.pull("bar:1", BOB)["status"] == "READY"


# Access


def test_a_private_pull_is_for_those_it_names_and_the_puller(site: InProcess) -> None:
    site.pulled("secret:1", ALICE, login={"site": "a:pw"}, body={"allowed_uids": str(BOB)})
    assert [status(site, "secret:1", uid) for uid in (ALICE, BOB, CAROL)] == [200, 200, 404]
    image = site.request("GET", f"/api/lookup/{SYSTEM}/docker/secret:1", ALICE).json
    assert image["userACL"] == [ALICE, BOB]
    record = site.node_record(image["id"])
    assert (record["public"], record["uids"]) == (False, [ALICE, BOB])


def test_who_joins_a_pull_made_with_somebody_else_s_password_gains_nothing_by_it(site: InProcess) -> None:
    private = {"login": {"site": "a:pw"}, "body": {"allowed_uids": str(ALICE)}}
    site.pull("secret:1", ALICE, **private)
    site.pull("secret:1", BOB)
    site.work()
    assert site.pull("secret:1", ALICE, **private)["status"] == "READY"
    assert status(site, "secret:1", BOB) == 404
    assert site.pulled("secret:1", BOB)["status"] == "FAILURE"
    assert status(site, "secret:1", ALICE) == 200


def test_who_asks_for_a_private_image_and_may_not_read_it_is_told_nothing_of_it(site: InProcess) -> None:
    alices = site.pulled("secret:1", ALICE, login={"site": "a:pw"}, body={"allowed_uids": str(ALICE)})
    hidden = {"id", "object", "ENV", "LABELS", "userACL", "groupACL", "private", "last_pull", "size"}
    begun = site.pull("secret:1", BOB)
    joined = site.pull("secret:1", CAROL)
    site.work()
    failed = site.pull("secret:1", BOB)
    assert [answer["status"] for answer in (begun, joined, failed)] == ["INIT", "INIT", "FAILURE"]
    for answer in (begun, joined, failed):
        assert {answer.get(field, "MISSING") for field in hidden} == {"MISSING"}
        assert alices["id"] not in str(answer)
    acl = f"/api/acl/{SYSTEM}/docker/secret:1"
    assert [site.request("GET", acl, uid).status_code for uid in (ALICE, BOB, CAROL)] == [200, 404, 404]
    events = site.request("GET", f"/api/history/{SYSTEM}/", BOB).json["list"]
    assert {event["uid"] for event in events} == {BOB}


def test_an_owner_whom_an_administrator_left_out_of_the_list_may_still_remove_the_image(site: InProcess) -> None:
    site.pulled("bar:1", ALICE)
    site.request("POST", f"/api/acl/{SYSTEM}/docker/bar:1", 0, {"allowed_uids": str(BOB)})
    assert status(site, "bar:1", ALICE) == 404
    assert site.request("DELETE", f"/api/image/{SYSTEM}/docker/bar:1", ALICE).status_code == 200


def test_who_has_a_password_does_not_fail_with_a_pull_that_somebody_began_without_one(site: InProcess) -> None:
    site.pull("secret:1", BOB)
    assert site.pull("secret:1", ALICE, login={"site": "a:pw"})["status"] == "INIT"
    site.work()
    assert site.pulled("secret:1", ALICE, login={"site": "a:pw"})["status"] == "READY"
    assert len(site.registry.pulls) == 2


def polled(site: InProcess, tag: str, logins: Mapping[int, str | None], rounds: int = 20) -> dict[int, list[str]]:
    """What each user hears, to the end, when all poll in turn and the workers go on in between: the last answer of each."""
    ended: dict[int, list[str]] = {}
    for _ in range(rounds):
        for uid, password in logins.items():
            if uid not in ended:
                login = {"site": f"{uid}:{password}"} if password else None
                answer = site.pull(tag, uid, login=login, body={"private": True})
                if answer["status"] in {"READY", "FAILURE"}:
                    ended[uid] = [answer["status"], answer["status_message"]]
        site.work()
    return ended


def test_a_wrong_password_is_tried_once_however_many_poll(site: InProcess) -> None:
    ended = polled(site, "secret:1", {BOB: None, ALICE: "wrong", CAROL: "wrong too"})
    assert {uid: status for uid, (status, _) in ended.items()} == dict.fromkeys((ALICE, BOB, CAROL), "FAILURE")
    assert len(site.registry.pulls) == 3  # without one, and with each


def test_who_waits_for_a_pull_that_somebody_began_with_a_wrong_password_has_one_with_his_own(site: InProcess) -> None:
    bobs: Any = {"login": {"site": "b:wrong"}}
    alices: Any = {"login": {"site": "a:pw"}, "body": {"private": True}}
    site.pull("secret:1", BOB, **bobs)
    assert site.pull("secret:1", ALICE, **alices)["status"] == "INIT"
    site.work()
    assert site.pull("secret:1", ALICE, **alices)["status"] == "INIT"
    refused = site.pull("secret:1", BOB, **bobs)
    assert (refused["status"], "log in with shifterimg login" in refused["status_message"]) == ("FAILURE", True)
    site.work()
    assert site.pull("secret:1", ALICE, **alices)["status"] == "READY"
    assert len(site.registry.pulls) == 2
    assert [status(site, "secret:1", uid) for uid in (ALICE, BOB)] == [200, 404]


def test_a_failure_that_no_password_can_help_is_told_to_all_who_waited(site: InProcess) -> None:
    site.registry.contents["secret"] = Content("secret", secret="pw", failure="no space left")
    ended = polled(site, "secret:1", {BOB: "pw", ALICE: "pw", CAROL: None})
    assert ended == {uid: ["FAILURE", "no space left"] for uid in (ALICE, BOB, CAROL)}
    assert len(site.registry.pulls) == 1


@given(st.lists(st.sampled_from([None, "wrong", "pw"]), min_size=1, max_size=5), st.integers(0, 10**6))
@settings(max_examples=60, deadline=None, database=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_everybody_hears_how_it_ended_for_his_own_password_and_each_is_tried_once(
    site: InProcess, passwords: list[str | None], number: int
) -> None:
    """However many wait for each other, with whatever they have: their polls end."""
    tag, before = f"secret:{number}-{len(site.registry.pulls)}", len(site.registry.pulls)
    logins = {ALICE + index: password for index, password in enumerate(passwords)}
    ended = polled(site, tag, logins)
    for uid, password in logins.items():
        if password == "pw":
            assert ended[uid][0] == "READY"
        else:
            assert ended[uid] == ["FAILURE", f"registry site refuses {tag}: log in with shifterimg login"]
    assert len(site.registry.pulls) - before <= len(passwords)


def test_who_proves_to_the_registry_that_he_may_read_a_private_image_is_added_to_it(site: InProcess) -> None:
    site.pulled("secret:1", ALICE, login={"site": "a:pw"}, body={"allowed_uids": str(ALICE)})
    site.pulled("secret:1", BOB, login={"site": "b:pw"})
    assert [status(site, "secret:1", uid) for uid in (ALICE, BOB, CAROL)] == [200, 200, 404]


def test_a_refresh_by_its_owner_without_lists_does_not_open_a_private_image(site: InProcess) -> None:
    site.pulled("secret:1", ALICE, login={"site": "a:pw"}, body={"allowed_uids": str(ALICE)})
    site.clock.now += 1000
    site.pulled("secret:1", ALICE, login={"site": "a:pw"})
    assert status(site, "secret:1", BOB) == 404


def test_another_tag_of_the_same_image_leaves_the_first_tag_s_acl_and_the_file_has_the_union(site: InProcess) -> None:
    site.pulled("secret:1", ALICE, login={"site": "a:pw"}, body={"allowed_uids": str(ALICE)})
    image = site.pulled("secret:2", BOB, login={"site": "b:pw"}, body={"allowed_uids": str(CAROL)})["id"]
    assert [status(site, "secret:1", uid) for uid in (ALICE, BOB, CAROL)] == [200, 404, 404]
    assert [status(site, "secret:2", uid) for uid in (ALICE, BOB, CAROL)] == [404, 200, 200]
    assert site.node_record(image)["uids"] == [ALICE, BOB, CAROL]
    site.request("DELETE", f"/api/image/{SYSTEM}/docker/secret:2", BOB)
    assert site.node_record(image)["uids"] == [ALICE]


def test_lists_given_with_an_image_that_anybody_could_pull_guard_its_tag_and_not_its_file(site: InProcess) -> None:
    image = site.pulled("bar:1", ALICE, body={"allowed_uids": str(BOB)})["id"]
    assert [status(site, "bar:1", uid) for uid in (ALICE, BOB, CAROL)] == [200, 200, 404]
    assert site.node_record(image)["public"]


def test_nobody_else_can_hide_a_public_tag(site: InProcess) -> None:
    site.pulled("bar:1", ALICE)
    site.clock.now += 1000
    site.pulled("bar:1", BOB, body={"allowed_uids": str(BOB)})
    assert status(site, "bar:1", CAROL) == 200


def test_private_false_beats_the_lists(site: InProcess) -> None:
    site.pulled("bar:1", ALICE, body={"allowed_uids": str(BOB), "private": False})
    assert status(site, "bar:1", CAROL) == 200


def test_the_owner_changes_the_acl_without_a_pull_and_nobody_else_does(site: InProcess) -> None:
    path = f"/api/acl/{SYSTEM}/docker/secret:1"
    image = site.pulled("secret:1", ALICE, login={"site": "a:pw"}, body={"allowed_uids": str(BOB)})["id"]
    assert site.request("POST", path, BOB, {"allowed_uids": str(CAROL)}).status_code == 403
    assert site.request("POST", path, CAROL, {"allowed_uids": str(CAROL)}).status_code == 404
    assert site.request("POST", path, ALICE, {"allowed_uids": str(CAROL)}).json["userACL"] == [ALICE, CAROL]
    assert site.node_record(image)["uids"] == [ALICE, CAROL]
    assert site.request("POST", path, ALICE, {"allowed_uids": "", "allowed_gids": ""}).json["private"] is False
    assert site.node_record(image)["public"]
    assert len(site.registry.pulls) == 1


@pytest.mark.parametrize("body", [None, {}, {"allowed_uid": "1"}, {"allowed_uids": None}, {"private": "no"}])
def test_a_slip_in_a_change_of_the_acl_opens_nothing(site: InProcess, body: Any) -> None:
    site.pulled("secret:1", ALICE, login={"site": "a:pw"}, body={"allowed_uids": str(ALICE)})
    refused = site.request("POST", f"/api/acl/{SYSTEM}/docker/secret:1", ALICE, body)
    assert (refused.status_code, status(site, "secret:1", BOB)) == (400, 404)


def test_private_without_lists_is_for_the_caller_alone(site: InProcess) -> None:
    pulled = site.pulled("secret:1", ALICE, login={"site": "a:pw"}, body={"private": True})
    assert (pulled["private"], pulled["userACL"], pulled["groupACL"]) == (True, [ALICE], [])
    path = f"/api/acl/{SYSTEM}/docker/secret:1"
    assert site.request("POST", path, ALICE, {"private": False}).json["private"] is False
    assert site.request("POST", path, ALICE, {"private": True}).json["userACL"] == [ALICE]
    assert status(site, "secret:1", BOB) == 404


def test_a_full_disk_is_the_reason_that_a_change_is_answered_with(
    site: InProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.pulled("bar:1", ALICE)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/images/x.json")

    monkeypatch.setattr(site.gateway.publication._publisher, "publish", full)
    refused = site.request("POST", f"/api/acl/{SYSTEM}/docker/bar:1", ALICE, {"allowed_uids": str(BOB)})
    assert refused.status_code == 503
    assert "No space left on device" in refused.json["error"]
    assert "/images" not in refused.text


def test_an_owner_removes_an_image_and_nobody_else_does(site: InProcess) -> None:
    path = f"/api/image/{SYSTEM}/docker/bar:1"
    image = site.pulled("bar:1", ALICE)["id"]
    assert site.request("DELETE", path, BOB).status_code == 403
    assert site.request("DELETE", path, ALICE).json == {"status": True}
    assert status(site, "bar:1", ALICE) == 404
    assert not (site.directory / "images" / f"{image}.json").exists()
    assert site.request("DELETE", path, ALICE).status_code == 404
    assert site.pulled("bar:1", BOB)["status"] == "READY"


def test_the_owner_of_a_removed_private_image_has_no_say_in_its_successor(site: InProcess) -> None:
    site.pulled("secret:1", ALICE, login={"site": "a:pw"}, body={"allowed_uids": str(ALICE)})
    site.request("DELETE", f"/api/image/{SYSTEM}/docker/secret:1", ALICE)
    site.pulled("secret:1", BOB, login={"site": "b:pw"}, body={"allowed_uids": str(BOB)})
    assert [status(site, "secret:1", uid) for uid in (ALICE, BOB)] == [404, 200]


def test_passwords_are_neither_in_the_log_nor_in_any_file_of_the_gateway(
    site: InProcess, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    secret = "hunter2-of-alice"
    site.registry.contents["secret"] = Content("private", secret=secret)
    site.pulled("secret:1", ALICE, login={"site": f"alice:{secret}"})
    site.pulled("secret:2", ALICE, login={"site": f"alice:{secret}x"})
    assert secret not in caplog.text
    files = [path for path in site.directory.rglob("*") if path.is_file()]
    assert files
    assert not [path for path in files if secret.encode() in Path(path).read_bytes()]


def test_a_credential_is_forgotten_when_the_pull_has_ended(site: InProcess) -> None:
    site.pulled("secret:1", ALICE, login={"site": "a:pw"})
    assert site.gateway.wallet._held == {}
