"""Brings what is owed to the nodes there, in the background: a thread for each platform, so that one whose machines do not
answer keeps neither requests nor other platforms waiting.
"""

from __future__ import annotations

import logging
import sqlite3
import threading
from collections.abc import Iterable

from eventsourcing.persistence import PersistenceError

from cas.errors import StoreError
from catalog.config import Platform
from catalog.leases import SideTableUnavailable
from catalog.publication import Publication

log = logging.getLogger("shifter.settling")

_EVERY = 20.0  # seconds between two looks for changes that nodes have not seen


class Settling:
    """The threads. `soon` says that a platform owes something now; without it each looks every 20 s. `left`: changes of each
    platform that could not be settled at the last look.
    """

    def __init__(self, publication: Publication, platforms: Iterable[Platform]) -> None:
        self._publication = publication
        self._platforms = {platform.name: platform for platform in platforms}
        self.left = dict.fromkeys(self._platforms, 0)
        self._woken = {name: threading.Event() for name in self._platforms}
        self._stopping = False

    def threads(self) -> list[threading.Thread]:
        """One for each platform, to be started."""
        return [
            threading.Thread(target=self._run, args=(platform,), name=f"settle-{name}", daemon=True)
            for name, platform in self._platforms.items()
        ]

    def soon(self, platform: Platform) -> None:
        self._woken[platform.name].set()

    def stop(self) -> None:
        """Lets each thread end once it is done with what it is at."""
        self._stopping = True
        for woken in self._woken.values():
            woken.set()

    def _run(self, platform: Platform) -> None:
        woken = self._woken[platform.name]
        while not self._stopping:
            # Before the look: what is owed from here on wakes the thread again.
            woken.clear()
            if self._stopping:
                return
            try:
                self.left[platform.name] = self._publication.pay([platform])
            except (PersistenceError, SideTableUnavailable, StoreError, sqlite3.Error, OSError) as error:
                log.warning("cannot reach the store: %s", error)
            woken.wait(_EVERY)
