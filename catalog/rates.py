"""How many requests one user, or one address without a credential, may send: a bucket for each that fills at a steady rate."""

from __future__ import annotations

import ipaddress
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable

_MOST = 10000  # buckets; who was not heard of for longest has a full one again


class Rates:
    """`rate` requests a second for each key, `burst` at once. A rate of 0 is no limit; the uid 0 (root) has none."""

    def __init__(self, rate: float, burst: float, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._rate = rate
        self._burst = burst
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._buckets: OrderedDict[Hashable, tuple[float, float]] = OrderedDict()

    def allow(self, key: Hashable) -> bool:
        """Takes one request from the bucket of `key`; False when it is empty."""
        if not self._rate or key == 0:
            return True
        now = self._monotonic()
        with self._lock:
            left, at = self._buckets.get(key, (self._burst, now))
            left = min(self._burst, left + (now - at) * self._rate)
            allowed = left >= 1
            self._buckets[key] = (left - 1 if allowed else left, now)
            self._buckets.move_to_end(key)
            if len(self._buckets) > _MOST:
                self._buckets.popitem(last=False)
        return allowed


def network(address: str) -> str:
    """Whose an address is, as far as it shows: the first 64 bits of IPv6, of which a host has as many as it likes."""
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(parsed, ipaddress.IPv4Address):
        return str(parsed)
    if parsed.ipv4_mapped is not None:
        return str(parsed.ipv4_mapped)
    return str(ipaddress.ip_network((int(parsed) >> 64 << 64, 64)))
