"""A server in the gateway's place whose every answer a test writes down: for what a client does with faults.

It speaks HTTP exactly as the gateway does (Content-Type, Content-Length, one JSON object) unless the test asks it not
to. How the client and the real gateway get on is tested in tests/site/.
"""

import json
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote


@dataclass(frozen=True)
class Asked:
    """One request: `path` as sent, `headers` with lower-case names, `body` parsed (None when empty)."""

    method: str
    path: str
    headers: dict[str, str]
    body: Any

    @property
    def route(self) -> str:
        """The path decoded, without its query."""
        return unquote(self.path.partition("?")[0])


@dataclass(frozen=True)
class Raw:
    """Bytes to send instead of an answer; then the connection is closed."""

    data: bytes


Answer = tuple[int, Any] | Raw
Script = Callable[[Asked], Answer]


@dataclass
class GatewayDouble:
    url: str
    asked: list[Asked] = field(default_factory=list)

    def routes(self) -> list[str]:
        return [f"{each.method} {each.route}" for each in self.asked]


@contextmanager
def answering(script: Script, tls: ssl.SSLContext | None = None) -> Iterator[GatewayDouble]:
    """A double on a port of its own; `script` turns each request into (status, JSON value) or Raw bytes."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle_any(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            text = self.rfile.read(length)
            headers = {name.lower(): value for name, value in self.headers.items()}
            request = Asked(self.command, self.path, headers, json.loads(text) if text else None)
            double.asked.append(request)
            answer = script(request)
            self.close_connection = True
            if isinstance(answer, Raw):
                self.wfile.write(answer.data)
                return
            status, value = answer
            body = json.dumps(value).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_POST = do_DELETE = handle_any  # noqa: N815 (the standard library's names)

        def log_message(self, *_: object) -> None:
            """Nothing: a test's output is the client's."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    if tls:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
        server.handle_error = lambda *_: None  # type: ignore[method-assign]  # a client that trusts us not is no news
    double = GatewayDouble(f"{'https' if tls else 'http'}://127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield double
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextmanager
def silent() -> Iterator[str]:
    """The URL of a server that accepts connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


@contextmanager
def dripping() -> Iterator[str]:
    """The URL of a server that sends a header line without end, a byte every 50 ms."""
    stop = threading.Event()

    def drip() -> None:
        connection, _ = server.accept()
        with connection, suppress(OSError):
            while not stop.wait(0.05):
                connection.send(b"H")

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=drip)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.getsockname()[1]}"
        finally:
            stop.set()
            thread.join()


@contextmanager
def nobody() -> Iterator[str]:
    """The URL of a port that refuses connections, and stays free meanwhile: it is bound, but nobody listens."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{bound.getsockname()[1]}"


def record(tag: str = "ubuntu:24.04", status: str = "READY", **fields: Any) -> dict[str, Any]:
    """An IMAGE as the gateway gives it."""
    whole = {
        "id": "ab" * 32, "system": "mycluster", "itype": "docker", "tag": [tag], "status": status, "userACL": None,
        "groupACL": None, "ENV": [], "ENTRY": None, "WORKDIR": None, "LABELS": {}, "last_pull": 1795455600.0,
        "status_message": "MISSING",
    }  # fmt: skip
    return {**whole, **fields}


def missing(request: Asked) -> Answer:
    return 404, {"status": 404, "error": "image not found", "message": f"Not Found: {request.path}"}
