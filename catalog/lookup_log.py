"""Who looked up what, when Metrics is on: gathered in memory and written in groups, so that a look-up stays cheap.

A crash loses the look-ups of the last second; what must not be lost is in the event log.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from catalog.callers import Caller
from catalog.leases import Lookup, SideTable
from catalog.record import Record

_AT_ONCE = 500


class LookupLog:
    """Adds look-ups to `table` when `on`. Call `flush` every second or so, and before reading them."""

    def __init__(self, table: SideTable, clock: Callable[[], float], *, on: bool) -> None:
        self._table = table
        self._clock = clock
        self._on = on
        self._lock = threading.Lock()
        self._gathered: list[Lookup] = []

    def add(self, record: Record, caller: Caller) -> None:
        """Notes that `caller` looked the image of `record` up."""
        if not self._on or record.image is None:
            return
        name = record.reference
        one = Lookup(name.system, name.itype, name.tag, record.image.id, caller.uid, caller.name, self._clock())
        with self._lock:
            self._gathered.append(one)
            full = len(self._gathered) >= _AT_ONCE
        if full:
            self.flush()

    def flush(self) -> None:
        """Writes what is gathered. Raises SideTableUnavailable, and keeps it then."""
        with self._lock:
            gathered, self._gathered = self._gathered, []
        if not gathered:
            return
        try:
            self._table.add_lookups(gathered)
        except BaseException:
            with self._lock:
                self._gathered[:0] = gathered
            raise
