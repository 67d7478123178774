"""Servers with a queue: the metadata server, a data server, a gateway, the controller.

A station serves in order of arrival with `servers` servers. It promises to lose nothing: every visit is recorded
with its arrival, start and departure, and `check` compares the record with the laws that such a queue obeys.
Because service is in order, the departure is known on arrival, so a visit costs the simulation one event however
long the queue is (`Station`). `SteppedStation` is the same queue played out by simpy's own Resource; tests hold the
two against each other.
"""

from __future__ import annotations

import heapq
from array import array
from collections.abc import Generator
from dataclasses import dataclass
from typing import Any

import numpy as np
import simpy
from numpy.typing import NDArray

Process = Generator[simpy.Event, Any, None]


class LawBroken(AssertionError):
    """The simulation contradicts a law that its model must obey: a defect of the simulator, never of the site."""


@dataclass(frozen=True)
class Window:
    """A time in which a station serves slower by `factor`, or, when `factor` is infinite, starts nothing. Seconds."""

    begin: float
    end: float
    factor: float


@dataclass(frozen=True)
class StationReport:
    """What a station did: counts and seconds over the whole run. `utilisation` is the part of the time until the last task
    was up in which its servers worked: what the nodes send afterwards (epilogs) holds up no start."""

    name: str
    servers: int
    visits: int
    operations: int
    bytes: int
    busy: float
    utilisation: float
    mean_wait: float
    longest_wait: float
    peak_queue: int


class Station:
    """`servers` servers, one queue, first come first served."""

    def __init__(
        self, environment: simpy.Environment, name: str, servers: int = 1, windows: tuple[Window, ...] = ()
    ) -> None:
        self.environment = environment
        self.name = name
        self.servers = servers
        self.windows = windows
        self.operations = 0
        self.bytes = 0
        self.arrivals = array("d")
        self.starts = array("d")
        self.departures = array("d")
        self._free = [0.0] * servers
        self._inside = 0
        self._area = 0.0
        self._since = 0.0

    def visit(self, seconds: float, operations: int = 1, size: int = 0) -> Process:
        """Queue, be served for `seconds`, leave. `operations` and `size` (bytes) are only counted."""
        now = self.environment.now
        start, service = self._begin(max(now, self._free[0]), seconds)
        departure = start + service
        heapq.heapreplace(self._free, departure)
        self._enter(operations, size)
        self.arrivals.append(now)
        self.starts.append(start)
        self.departures.append(departure)
        served = self.environment.timeout(departure - now)
        served.callbacks.append(self._leave)  # a visitor who is gone (a crashed node) is served all the same
        yield served

    def _begin(self, start: float, seconds: float) -> tuple[float, float]:
        for window in self.windows:
            if window.begin <= start < window.end:
                if window.factor == float("inf"):
                    start = window.end
                else:
                    seconds *= window.factor
        return start, seconds

    def _enter(self, operations: int, size: int) -> None:
        self.operations += operations
        self.bytes += size
        self._count(+1)

    def _leave(self, _event: simpy.Event) -> None:
        self._count(-1)

    def _count(self, change: int) -> None:
        now = self.environment.now
        self._area += self._inside * (now - self._since)
        self._since = now
        self._inside += change

    def queue(self) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """Times, and how many were inside (waiting or served) from each on."""
        times = (
            np.concatenate([np.frombuffer(self.arrivals), np.frombuffer(self.departures)])
            if self.arrivals
            else np.zeros(0)
        )
        change = np.concatenate([np.ones(len(self.arrivals), np.int64), -np.ones(len(self.departures), np.int64)])
        order = np.lexsort((change, times))  # at one instant, who leaves goes before who comes
        return times[order], np.cumsum(change[order])

    def report(self, end: float) -> StationReport:
        """The account of this station; its utilisation over [0, end] seconds."""
        arrivals, starts, departures = (np.array(a) for a in (self.arrivals, self.starts, self.departures))
        busy = float(np.sum(departures - starts)) if len(arrivals) else 0.0
        waits = starts - arrivals
        before = float(np.sum(np.minimum(departures, end) - np.minimum(starts, end))) if len(arrivals) else 0.0
        return StationReport(
            name=self.name,
            servers=self.servers,
            visits=len(arrivals),
            operations=self.operations,
            bytes=self.bytes,
            busy=busy,
            utilisation=before / (end * self.servers) if end > 0 else 0.0,
            mean_wait=float(waits.mean()) if len(waits) else 0.0,
            longest_wait=float(waits.max()) if len(waits) else 0.0,
            peak_queue=int(self.queue()[1].max()) if len(arrivals) else 0,
        )

    def check(self) -> None:
        """Raises LawBroken unless: nobody is left inside; service is in order; at most `servers` at once; no server
        idles while somebody waits; and Little's law holds (the area under the number inside is the sum of the times
        inside)."""
        if self._inside or not len(self.arrivals) == len(self.starts) == len(self.departures):
            raise LawBroken(f"{self.name}: {self._inside} visits never left")
        if not self.arrivals:
            return
        arrivals, starts, departures = (np.array(a) for a in (self.arrivals, self.starts, self.departures))
        slack = 1e-9 * max(1.0, float(departures.max()))
        if np.any(np.diff(arrivals) < -slack) or np.any(np.diff(starts) < -slack):
            raise LawBroken(f"{self.name}: served out of order")
        if np.any(starts < arrivals - slack) or np.any(departures < starts - slack):
            raise LawBroken(f"{self.name}: served before arrival")
        gone = np.sort(departures)
        earliest = arrivals.copy()
        earliest[self.servers :] = np.maximum(earliest[self.servers :], gone[: max(0, len(gone) - self.servers)])
        if np.any(starts < earliest - slack):
            raise LawBroken(f"{self.name}: more than {self.servers} served at once")
        if (
            self.servers == 1
            and not any(w.factor == float("inf") for w in self.windows)
            and np.any(starts > earliest + slack)
        ):
            raise LawBroken(f"{self.name}: idle while somebody waited")
        inside = float(np.sum(departures - arrivals))
        if abs(self._area - inside) > 1e-6 * max(1.0, inside):
            raise LawBroken(f"{self.name}: Little's law: area {self._area:.9g}, times inside {inside:.9g}")


class SteppedStation(Station):
    """The same queue, played event by event: slow, and the measure of the other."""

    def __init__(
        self, environment: simpy.Environment, name: str, servers: int = 1, windows: tuple[Window, ...] = ()
    ) -> None:
        super().__init__(environment, name, servers, windows)
        self._resource = simpy.Resource(environment, capacity=servers)
        self._turns: list[simpy.resources.resource.Request] = []

    def visit(self, seconds: float, operations: int = 1, size: int = 0) -> Process:
        """As Station.visit."""
        self._enter(operations, size)
        served = self.environment.process(self._serve(seconds, len(self.arrivals)))
        self.arrivals.append(self.environment.now)
        self.starts.append(float("nan"))
        self.departures.append(float("nan"))
        turn = self._resource.request()
        self._turns.append(turn)
        served.callbacks.append(self._leave)
        yield served

    def _serve(self, seconds: float, index: int) -> Process:
        environment = self.environment
        turn = self._turns[index]
        yield turn
        start, service = self._begin(environment.now, seconds)
        if start > environment.now:
            yield environment.timeout(start - environment.now)
        self.starts[index] = environment.now
        yield environment.timeout(service)
        self.departures[index] = environment.now
        self._resource.release(turn)
