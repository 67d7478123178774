"""Trying a user's credential at a registry before it is saved: what the registry says is what the user hears."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from catalog.config import Location
from catalog.credential import Credential
from catalog.failure import PullFailed
from catalog.registry_login import LoginRefused, try_login
from tests.catalog.gateway_fixture import ALICE, SYSTEM, open_gateway
from tests.catalog.lying_registry import Answer, LyingRegistry, Request, error, lying
from tests.catalog.registry_fixture import build, gz, tar
from tests.requires import requires, requires_root

__all__ = ["open_gateway"]  # fixtures

RIGHT, WRONG = Credential("alice", "pa:ss:word"), Credential("alice", "secret-and-wrong")
BASIC = "Basic " + base64.b64encode(b"alice:pa:ss:word").decode()


@pytest.fixture
def registry() -> Iterator[LyingRegistry]:
    with lying(build(gz(tar()))) as registry:
        yield registry


def location(url: str) -> Location:
    return Location(name="hub", url=url, remotetype="dockerv2", sslcacert=None, auth_method="token")


def basic(request: Request) -> Answer | None:
    if request.headers.get("authorization") == BASIC:
        return Answer(body=b"{}")
    return error(401, "UNAUTHORIZED", "authentication required", WWW_Authenticate='Basic realm="here"')


def bearer(registry: LyingRegistry) -> Any:
    def hook(request: Request) -> Answer | None:
        if request.path.startswith("/token"):
            if request.headers.get("authorization") != BASIC:
                return error(401, "UNAUTHORIZED", "incorrect username or password")
            return Answer(body=json.dumps({"token": "t", "expires_in": 300}).encode())
        if request.headers.get("authorization") == "Bearer t":
            return Answer(body=b"{}")
        challenge = f'Bearer realm="{registry.url}/token",service="reg"'
        return error(401, "UNAUTHORIZED", "authentication required", WWW_Authenticate=challenge)

    return hook


@pytest.mark.parametrize("scheme", ["basic", "bearer"])
def test_the_right_password_is_taken_and_a_wrong_one_refused(registry: LyingRegistry, scheme: str) -> None:
    registry.hook = basic if scheme == "basic" else bearer(registry)
    try_login(location(registry.url), RIGHT)
    with pytest.raises(LoginRefused) as caught:
        try_login(location(registry.url), WRONG)
    assert str(caught.value) == "registry hub does not accept the user name alice with this password"
    assert "secret-and-wrong" not in repr(caught.value.__cause__)


def test_a_token_is_asked_for_no_repository(registry: LyingRegistry) -> None:
    registry.hook = bearer(registry)
    try_login(location(registry.url), RIGHT)
    tokens = [request.path for request in registry.requests if request.path.startswith("/token")]
    assert tokens == ["/token?service=reg&account=alice"]


def test_a_registry_that_asks_for_no_password_takes_any(registry: LyingRegistry) -> None:
    registry.hook = lambda _: Answer(body=b"{}")
    try_login(location(registry.url), WRONG)
    assert all("authorization" not in request.headers for request in registry.requests)


@pytest.mark.parametrize(("status", "reason"), [(404, "answered 404"), (429, "answered 429"), (500, "answered 500")])
def test_a_registry_in_trouble_does_not_say_that_the_password_is_wrong(
    registry: LyingRegistry, status: int, reason: str
) -> None:
    registry.hook = lambda _: error(status, "TROUBLE", "not now")
    with pytest.raises(PullFailed, match=rf"registry hub {reason}, TROUBLE: not now"):
        try_login(location(registry.url), RIGHT)


@requires("munged")
@requires_root
def test_the_route_answers_as_shifterimg_expects(open_gateway: Any, registry: LyingRegistry, tmp_path: Path) -> None:
    registry.hook = basic
    places = {
        "site": {"remotetype": "dockerv2", "url": registry.url},
        "hub": {"remotetype": "dockerv2", "url": registry.url},
        "away": {"remotetype": "dockerv2", "url": "http://127.0.0.1:1"},
    }
    site = open_gateway(Locations=places)

    def login(where: object, password: str = "pa:ss:word", name: str | None = None) -> tuple[int, dict[str, Any]]:
        given = {name or str(where): f"alice:{password}"}
        answer = site.request("POST", f"/api/login/{SYSTEM}/", ALICE, {"location": where}, login=given)
        return answer.status_code, answer.json

    assert login("hub") == (200, {"status": True, "location": "hub"})
    assert login("default") == (200, {"status": True, "location": "site"})
    assert login("hub", "wrong")[0] == 403
    assert login("nowhere") == (404, login("nowhere")[1])
    assert "configured: away, hub, site" in login("nowhere")[1]["error"]
    assert login("hub", name="site")[0] == 400  # a credential for another registry is not tried here
    assert login(["hub"], name="hub")[0] == 400
    status, answer = login("away")
    assert status == 502
    assert "registry away cannot be reached" in answer["error"]
    assert site.request("POST", f"/api/login/{SYSTEM}/", None, {"location": "hub"}).status_code == 401


@requires("munged")
@requires_root
def test_a_silent_registry_takes_a_part_of_the_request_threads_only(open_gateway: Any, registry: LyingRegistry) -> None:
    entered, leave = threading.Semaphore(0), threading.Event()

    def silent(_: Request) -> Answer | None:
        entered.release()
        leave.wait(60)
        return Answer(body=b"{}")

    registry.hook = silent
    site = open_gateway(Locations={"site": {"remotetype": "dockerv2", "url": registry.url}}, RequestThreads=8)

    def login() -> tuple[int, Any]:
        answer = site.request("POST", f"/api/login/{SYSTEM}/", ALICE, {"location": "site"}, login={"site": "alice:pw"})
        return answer.status_code, answer.json

    with ThreadPoolExecutor(2) as users:
        try:
            waiting = [users.submit(login) for _ in range(2)]
            for _ in waiting:
                assert entered.acquire(timeout=30)
            status, refused = login()
            assert (status, "try again" in refused["error"]) == (503, True)
        finally:
            leave.set()
        assert [one.result()[0] for one in waiting] == [200, 200]
    assert login()[0] == 200
