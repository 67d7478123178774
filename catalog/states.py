"""The states of an image reference, and the one table of how they follow each other.

Promises that every state a client sees is a `State`, and that a command which does not fit the state is refused with
a reason (`NotAllowed`). It does not decide who may give a command (catalog.acl) nor what an event changes
(catalog.record).
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum


class Stage(StrEnum):
    """How far a worker is with one image. The words are those that existing clients print."""

    PULLING = "PULLING"
    EXAMINATION = "EXAMINATION"
    CONVERSION = "CONVERSION"
    HASHING = "HASHING"
    TRANSFER = "TRANSFER"


class State(StrEnum):
    """Where a reference stands. The words are those of the REST surface."""

    INIT = "INIT"
    PENDING = "PENDING"
    PULLING = "PULLING"
    EXAMINATION = "EXAMINATION"
    CONVERSION = "CONVERSION"
    HASHING = "HASHING"
    TRANSFER = "TRANSFER"
    READY = "READY"
    FAILURE = "FAILURE"
    EXPIRED = "EXPIRED"
    REMOVED = "REMOVED"

    @property
    def live(self) -> bool:
        """A pull or import is under way: somebody works at it, or will."""
        return self in LIVE


LIVE = frozenset(
    {
        State.INIT,
        State.PENDING,
        State.PULLING,
        State.EXAMINATION,
        State.CONVERSION,
        State.HASHING,
        State.TRANSFER,
    }
)


class Action(StrEnum):
    """What can happen to a reference; each is recorded by the event of the same name (docs/events.md)."""

    PULL = "pull"
    JOIN = "join"
    IMPORT = "import"
    STAGE = "stage"
    COMPLETE = "complete"
    FAIL = "fail"
    CHANGE_ACL = "change the ACL of"
    USE = "use"
    EXPIRE = "expire"
    REMOVE = "remove"
    RESTORE = "restore"
    TAG = "tag"
    UNTAG = "untag"
    MIGRATE = "migrate"


_IDLE = frozenset({State.READY, State.FAILURE, State.EXPIRED, State.REMOVED})

# The table. A state that is not listed for an action refuses it; None stands for a reference nobody has spoken of yet.
# FAILURE allows what READY allows where the reference still holds the image of an earlier pull (see `check`).
TABLE: Mapping[Action, frozenset[State | None]] = {
    Action.PULL: _IDLE | {None},
    Action.JOIN: LIVE,
    Action.IMPORT: _IDLE | {None},
    Action.STAGE: LIVE,
    Action.COMPLETE: LIVE,
    Action.FAIL: LIVE,
    Action.CHANGE_ACL: frozenset({State.READY, State.FAILURE}) | LIVE,
    Action.USE: frozenset({State.READY, State.FAILURE}) | LIVE,
    Action.EXPIRE: frozenset({State.READY, State.FAILURE}),
    Action.REMOVE: frozenset({State.READY, State.FAILURE, State.EXPIRED}),
    Action.RESTORE: frozenset({State.EXPIRED}),
    Action.TAG: _IDLE | {None},
    Action.UNTAG: frozenset({State.READY}),
    Action.MIGRATE: _IDLE | {None},
}

# These need an image, whatever the state.
_NEEDS_IMAGE = frozenset({Action.CHANGE_ACL, Action.USE, Action.RESTORE, Action.UNTAG})

_WHY: Mapping[State | None, str] = {
    None: "nobody has pulled it",
    State.READY: "it is ready",
    State.FAILURE: "its last pull failed",
    State.EXPIRED: "it has expired",
    State.REMOVED: "it was removed",
}


class NotAllowed(Exception):
    """A command that does not fit the state of the reference; the text says which and why, for a user's terminal."""


def check(action: Action, state: State | None, name: str, *, has_image: bool) -> None:
    """Raises NotAllowed unless `action` fits a reference in `state`.

    `name` is how the message calls the reference; `has_image` says whether it holds an image, also of an earlier pull.
    """
    if state not in TABLE[action]:
        why = _WHY.get(state, f"a pull is under way ({state})")
        raise NotAllowed(f"cannot {action} {name}: {why}")
    if action in _NEEDS_IMAGE and not has_image:
        raise NotAllowed(f"cannot {action} {name}: it has no image yet")
