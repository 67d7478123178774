"""A registry over http.server that does what a test tells it to: refuse, lie, cut connections, ask to wait."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from tests.catalog.registry_fixture import Built


@dataclass
class Request:
    """What a client asked. path: without the address. headers: names in lower case."""

    path: str
    headers: dict[str, str]


@dataclass
class Answer:
    """What it gets. cut: after so many bytes of the body the connection is closed. length: a false Content-Length. drip:
    from the "head" or from the "body" on, one byte after the other, with 10 ms between two.
    """

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    cut: int | None = None
    length: int | None = None
    drip: str | None = None


Hook = Callable[[Request], Answer | None]


class LyingRegistry:
    """Serves one image under any repository name; `hook` may answer in its place."""

    def __init__(self, image: Built) -> None:
        self.image = image
        self.hook: Hook = lambda request: None
        self.requests: list[Request] = []
        self.url = ""
        self.ranges = True
        self.ended = threading.Event()

    def answer(self, request: Request) -> Answer:
        self.requests.append(request)
        told = self.hook(request)
        return told if told is not None else self.truth(request)

    def truth(self, request: Request) -> Answer:
        """What an honest registry answers."""
        kind, _, name = request.path.rpartition("/")
        if kind.endswith("/manifests"):
            return Answer(body=self.image.manifest, headers={"Content-Type": self.image.media_type})
        blob = self.image.blobs.get(name)
        if blob is None:
            return error(404, "BLOB_UNKNOWN", "blob unknown to registry")
        wanted = request.headers.get("range", "")
        if wanted and self.ranges:
            start = int(wanted.removeprefix("bytes=").partition("-")[0])
            return Answer(206, blob[start:], {"Content-Range": f"bytes {start}-{len(blob) - 1}/{len(blob)}"})
        return Answer(body=blob)

    def paths(self, part: str) -> list[Request]:
        """The requests for paths that contain this."""
        return [request for request in self.requests if part in request.path]

    def blob_requests(self, layer: int = 0) -> list[Request]:
        return self.paths(json.loads(self.image.manifest)["layers"][layer]["digest"])


def error(status: int, code: str, message: str, **headers: str) -> Answer:
    """An error as the distribution specification has it."""
    body = json.dumps({"errors": [{"code": code, "message": message}]}).encode()
    return Answer(status, body, {key.replace("_", "-"): value for key, value in headers.items()})


class _Dripping:
    """Hands on byte by byte what is written to it."""

    def __init__(self, out: Any, ended: threading.Event) -> None:
        self._out, self._ended = out, ended

    def write(self, data: bytes) -> None:
        for byte in data:
            if self._ended.wait(0.01):
                raise BrokenPipeError
            self._out.write(bytes([byte]))


@contextmanager
def lying(image: Built) -> Iterator[LyingRegistry]:
    """A running LyingRegistry on a free port of loopback."""
    registry = LyingRegistry(image)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wfile: Any

        def handle(self) -> None:
            with suppress(ConnectionError):  # of a client that does not wait for the rest
                super().handle()

        def do_GET(self) -> None:
            headers = {name.lower(): value for name, value in self.headers.items()}
            given = registry.answer(Request(self.path, headers))
            honest: Any = self.wfile
            if given.drip == "head":
                self.wfile = _Dripping(honest, registry.ended)
            self.send_response(given.status)
            for name, value in given.headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(given.body) if given.length is None else given.length))
            try:
                self.end_headers()
                if given.drip == "body":
                    self.wfile = _Dripping(honest, registry.ended)
                self.wfile.write(given.body if given.cut is None else given.body[: given.cut])
            except OSError:  # the client has had enough
                self.close_connection = True
            self.wfile = honest
            if given.cut is not None or given.length is not None:
                self.close_connection = True

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    registry.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield registry
    finally:
        registry.ended.set()
        server.shutdown()
        thread.join()
        server.server_close()
