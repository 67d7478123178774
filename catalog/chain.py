"""The hash chain through the event log: how an event is tied to the one before it.

hash(n) = SHA-256(hash(n-1), n, stream, version, topic, state); hash(0) is 32 zero bytes. A store keeps the hash beside each
event and the newest (number, hash) apart, so that an event that was changed, removed, put in between, cut off the end or
put after it is found by `verify`. The chain shows tampering by somebody who does not recompute it;
against one who can, note the head (`shifter-admin audit verify` prints it) outside the gateway now and then.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol
from uuid import UUID

from eventsourcing.persistence import Notification, StoredEvent

GENESIS = bytes(32)


@dataclass(frozen=True)
class Linked:
    """An event of the log together with the hash that was stored beside it."""

    event: Notification
    hash: bytes


@dataclass(frozen=True)
class Head:
    """Number and hash of the newest event; (0, GENESIS) of an empty log."""

    id: int
    hash: bytes


class ChainedLog(Protocol):
    """What a store offers to a verifier."""

    def head(self) -> Head:
        """The newest event: the next save is linked to it."""

    def noted_end(self) -> Head:
        """The newest event as it is noted apart from the events. Never ahead of the log; behind it for a moment where
        a store cannot write both in one transaction.
        """

    def select_linked(self, after: int, limit: int) -> Sequence[Linked]:
        """Up to `limit` events with numbers above `after`, in order."""


@dataclass(frozen=True)
class Fault:
    """The first place where the chain does not hold: the event's number and what is wrong there."""

    id: int
    reason: str


def stream(event: StoredEvent) -> str:
    """The event's stream as text, the same in every store."""
    originator = event.originator_id
    return originator.hex if isinstance(originator, UUID) else originator


def identity(name: object) -> UUID | str:
    """The stream that a store has as text; the text itself when it is no UUID, as in a row that somebody rewrote."""
    try:
        return UUID(hex=str(name))
    except ValueError:
        return str(name)


def link(previous: bytes, number: int, event: StoredEvent) -> bytes:
    """The hash of `event` as the `number`-th of the log, after one with the hash `previous`."""
    digest = hashlib.sha256(previous)
    # Every field is preceded by its length or fixed in it, so no two events share their input.
    head = f"{number} {event.originator_version} {stream(event)} {len(event.topic)} {event.topic} ".encode()
    digest.update(head)
    state: object = event.state  # SQLite gives any type for a row that somebody rewrote by hand
    digest.update(state if isinstance(state, bytes) else str(state).encode())
    return digest.digest()


def links(head: Head, events: Iterable[StoredEvent]) -> Iterator[tuple[int, StoredEvent, bytes]]:
    """Number, event and hash of each of `events` as the next of the log after `head`."""
    number, previous = head.id, head.hash
    for event in events:
        number += 1
        previous = link(previous, number, event)
        yield number, event, previous


def extend(head: Head, events: Iterable[StoredEvent]) -> list[Linked]:
    """`events` as the next of the log after `head`, numbered and linked."""
    return [
        Linked(
            Notification(
                id=number,
                originator_id=event.originator_id,
                originator_version=event.originator_version,
                topic=event.topic,
                state=event.state,
            ),
            linked,
        )
        for number, event, linked in links(head, events)
    ]


def verify(log: ChainedLog, *, page: int = 5000) -> Fault | None:
    """The first fault of the chain, or None. Reads the whole log; new events may be added meanwhile."""
    noted, head = log.noted_end(), log.head()
    last = max(noted.id, head.id)
    number, previous = 0, GENESIS
    while number < last:
        rows = log.select_linked(number, page)
        if not rows:
            return Fault(number + 1, f"events {number + 1} to {last} are missing from the end of the log")
        for row in rows:
            if number == last:
                break  # written meanwhile
            number += 1
            if row.event.id != number:
                return Fault(number, f"event {number} is missing; the next one found is {row.event.id}")
            previous = link(previous, number, row.event)
            if previous != row.hash:
                return Fault(
                    number, f"event {number} ({row.event.topic}) is not what was recorded, or the one before it"
                )
            if (number == noted.id and previous != noted.hash) or (number == head.id and previous != head.hash):
                return Fault(number, f"event {number} does not end the chain that the log says it ends")
    # In this order: what was written meanwhile is not beyond the newest.
    written, newest = log.select_linked(last, page), log.head().id
    for row in written:
        if row.event.id > newest:
            return Fault(row.event.id, f"event {row.event.id} was put after the end of the log")
    return None
