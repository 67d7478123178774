"""ACL texts, and what a pull does to who may see a reference."""

from __future__ import annotations

import pytest

from catalog.acl import PUBLIC, Access, AclInvalid, granted, ids_from, parse_ids, requested


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("1000,5000,", {1000, 5000}),
        (",1000,5000", {1000, 5000}),
        ("1000,,5000", {1000, 5000}),
        (" 1000 ,   ,5000, 10000", {1000, 5000, 10000}),
        ("", set()),
        (" , ", set()),
        ("0", {0}),
    ],
)
def test_an_acl_text_is_numbers_between_commas(text: str, ids: set[int]) -> None:
    assert parse_ids(text) == ids


@pytest.mark.parametrize("bad", ["123temp", "-1", "1.5", "root", "٣", "4294967296", "0x10"])
def test_an_item_that_is_no_id_is_refused_and_named(bad: str) -> None:
    with pytest.raises(AclInvalid) as caught:
        parse_ids(f"1000,{bad},2000")
    assert repr(bad) in str(caught.value)


def test_lists_of_numbers_are_taken_too_and_other_types_refused() -> None:
    assert ids_from([1, 2], "allowed_uids") == {1, 2}
    assert ids_from(None, "allowed_uids") is None
    for bad in ([True], ["1"], {"1": 2}, 5):
        with pytest.raises(AclInvalid, match=r"allowed_uids|numeric id"):
            ids_from(bad, "allowed_uids")


def test_no_lists_ask_for_nothing_and_the_puller_joins_each_list_given() -> None:
    assert requested(None, None, 7, 8) is None
    assert requested(frozenset(), frozenset(), 7, 8) is None
    assert requested(frozenset({1}), None, 7, 8) == Access(False, frozenset({1, 7}), frozenset())
    assert requested(None, frozenset({1}), 7, 8) == Access(False, frozenset(), frozenset({1, 8}))


def test_supplementary_groups_count() -> None:
    access = Access(False, frozenset({1}), frozenset({50}))
    assert access.allows(9, {10, 50})
    assert not access.allows(9, {10})
    assert access.allows(1, set())


MINE = Access(False, frozenset({1}))


@pytest.mark.parametrize(
    ("existing", "asked", "uid", "owner", "after"),
    [
        (None, None, 1, True, PUBLIC),
        (None, MINE, 1, True, MINE),
        (MINE, None, 1, True, MINE),  # a refresh does not open it
        (MINE, Access(False, frozenset({1, 5})), 1, True, Access(False, frozenset({1, 5}))),
        (MINE, None, 2, False, Access(False, frozenset({1, 2}))),  # somebody else adds himself, takes nothing
        (MINE, Access(False, frozenset({2, 3})), 2, False, Access(False, frozenset({1, 2, 3}))),
        (PUBLIC, Access(False, frozenset({2})), 2, False, PUBLIC),  # nobody else can hide what all may see
        (PUBLIC, MINE, 1, True, MINE),
    ],
)
def test_nobody_else_s_pull_takes_access_away_or_opens_a_private_image(
    existing: Access | None, asked: Access | None, uid: int, owner: bool, after: Access
) -> None:
    assert granted(existing, asked, uid, owner=owner) == after


def test_a_union_with_public_is_public() -> None:
    assert MINE | PUBLIC == PUBLIC
    assert MINE | Access(False, frozenset({2}), frozenset({3})) == Access(False, frozenset({1, 2}), frozenset({3}))
