"""What one client may take: sizes, rates, time. Over real sockets, since the limits are the server's."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from catalog.rates import Rates
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
