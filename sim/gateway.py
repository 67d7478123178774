"""The image gateway in a launch: its queue and its times from the model, its answers from the real application.

`Answers` is what answers: `sim.answers` puts the product's own REST application behind it. This module adds what a
client on a node does (which gateway, time-outs, attempts) and what the model charges; it decides nothing about
images.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import Any, Protocol

import simpy

from sim.faults import CREDENTIAL_LIFE
from sim.parameters import Scenario
from sim.station import Station, Window


@dataclass(frozen=True)
class Answer:
    """HTTP status, the image's identifier (64 hex digits, or "" when there is none yet), its state, the reason of a refusal."""

    status: int
    identifier: str = ""
    state: str = ""
    reason: str = ""


class Answers(Protocol):
    """Who answers requests, at a time of the simulation's clock (seconds)."""

    def lookup(self, user: int, reference: str, now: float) -> Answer: ...

    def pull(self, user: int, reference: str, now: float) -> Answer: ...


class LookupFailed(Exception):
    """A look-up or pull ended without an image; the text is the client's one line."""


class GatewayService:
    """The gateways of a site, as clients reach them."""

    def __init__(
        self,
        environment: simpy.Environment,
        scenario: Scenario,
        station: type[Station],
        answers: Answers,
        windows: tuple[Window, ...],
    ) -> None:
        self.environment = environment
        self.parameters = scenario.gateway
        self.answers = answers
        self.down = tuple(w for w in windows if w.factor == float("inf"))
        slow = tuple(w for w in windows if w.factor != float("inf"))
        self.stations = [
            station(environment, f"gateway {i}", self.parameters.threads, slow) for i in range(self.parameters.gateways)
        ]
        self.lookups = 0
        self.pulls = 0
        self.timeouts = 0

    def lookup(self, user: int, reference: str, client: int, skew: float = 0.0) -> Generator[simpy.Event, Any, str]:
        """One look-up by a client (its number chooses the gateway); returns the identifier.

        Raises LookupFailed: no gateway answers in time, or the answer is a refusal.
        """
        yield self.environment.timeout(self.parameters.client_seconds)
        yield from self._reach(client)
        self.lookups += 1
        self._credential(skew)
        answer = self.answers.lookup(user, reference, self.environment.now)
        if answer.status != 200 or not answer.identifier:
            raise LookupFailed(f"{reference}: {answer.reason or f'HTTP {answer.status}'}")
        return answer.identifier

    def pull(self, user: int, reference: str, client: int) -> Generator[simpy.Event, Any, str]:
        """One pull, polled until the image is there; returns the identifier. Raises LookupFailed."""
        yield self.environment.timeout(self.parameters.client_seconds)
        while True:
            yield from self._reach(client)
            self.pulls += 1
            answer = self.answers.pull(user, reference, self.environment.now)
            if answer.status != 200 or answer.state == "FAILURE":
                raise LookupFailed(f"{reference}: {answer.reason or f'HTTP {answer.status}'}")
            if answer.state == "READY":
                return answer.identifier
            yield self.environment.timeout(self.parameters.poll_seconds)

    def _credential(self, skew: float) -> None:
        if abs(skew) > CREDENTIAL_LIFE:
            raise LookupFailed(f"munge refuses the credential: this node's clock is wrong by {skew:.0f} s")

    def _reach(self, client: int) -> Generator[simpy.Event, Any, None]:
        p = self.parameters
        for attempt in range(p.attempts):
            now = self.environment.now
            if any(w.begin <= now < w.end for w in self.down):
                self.timeouts += 1
                yield self.environment.timeout(p.timeout)
                continue
            station = self.stations[(client + attempt) % len(self.stations)]
            yield from station.visit(p.lookup_seconds)
            return
        raise LookupFailed(f"no gateway answered: {p.attempts} attempts of {p.timeout:g} s each")
