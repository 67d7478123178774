"""Who may see a reference or run an image.

`Access` is the type for both: the ACL of one reference, and the union over all references that point to one image file.
Promises that no combination of other people's pulls takes access from anybody or opens a private image to all.
It does not know events, munge or files.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

# Ids are 32 bits on Linux; the last two are "no id" and 16-bit overflow's relatives.
_HIGHEST_ID = 2**32 - 2
_DIGITS = re.compile(r"[0-9]{1,10}", re.ASCII)


class AclInvalid(ValueError):
    """An ACL text or list that is no list of ids; the message names the bad item."""


@dataclass(frozen=True)
class Access:
    """Who is let in: everybody when `public`, else these users and the members of these groups.

    uids, gids: numeric ids. A public access has empty sets.
    """

    public: bool
    uids: frozenset[int] = frozenset()
    gids: frozenset[int] = frozenset()

    def allows(self, uid: int, gids: Iterable[int]) -> bool:
        """Whether the user `uid` with the groups `gids` (primary and supplementary) is let in."""
        return self.public or uid in self.uids or not self.gids.isdisjoint(gids)

    def __or__(self, other: Access) -> Access:
        if self.public or other.public:
            return PUBLIC
        return Access(False, self.uids | other.uids, self.gids | other.gids)

    def to_json(self) -> dict[str, Any]:
        return {"public": self.public, "uids": sorted(self.uids), "gids": sorted(self.gids)}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Access:
        return cls(bool(data["public"]), frozenset(data["uids"]), frozenset(data["gids"]))


PUBLIC = Access(public=True)
NOBODY = Access(public=False)


def parse_ids(text: str) -> frozenset[int]:
    """The ids in an ACL text: decimal numbers separated by commas, blanks and empty items ignored.

    `1000,5000,`, `,1000,5000` and `1000,,5000` are two ids. Raises AclInvalid naming the first item that is no id.
    """
    ids = set()
    for item in text.split(","):
        word = item.strip()
        if not word:
            continue
        if not _DIGITS.fullmatch(word) or int(word) > _HIGHEST_ID:
            raise AclInvalid(f"{word!r} in the ACL {text!r} is not a numeric id; give ids like 1000,5000")
        ids.add(int(word))
    return frozenset(ids)


def ids_from(value: object, key: str) -> frozenset[int] | None:
    """The ids in a value of a JSON request: a comma text or a list of integers; None when the key was not given.

    Raises AclInvalid, naming `key` and the bad item.
    """
    if value is None:
        return None
    if isinstance(value, str):
        return parse_ids(value)
    if isinstance(value, list):
        for item in value:
            if isinstance(item, bool) or not isinstance(item, int) or not 0 <= item <= _HIGHEST_ID:
                raise AclInvalid(f"{item!r} in {key} is not a numeric id; give ids like 1000,5000")
        return frozenset(value)
    raise AclInvalid(f"{key} is {value!r}; it must be ids separated by commas, like 1000,5000")


def requested(uids: frozenset[int] | None, gids: frozenset[int] | None, uid: int, gid: int) -> Access | None:
    """The access that a puller asked for; None when neither list was given (or both empty).

    The puller's own uid joins the list of users when that was given, the own gid the list of groups.
    """
    if not uids and not gids:
        return None
    return Access(
        public=False,
        uids=uids | {uid} if uids else frozenset(),
        gids=gids | {gid} if gids else frozenset(),
    )


def granted(existing: Access | None, asked: Access | None, uid: int, *, owner: bool) -> Access:
    """The access of a reference after `uid` has pulled it, having proved to the registry that he may read it.

    existing: the reference's access before, None when it holds no image. owner: `uid` is who pulled it first, or an
    administrator. The rules, for each of which somebody would otherwise lose or leak something:

    * no image before: as asked; without lists public
    * the owner's lists replace the old ones; the owner without lists keeps them (a refresh must not open an image)
    * somebody else's lists, or bare pull, add to a private reference and leave a public one public
    """
    if existing is None:
        return asked or PUBLIC
    if owner:
        return asked or existing
    if existing.public:
        return PUBLIC
    return existing | (asked or Access(False, frozenset({uid})))
