"""A floor under the speed of a registry, so that one which sends a byte now and then does not hold a worker for ever.

A time-out between two bytes is all that requests has, and it never strikes there. Here every answer is read by way of
`_Paced`: its head, its chunks and its body. Only the time spent in waiting for the registry counts.
"""

from __future__ import annotations

import http.client
import io
import socket
import time
from collections.abc import Mapping
from typing import Any

import requests
import urllib3


class PacedAdapter(requests.adapters.HTTPAdapter):
    """Sends requests as its base does. An answer that brings fewer than `least` bytes a second, counted over `seconds`
    of waiting, ends in the time-out errors of requests and urllib3. Holds for every way out: direct, HTTP proxy, SOCKS.
    """

    def __init__(self, *, seconds: float, least: float, **keywords: Any) -> None:
        self._seconds, self._least = seconds, least
        super().__init__(**keywords)

    def init_poolmanager(self, *arguments: Any, **keywords: Any) -> None:
        super().init_poolmanager(*arguments, **keywords)
        self._pace(self.poolmanager)

    def proxy_manager_for(self, proxy: str, **keywords: Any) -> Any:
        known = proxy in self.proxy_manager
        manager = super().proxy_manager_for(proxy, **keywords)
        if not known:
            self._pace(manager)
        return manager

    def _pace(self, manager: urllib3.PoolManager) -> None:
        """Has the manager's connections read by way of `_Paced`, whatever kind of connections they are."""
        seconds, least = self._seconds, self._least

        class Answer(http.client.HTTPResponse):
            def __init__(self, sock: socket.socket, *arguments: Any, **keywords: Any) -> None:
                super().__init__(sock, *arguments, **keywords)
                self.fp = io.BufferedReader(_Paced(self.fp.detach(), seconds, least))

        classes = {}
        pools: Mapping[str, Any] = manager.pool_classes_by_scheme
        for scheme, pool in pools.items():
            connection = type("PacedConnection", (pool.ConnectionCls,), {"response_class": Answer})
            classes[scheme] = type("PacedPool", (pool,), {"ConnectionCls": connection})
        manager.pool_classes_by_scheme = classes


class _Paced(io.RawIOBase):
    def __init__(self, raw: io.RawIOBase, seconds: float, least: float) -> None:
        self._raw = raw
        self._seconds = seconds
        self._least = least
        self._waited = 0.0
        self._came = 0

    def readable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._raw.fileno()

    def readinto(self, buffer: Any) -> int | None:
        started = time.monotonic()
        count: int | None = self._raw.readinto(buffer)
        self._waited += time.monotonic() - started
        self._came += count or 0
        if self._waited >= self._seconds:
            if count and self._came < self._least * self._waited:
                raise TimeoutError(f"{self._came} bytes in {self._waited:.0f} s")
            self._waited, self._came = 0.0, 0
        return count

    def close(self) -> None:
        self._raw.close()
        super().close()
