"""The table of states: every command in every state is either allowed by the table or refused with a reason."""

from __future__ import annotations

import itertools

import pytest

from catalog.states import LIVE, TABLE, Action, NotAllowed, State, check


def test_every_action_is_in_the_table() -> None:
    assert set(TABLE) == set(Action)


@pytest.mark.parametrize(("action", "state"), list(itertools.product(Action, [None, *State])))
def test_what_the_table_does_not_allow_is_refused_with_what_was_wanted_and_why(
    action: Action, state: State | None
) -> None:
    if state in TABLE[action]:
        check(action, state, "docker:a:1", has_image=True)
        return
    with pytest.raises(NotAllowed) as caught:
        check(action, state, "docker:a:1", has_image=True)
    said = str(caught.value)
    assert said.startswith(f"cannot {action} docker:a:1: ")
    assert said.removeprefix(f"cannot {action} docker:a:1: ") in {
        "nobody has pulled it",
        "it is ready",
        "its last pull failed",
        "it has expired",
        "it was removed",
        f"a pull is under way ({state})",
    }


def test_a_live_reference_is_neither_pulled_again_nor_expired_nor_removed() -> None:
    for action in (Action.PULL, Action.IMPORT, Action.EXPIRE, Action.REMOVE, Action.RESTORE, Action.MIGRATE):
        assert not LIVE & {state for state in TABLE[action] if state is not None}


@pytest.mark.parametrize("action", [Action.CHANGE_ACL, Action.USE, Action.UNTAG])
def test_what_needs_an_image_is_refused_without_one(action: Action) -> None:
    with pytest.raises(NotAllowed, match="it has no image yet"):
        check(action, State.READY, "docker:a:1", has_image=False)
