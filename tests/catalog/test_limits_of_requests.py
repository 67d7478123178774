"""What one client may take: sizes, rates, time. Over real sockets, since the limits are the server's."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given

from catalog.config_reader import ConfigError
from catalog.rates import Rates, network
from catalog.serving import _Lines
from tests.catalog.gateway_fixture import ALICE, SYSTEM, InProcess, Minter, Served, document, serving, wait_for
from tests.requires import requires
from tests.runtime.munge_daemon import MungeDaemon

pytestmark = requires("munged")


@pytest.fixture
def served(tmp_path: Path, munged: MungeDaemon) -> Iterator[Served]:
    made = document(tmp_path, RequestThreads=2, Limits={"RequestBytes": 2048, "HeaderBytes": 4096, "RequestSeconds": 2})
    made["Platforms"][SYSTEM]["mungeSocketPath"] = str(munged.socket)
    config = tmp_path / "imagemanager.json"
    config.write_text(json.dumps(made))
    with serving(config) as gateway:
        yield gateway


def connected(served: Served) -> socket.socket:
    host, _, port = served.url.removeprefix("http://").partition(":")
    return socket.create_connection((host, int(port)), timeout=20)


def exchange(served: Served, request: bytes) -> tuple[int, dict[str, str], Any]:
    with connected(served) as connection:
        connection.sendall(request)
        answer = b""
        while piece := connection.recv(65536):
            answer += piece
    head, _, body = answer.partition(b"\r\n\r\n")
    first, *rest = head.decode().splitlines()
    headers = {line.partition(":")[0].lower(): line.partition(":")[2].strip() for line in rest}
    return int(first.split()[1]), headers, json.loads(body)


@pytest.mark.parametrize(
    ("request_text", "status"),
    [
        (f"POST /api/pull/{SYSTEM}/docker/a:1/ HTTP/1.1\r\nHost: x\r\nContent-Length: 999999\r\n\r\n", 413),
        (f"GET /api/list/{SYSTEM}/ HTTP/1.1\r\nHost: x\r\nX-Long: {'a' * 8000}\r\n\r\n", 431),
        ("nonsense\r\n\r\n", 400),
        (f"GET /api/list/{SYSTEM}/ HTTP/1.1\r\nbad header line\r\n\r\n", 400),
    ],
)
def test_what_the_server_itself_refuses_is_json_too(served: Served, request_text: str, status: int) -> None:
    found, headers, body = exchange(served, request_text.encode())
    assert found == status
    assert headers["content-type"] == "application/json"
    assert body["status"] == status
    assert body["error"]


def test_slow_clients_hold_no_worker(served: Served) -> None:
    # Twenty times as many half-sent requests as there are worker threads, then an honest one.
    slow = [connected(served) for _ in range(40)]
    try:
        for connection in slow:
            connection.sendall(f"GET /api/list/{SYSTEM}/ HTTP/1.1\r\nHost: ".encode())
        status, _, body = exchange(
            served, f"GET /api/list/{SYSTEM}/ HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode()
        )
        assert (status, body) == (200, {"list": []})
    finally:
        for connection in slow:
            connection.close()


def test_a_client_that_never_finishes_its_request_is_cut_off(served: Served) -> None:
    with connected(served) as connection:
        connection.sendall(b"GET /api/list/")
        assert connection.recv(100) == b""


def test_a_client_that_sends_its_request_in_drops_is_cut_off_too(served: Served) -> None:
    with connected(served) as connection:
        connection.settimeout(0.2)
        for drop in f"GET /api/list/{SYSTEM}/ HTTP/1.1\r\nX-Drops: {'a' * 100}".encode():
            try:
                connection.sendall(bytes([drop]))
                assert connection.recv(100) == b""
                return
            except TimeoutError:
                continue
            except ConnectionError:
                return
    raise AssertionError("still connected")


def test_a_user_who_asks_too_often_is_told_to_wait_and_others_are_served(open_gateway: Any) -> None:
    site: InProcess = open_gateway(Limits={"RequestsPerSecond": 0.001, "RequestsBurst": 3})
    answers = [site.request("GET", f"/api/list/{SYSTEM}/", ALICE) for _ in range(4)]
    assert [answer.status_code for answer in answers] == [200, 200, 200, 429]
    assert answers[-1].headers["retry-after"] == "1"
    assert "too many requests" in answers[-1].json["error"]
    assert site.request("GET", f"/api/list/{SYSTEM}/", ALICE + 1).status_code == 200
    assert site.request("GET", f"/api/list/{SYSTEM}/", 0).status_code == 200


def test_an_address_that_asks_too_often_without_a_credential_is_told_to_wait_and_all_others_are_served(
    open_gateway: Any,
) -> None:
    site: InProcess = open_gateway(Limits={"AnonymousPerSecond": 0.001, "AnonymousBurst": 3})

    def ask(address: str, **headers: str) -> Any:
        return site._client.simulate_get(f"/api/list/{SYSTEM}/", remote_addr=address, headers=headers)

    answers = [ask("10.0.0.1") for _ in range(4)]
    assert [answer.status_code for answer in answers] == [200, 200, 200, 429]
    assert answers[-1].headers["retry-after"] == "1"
    assert "without a credential from this address" in answers[-1].json["error"]
    assert ask("10.0.0.2").status_code == 200
    assert ask("10.0.0.1", authentication=site.minter.credential(ALICE)).status_code == 200


def test_a_rate_of_zero_is_no_limit_and_a_wrong_one_is_refused_with_its_name(open_gateway: Any) -> None:
    site: InProcess = open_gateway(Limits={"AnonymousPerSecond": 0, "AnonymousBurst": 1})
    assert [site.request("GET", f"/api/list/{SYSTEM}/", None).status_code for _ in range(3)] == [200] * 3
    for key, value in (("AnonymousPerSecond", -1), ("AnonymousBurst", 0), ("AnonymousBurst", "many")):
        with pytest.raises(ConfigError, match=rf"Limits\.{key}"):
            open_gateway(Limits={key: value})


@given(st.ip_addresses(v=6).filter(lambda one: one.ipv4_mapped is None), st.integers(0, 2**64 - 1))
def test_all_addresses_that_a_host_can_give_itself_are_one(address: IPv6Address, other: int) -> None:
    neighbour = IPv6Address(int(address) >> 64 << 64 | other)
    assert (network(str(address)) == network(str(neighbour))) is (neighbour.ipv4_mapped is None)


@given(st.ip_addresses(v=4), st.ip_addresses(v=4))
def test_an_ipv4_address_is_itself_however_it_is_written(one: IPv4Address, other: IPv4Address) -> None:
    assert network(str(one)) == network(f"::ffff:{one}") == str(one)
    assert (network(str(one)) == network(str(other))) is (one == other)


class Waiting:
    """A request, as the server's lines see it, that takes until the test lets it go."""

    def __init__(self, **headers: str) -> None:
        self.requests = [SimpleNamespace(headers=headers)]
        self.begun, self.ended, self.may_end = threading.Event(), threading.Event(), threading.Event()

    def service(self) -> None:
        self.begun.set()
        self.may_end.wait()
        self.ended.set()


def test_requests_without_a_credential_leave_threads_to_those_with_one() -> None:
    strangers, known = [Waiting() for _ in range(5)], [Waiting(AUTHENTICATION="MUNGE:x") for _ in range(3)]
    lines = _Lines(most=2)
    lines.set_thread_count(3)
    try:
        for stranger in strangers:
            lines.add_task(stranger)
        for stranger in strangers[:2]:
            assert stranger.begun.wait(60)
        for one in known:
            one.may_end.set()
            lines.add_task(one)
            assert one.ended.wait(60)
        assert [stranger.begun.is_set() for stranger in strangers] == [True] * 2 + [False] * 3
        for stranger in strangers:
            stranger.may_end.set()
        for stranger in strangers:
            assert stranger.ended.wait(60)
    finally:
        lines.shutdown()


def test_who_brings_a_credential_is_served_before_those_without_one_who_came_earlier() -> None:
    first, stranger, known = Waiting(AUTHENTICATION="MUNGE:x"), Waiting(), Waiting(AUTHENTICATION="MUNGE:x")
    lines = _Lines(most=1)
    lines.set_thread_count(1)
    try:
        for task in (first, stranger, known):
            lines.add_task(task)
        assert first.begun.wait(60)
        first.may_end.set()
        assert known.begun.wait(60)
        assert not stranger.begun.is_set()
        for task in (known, stranger):
            task.may_end.set()
            assert task.ended.wait(60)
    finally:
        lines.shutdown()


def test_a_bucket_fills_again_at_its_rate() -> None:
    now = [0.0]
    rates = Rates(2, 4, lambda: now[0])
    assert [rates.allow(7) for _ in range(5)] == [True] * 4 + [False]
    now[0] += 0.5
    assert [rates.allow(7) for _ in range(2)] == [True, False]


def test_many_users_at_once_are_all_answered(served: Served, minter: Minter) -> None:
    done: list[int] = []

    def ask() -> None:
        credential = minter.credential(ALICE)
        text = (
            f"GET /api/list/{SYSTEM}/ HTTP/1.1\r\nHost: x\r\nauthentication: {credential}\r\nConnection: close\r\n\r\n"
        )
        done.append(exchange(served, text.encode())[0])

    threads = [threading.Thread(target=ask) for _ in range(32)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    wait_for(lambda: done == [200] * 32, what="all answers")
