"""Who has been told how an attempt ended: everybody who waited is, once, so that a client's polls end and restart nothing."""

from __future__ import annotations

from collections import OrderedDict
from uuid import UUID

from catalog.callers import Caller
from catalog.credential import Credential
from catalog.leases import SideTable
from catalog.record import ANSWER_WITHIN, Record, changed
from catalog.states import State

_AT_THE_REGISTRY = {None, State.INIT, State.PULLING}  # None: of a failure that an earlier version recorded
_REMEMBERED = 10000


class Told:
    """Answers to polls. What was told is noted in `table`, for all gateways, and the newest of it here."""

    def __init__(self, table: SideTable) -> None:
        self._table = table
        self._newest: OrderedDict[tuple[UUID, int, int], None] = OrderedDict()

    def waited(self, record: Record, caller: Caller, credential: Credential | None, now: float) -> bool:
        """Whether `record` is the answer that the caller has been waiting for, and was not given yet.

        Who has a credential is not told that an attempt without it failed at the registry: it may have failed for want of
        that. The next attempt has it and is his own, so this happens once (see `failed`).
        """
        attempt = record.attempt
        if attempt is None or record.state not in {State.READY, State.FAILURE} or not attempt.took_part(caller.uid):
            return False
        if record.state is State.READY and not sees(record, caller):
            return False
        if record.state is State.FAILURE and credential is not None and attempt.failed_in in _AT_THE_REGISTRY:
            tried = attempt.credentialed and attempt.uid == caller.uid
            if not tried:
                return False
        return self._tell(record, attempt.number, attempt.since, caller, now)

    def failed(self, record: Record, caller: Caller, now: float) -> Record | None:
        """The failure of the caller's own attempt, if others' came after it and he was not told. So he need not try again to
        hear of it, and users with wrong credentials who wait for each other hear once each.
        """
        failure = record.attempt.failures.get(caller.uid) if record.attempt is not None else None
        if failure is None or not self._tell(record, failure.number, failure.at, caller, now):
            return None
        attempt = changed(record.attempt, number=failure.number, reason=failure.reason, since=failure.at)
        return changed(record, state=State.FAILURE, attempt=attempt)

    def _tell(self, record: Record, number: int, ended: float, caller: Caller, now: float) -> bool:
        """Notes that the caller is told how an attempt ended; False when he was, or that was long ago."""
        key = (record.reference.uuid, number, caller.uid)
        if key in self._newest or abs(now - ended) > ANSWER_WITHIN:
            return False
        self._newest[key] = None
        while len(self._newest) > _REMEMBERED:
            self._newest.popitem(last=False)
        return self._table.tell(record.reference.uuid.hex, number, caller.uid)


def sees(record: Record, caller: Caller) -> bool:
    """Whether the caller may see the image of `record`."""
    return record.access is not None and record.access.allows(caller.uid, caller.groups)
