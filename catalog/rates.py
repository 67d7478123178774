"""How many requests one user may send: a bucket for each uid that fills at a steady rate."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable


class Rates:
    """`rate` requests a second for each uid, `burst` at once. A rate of 0 is no limit; root has none."""

    def __init__(self, rate: float, burst: float, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._rate = rate
        self._burst = burst
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._buckets: dict[int, tuple[float, float]] = {}

    def allow(self, uid: int) -> bool:
        """Takes one request from the bucket of `uid`; False when it is empty."""
        if not self._rate or uid == 0:
            return True
        now = self._monotonic()
        with self._lock:
            left, at = self._buckets.get(uid, (self._burst, now))
            left = min(self._burst, left + (now - at) * self._rate)
            if left < 1:
                self._buckets[uid] = (left, now)
                return False
            self._buckets[uid] = (left - 1, now)
            if len(self._buckets) > 10000:
                # Full buckets say nothing that a new one would not.
                self._buckets = {
                    k: v for k, v in self._buckets.items() if v[0] + (now - v[1]) * self._rate < self._burst
                }
            return True
