"""The HTTP server: waitress, with its own refusals in JSON too.

Requests are read whole by one thread that never blocks before a worker thread sees them, so a slow client holds no worker;
what is too large or too slow is refused or cut as the configuration's Limits say. Requests without a credential wait in a
line of their own: one with a credential never waits behind them. Threads are many for the sake of requests that wait; those that
compute are few at a time.
"""

from __future__ import annotations

import json
import time
from collections import deque
from typing import Any

from waitress.channel import HTTPChannel
from waitress.server import create_server
from waitress.task import ErrorTask, ThreadedTaskDispatcher, WSGITask

from catalog.config import Configuration

_AT_ONCE = 2
"""Requests that threads work at side by side. All share one interpreter: of 16 look-ups at once each waits for it at every turn,
and half as many are answered as by two."""
_SHORT = 0.02  # seconds: what a request has taken when it is taken to wait for something


class _JsonErrorTask(ErrorTask):
    """Answers a request that waitress itself refuses (malformed, too large) as catalog.rest answers its errors."""

    def execute(self) -> None:
        request: Any = self.request  # the stubs take it for an error
        error = request.error
        path = getattr(request, "path", None) or "/"  # a request that cannot be parsed has none
        status = f"{error.code} {error.reason}"
        reason = str(error.body or error.reason).strip()
        text = json.dumps({"status": error.code, "error": reason, "message": f"{error.reason}: {path}"})
        body = text.encode()
        self.status = status
        self.content_length = len(body)
        self.response_headers = [
            *self.response_headers,
            ("Content-Type", "application/json"),
            ("Content-Length", str(len(body))),
        ]
        self.set_close_on_finish()
        self.write(body)


class _Task(WSGITask):
    """Sends the header of an answer together with the first of its body: each send(2) costs as much as a look-up itself."""

    channel: _Channel

    def write(self, data: bytes) -> None:
        if self.wrote_header:
            super().write(data)
            return
        self.channel.hold()
        try:
            super().write(data)
        finally:
            self.channel.release()


class _Channel(HTTPChannel):
    task_class = _Task
    error_task_class = _JsonErrorTask
    _held: list[bytes] | None = None

    def hold(self) -> None:
        """Keep what is written until `release`."""
        self._held = []

    def release(self) -> None:
        held, self._held = self._held, None
        if held:
            self.write_soon(b"".join(held))

    def write_soon(self, data: bytes) -> int:
        if self._held is None:
            return int(super().write_soon(data))
        self._held.append(data)
        return len(data)

    def handle_read(self) -> None:
        begun, active = self.request, self.last_activity
        super().handle_read()
        if begun is not None and self.request is begun:
            # A request that comes in drops is as old as its first byte: else each drop would hold the connection anew.
            self.last_activity = active


class _Lines(ThreadedTaskDispatcher):
    """Two lines before the threads: who brings a credential goes first, and all others have `most` threads at a time. So
    somebody whom nobody knows cannot keep the others out, however much he asks; what he may have is catalog.rates'.
    """

    def __init__(self, most: int) -> None:
        super().__init__()
        self._most = most
        self._strangers: deque[Any] = deque()
        self._served = 0
        self._begun: dict[int, float] = {}
        self._watched = False

    def add_task(self, task: Any) -> None:
        known = "AUTHENTICATION" in task.requests[0].headers
        with self.lock:
            (self.queue if known else self._strangers).append(task)
            self._call()

    def handler_thread(self, thread_no: int) -> None:
        """As the base class has it, but for the choice of the task, and its time."""
        while True:
            with self.lock:
                while not (self._waiting() and self._room()) and not self.stop_count:
                    watching = self._waiting() and not self._watched
                    self._watched |= watching
                    self.active_count -= 1
                    self.queue_cv.wait(_SHORT if watching else None)
                    self.active_count += 1
                    if watching:
                        self._watched = False
                if self.stop_count:
                    self.active_count -= 1
                    self.stop_count -= 1
                    self.threads.discard(thread_no)
                    self.thread_exit_cv.notify()
                    return
                stranger = not self.queue
                task = self._strangers.popleft() if stranger else self.queue.popleft()
                self._served += stranger
                self._begun[thread_no] = time.monotonic()
                if self._waiting():
                    self._call()
            try:
                task.service()
            except BaseException:
                self.logger.exception("Exception when servicing %r", task)
            with self.lock:
                del self._begun[thread_no]
                self._served -= stranger

    def _call(self) -> None:
        """Wakes a thread for what waits: to do it, or to look again soon. Who is done with something looks by himself."""
        if self._room() or not self._watched:
            self.queue_cv.notify()

    def _waiting(self) -> bool:
        return bool(self.queue or self._admits())

    def _room(self) -> bool:
        """Whether one more thread would not be in the others' way. A request that takes long waits for something: a disk, a
        registry. It does not count.
        """
        now = time.monotonic()
        return sum(now - begun < _SHORT for begun in self._begun.values()) < _AT_ONCE

    def shutdown(self, cancel_pending: bool = True, timeout: int = 5) -> bool:
        with self.lock:
            self.queue.extend(self._strangers)
            self._strangers.clear()
        return bool(super().shutdown(cancel_pending, timeout))

    def _admits(self) -> bool:
        return bool(self._strangers) and self._served < self._most


class Server:
    """Serves `app` on host:port (0: a free one, see `port`). Raises OSError when it cannot listen."""

    def __init__(self, app: Any, host: str, port: int, configuration: Configuration) -> None:
        limits = configuration.limits
        lines = _Lines(max(1, configuration.request_threads // 2))
        lines.set_thread_count(configuration.request_threads)
        server: Any = create_server(  # one address, so a TcpWSGIServer
            app,
            _dispatcher=lines,
            host=host,
            port=port,
            threads=configuration.request_threads,
            ident=None,
            connection_limit=limits.connections,
            channel_timeout=max(1, int(limits.request_seconds)),
            cleanup_interval=max(1, int(limits.request_seconds / 3)),
            max_request_body_size=limits.request_bytes,
            max_request_header_size=limits.header_bytes,
            clear_untrusted_proxy_headers=True,
            asyncore_use_poll=True,
        )
        server.channel_class = _Channel
        self._server = server
        self.host = host
        self.port = int(server.effective_port)

    def run(self) -> None:
        """Serves until KeyboardInterrupt or SystemExit."""
        self._server.run()

    def close(self) -> None:
        self._server.close()
