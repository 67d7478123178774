"""Counts of what this process has done since its start, for /metrics."""

from __future__ import annotations

import threading
from collections import defaultdict


class Counters:
    """Numbers by metric and label. Safe to use from many threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: defaultdict[tuple[str, str], float] = defaultdict(float)

    def add(self, name: str, label: str = "", count: float = 1) -> None:
        with self._lock:
            self._counts[name, label] += count

    def of(self, name: str) -> list[tuple[str, float]]:
        with self._lock:
            return sorted((label, count) for (key, label), count in self._counts.items() if key == name)
