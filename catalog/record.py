"""What is known of one image reference: the state that its events add up to.

`Record` is at once the memory of the event-sourced aggregate (catalog.domain) and a row of the image list
(catalog.image_list): both are made by the same folds, which is why a rebuilt list equals the live one. Plain data: it
decides nothing, and reads no clock.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, NamedTuple, TypeVar

from catalog.acl import PUBLIC, Access
from catalog.reference import Reference
from catalog.states import State

_T = TypeVar("_T")

ANSWER_WITHIN = 60.0  # seconds after its end in which somebody who waited for an attempt is told how it ended


def changed(one: _T, **fields: Any) -> _T:
    """dataclasses.replace without a call of __init__, three times as fast: a rebuild does little else."""
    made = object.__new__(type(one))
    made.__dict__.update(one.__dict__, **fields)
    return made


@dataclass(frozen=True)
class Image:
    """One image in the store: what a registry or an import gave, and the file that nodes mount.

    id: manifest digest (64 hex; of an import the BLAKE3 of the file). object: BLAKE3 of the file in the store.
    size: bytes of that file. anonymous: the registry gave it to a client without credentials, so its content is public.
    layers: sha256 of each layer, lowest first. env: `NAME=value` texts.
    """

    id: str
    object: str
    size: int
    format: str
    arch: str
    anonymous: bool
    env: tuple[str, ...] = ()
    entrypoint: tuple[str, ...] | None = None
    cmd: tuple[str, ...] | None = None
    workdir: str | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    layers: tuple[str, ...] = ()

    @classmethod
    def of(cls, source: Any) -> Image:
        """From any object with the same attributes (catalog.pull.PulledImage)."""
        return cls(**{one.name: getattr(source, one.name) for one in fields(cls)})

    def to_json(self) -> dict[str, Any]:
        data = dict(vars(self))
        for name in ("env", "entrypoint", "cmd", "layers"):
            data[name] = None if data[name] is None else list(data[name])
        data["labels"] = dict(self.labels)
        return data

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Image:
        given = dict(data)
        for name in ("env", "entrypoint", "cmd", "layers"):
            given[name] = None if given.get(name) is None else tuple(given[name])
        return cls(**given)


class Failure(NamedTuple):
    """How an attempt of a user failed. number: of the attempt; at: when it ended (Unix seconds)."""

    number: int
    reason: str
    at: float


@dataclass(frozen=True)
class Attempt:
    """One pull or import, from its request to its end.

    number: counts up for each reference. kind: `pull` or `import`. uid, user: who asked first. asked: the ACL asked
    for, None when none. gateway: the process that took the request (it alone may hold the credential). worker: who
    works at it. since: when its present state began (Unix seconds). joined: who else asked meanwhile, with their ACLs.
    failed_in: the state in which it failed. failures: how the latest attempts of others failed, by uid, while they may not
    have heard of it yet.
    """

    number: int
    kind: str
    uid: int
    user: str
    gid: int
    asked: Access | None
    admin: bool
    credentialed: bool
    gateway: str
    location: str
    since: float
    started: float
    worker: str | None = None
    reason: str | None = None
    path: str | None = None
    format: str | None = None
    joined: Mapping[int, Access | None] = field(default_factory=dict)
    failed_in: str | None = None
    failures: Mapping[int, Failure] = field(default_factory=dict)

    def took_part(self, uid: int) -> bool:
        return uid == self.uid or uid in self.joined

    def to_json(self) -> dict[str, Any]:
        data = dict(vars(self))
        data["asked"] = self.asked.to_json() if self.asked else None
        data["joined"] = [[uid, asked.to_json() if asked else None] for uid, asked in self.joined.items()]
        data["failures"] = [[uid, *failure] for uid, failure in self.failures.items()]
        return data

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Attempt:
        given = dict(data)
        given["asked"] = Access.from_json(given["asked"]) if given["asked"] else None
        given["joined"] = {uid: Access.from_json(asked) if asked else None for uid, asked in given["joined"]}
        given["failures"] = {uid: Failure(*failure) for uid, *failure in given.get("failures", ())}
        return cls(**given)


@dataclass(frozen=True)
class Record:
    """A reference and where it stands.

    state: of the newest attempt, or what became of the image. attempt: the newest one. image: the newest image that
    was READY; it stays while a new pull runs or has failed. access: who may see the reference, None before the first
    image. owner: the uid that brought the image first. pulled_at, used_at, changed_at: Unix seconds. usable: the image
    can be run (not expired, not removed).
    """

    reference: Reference
    state: State
    version: int
    changed_at: float
    attempt: Attempt | None = None
    image: Image | None = None
    usable: bool = False
    access: Access | None = None
    owner: int | None = None
    pulled_at: float | None = None
    used_at: float | None = None

    def visible_to(self, uid: int, gids: Iterable[int]) -> bool:
        """Whether this user may know that the reference exists."""
        if self.access is not None and self.access.allows(uid, gids):
            return True
        if self.attempt is None:
            return False
        if self.attempt.took_part(uid):
            return True
        if self.access is not None:
            return False
        return (self.attempt.asked or PUBLIC).allows(uid, gids) and not self.attempt.credentialed

    def open_to(self, uid: int, gids: Iterable[int]) -> bool:
        """Whether this user may know what the reference holds, who else may and what happened to it.

        Having asked for a private image is enough to be told how that pull goes (`visible_to`), but for no more.
        """
        if self.access is None:
            return self.visible_to(uid, gids)
        return self.access.allows(uid, gids) or uid == self.owner

    def to_json(self) -> dict[str, Any]:
        data = dict(vars(self))
        data["reference"] = [self.reference.system, self.reference.itype, self.reference.tag]
        data["state"] = str(self.state)
        data["attempt"] = self.attempt.to_json() if self.attempt else None
        data["image"] = self.image.to_json() if self.image else None
        data["access"] = self.access.to_json() if self.access else None
        return data

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Record:
        given = dict(data)
        given["reference"] = Reference(*given["reference"])
        given["state"] = State(given["state"])
        given["attempt"] = Attempt.from_json(given["attempt"]) if given["attempt"] else None
        given["image"] = Image.from_json(given["image"]) if given["image"] else None
        given["access"] = Access.from_json(given["access"]) if given["access"] else None
        return cls(**given)


def begun(event: Any, record: Record, kind: str) -> Attempt:
    """The attempt that a wish begins: `event` is the wish (catalog.domain), `kind` pull or import."""
    at = event.timestamp.timestamp()
    return Attempt(
        number=record.attempt.number + 1 if record.attempt else 1,
        kind=kind,
        uid=event.uid,
        user=event.user,
        gid=event.gid,
        asked=Access.from_json(event.asked) if event.asked else None,
        admin=event.admin,
        credentialed=getattr(event, "credentialed", False),
        gateway=event.gateway,
        location=getattr(event, "location", ""),
        since=at,
        started=at,
        path=getattr(event, "path", None),
        format=getattr(event, "format", None),
        failures=_failures(record, event.uid, at),
    )


def _failures(record: Record, uid: int, at: float) -> dict[int, Failure]:
    """What an attempt that `uid` begins at `at` keeps of how those before it failed: each one's latest, for as long as he may
    ask for it.
    """
    before = record.attempt
    if before is None:
        return {}
    kept = dict(before.failures)
    if record.state is State.FAILURE and before.reason is not None:
        kept[before.uid] = Failure(before.number, before.reason, before.since)
    kept.pop(uid, None)  # who asks again has heard of it
    return {one: failure for one, failure in kept.items() if abs(at - failure.at) <= ANSWER_WITHIN}
