"""Authentication by real munge: what is refused, and with which words."""

from __future__ import annotations

import os
import select
import signal
import subprocess

import pytest

from catalog.munge import CredentialRefused, Munge, MungeUnavailable
from tests.catalog.gateway_fixture import ALICE, BOB, SYSTEM, Content, InProcess, Minter, wait_for
from tests.runtime.munge_daemon import MungeDaemon, running, serving


def queue(site: InProcess, credential: str) -> tuple[int, str]:
    result = site._client.simulate_get(f"/api/queue/{SYSTEM}/", headers={"authentication": credential})
    assert result.headers["content-type"] == "application/json"
    return result.status_code, result.json.get("error", "")


def test_a_credential_says_who_made_it(munged: MungeDaemon, minter: Minter) -> None:
    decoded = Munge(munged.socket).decode(minter.credential(ALICE, b"payload", gid=7))
    assert (decoded.uid, decoded.gid, decoded.payload) == (ALICE, 7, b"payload")


def test_a_replayed_credential_is_refused(site: InProcess, minter: Minter) -> None:
    credential = minter.credential(ALICE)
    assert queue(site, credential)[0] == 200
    status, reason = queue(site, credential)
    assert status == 401
    assert "used before" in reason


def test_an_expired_credential_is_refused(site: InProcess, munged: MungeDaemon) -> None:
    credential = subprocess.run(
        ["munge", "-n", "-S", munged.socket, "-t", "1"], capture_output=True, text=True, check=True
    ).stdout.strip()
    expired = 15  # EMUNGE_CRED_EXPIRED, which munge finds before it looks for replays

    def code() -> int:
        return subprocess.run(
            ["unmunge", "-S", munged.socket], input=credential.encode(), capture_output=True
        ).returncode

    wait_for(lambda: code() == expired, what="the credential's end")
    status, reason = queue(site, credential)
    assert status == 401
    assert "expired" in reason


def test_a_credential_of_another_system_is_refused(site: InProcess) -> None:
    with running() as foreign:
        other = Minter(foreign.socket)
        status, reason = queue(site, other.credential(0))
        other.close()
    assert status == 401
    assert "not from this system" in reason


@pytest.mark.parametrize("credential", ["MUNGE:nonsense:", "hello", "MUNGE:" + "A" * 60000 + ":", "MUNGE:\x80:"])
def test_a_malformed_credential_is_refused(site: InProcess, credential: str) -> None:
    status, reason = queue(site, credential)
    assert status == 401
    assert reason.startswith("munge refused your credential")


def test_a_bad_credential_is_refused_also_where_none_is_needed(site: InProcess) -> None:
    result = site._client.simulate_get(f"/api/list/{SYSTEM}/", headers={"Authentication": "MUNGE:x:"})
    assert result.status_code == 401


def test_the_header_s_case_does_not_matter(site: InProcess, minter: Minter) -> None:
    for name in ("authentication", "Authentication", "AUTHENTICATION"):
        result = site._client.simulate_get(f"/api/queue/{SYSTEM}/", headers={name: minter.credential(ALICE)})
        assert result.status_code == 200


def test_without_munged_nobody_is_authenticated_and_the_answer_says_why(tmp_path: object) -> None:
    with pytest.raises(MungeUnavailable, match="is munged running at /nonexistent"):
        from pathlib import Path

        Munge(Path("/nonexistent/socket")).decode("MUNGE:AwQDAAAB:")


def test_munge_may_be_restarted(minter: Minter) -> None:
    with running() as first:
        munge = Munge(first.socket)
        one = Minter(first.socket)
        assert munge.decode(one.credential(ALICE)).uid == ALICE
        daemon = os.pidfd_open(int((first.socket.parent / "munged.pid").read_text()))
        signal.pidfd_send_signal(daemon, signal.SIGTERM)
        select.select([daemon], [], [])
        os.close(daemon)
        with pytest.raises(MungeUnavailable):
            munge.decode(minter.credential(ALICE))
        with serving(first.socket.parent):
            assert munge.decode(one.credential(ALICE)).uid == ALICE
            one.close()


@pytest.mark.parametrize(
    "payload",
    [b"not json", b"[]", b'{"authorized_locations": 5}', b'{"authorized_locations": {"site": 5}}',
     b'{"authorized_locations": {"site": "nocolon"}}', b'{"authorized_locations": {"site": ":pw"}}',
     b'{"authorized_locations": {"site": "user:\\ud800"}}', b"[" * 100000],
)  # fmt: skip
def test_a_payload_that_is_not_understood_is_refused(site: InProcess, minter: Minter, payload: bytes) -> None:
    status, _ = queue(site, minter.credential(ALICE, payload))
    assert status == 401


def test_passwords_keep_their_colons_and_the_exact_location_wins_over_default(site: InProcess) -> None:
    site.registry.contents["secret"] = Content("private", secret="p:w:x")
    assert site.pulled("secret:1", ALICE, login={"default": "alice:p:w:x"})["status"] == "READY"
    both = {"site": "bob:wrong", "default": "bob:p:w:x"}
    assert site.pulled("secret:2", BOB, login=both)["status"] == "FAILURE"


def test_the_default_credential_is_only_for_the_default_location(site: InProcess, open_gateway: object) -> None:
    from tests.catalog.gateway_fixture import ImaginedRegistry

    registry = ImaginedRegistry({"secret": Content("private", secret="pw")})
    locations = {name: {"url": "http://127.0.0.1:1"} for name in ("site", "quay.io")}
    gateway = open_gateway(registry, Locations=locations)  # type: ignore[operator]  # the fixture's callable
    assert gateway.pulled("quay.io/secret:1", ALICE, login={"default": "a:pw"})["status"] == "FAILURE"
    assert gateway.pulled("quay.io/secret:1", ALICE, login={"quay.io": "a:pw"})["status"] == "READY"


def test_a_saved_login_works_though_it_was_used_before_but_only_for_its_owner(
    site: InProcess, munged: MungeDaemon, minter: Minter
) -> None:
    site.registry.contents["secret"] = Content("private", secret="pw")
    saved = minter.credential(ALICE, b"alice:pw")
    Munge(munged.socket).decode(saved)
    assert site.pulled("secret:1", ALICE, login={"site": saved})["status"] == "READY"
    refused = site.request("POST", f"/api/pull/{SYSTEM}/docker/secret:2/", BOB, login={"site": saved})
    assert refused.status_code == 401
    assert "another user's" in refused.json["error"]


def test_errors_do_not_repeat_what_was_refused(munged: MungeDaemon) -> None:
    with pytest.raises(CredentialRefused) as caught:
        Munge(munged.socket).decode("alice:hunter2")
    assert "hunter2" not in str(caught.value)
