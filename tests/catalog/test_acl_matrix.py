"""Who sees what, in every route: generated over users, groups, kinds of images and routes, against a model of four lines."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from catalog import callers
from tests.catalog.gateway_fixture import SYSTEM, Content, InProcess

OWNER, NAMED, IN_GROUP, SUPPLEMENTARY, STRANGER = 62001, 62002, 62003, 62004, 62005
GROUP, OTHER_GROUP = 62500, 62501
# uid -> (primary gid, all groups)
USERS = {
    OWNER: (62001, {62001}),
    NAMED: (62002, {62002}),
    IN_GROUP: (GROUP, {GROUP}),
    SUPPLEMENTARY: (62004, {62004, GROUP}),
    STRANGER: (OTHER_GROUP, {OTHER_GROUP}),
}
ANONYMOUS = None


@dataclass(frozen=True)
class Kind:
    """An image that OWNER pulled. Lists as given in the pull; secret: the registry wants a password."""

    name: str
    uids: tuple[int, ...]
    gids: tuple[int, ...]
    secret: bool

    @property
    def tag(self) -> str:
        return f"{self.name}:1"

    def lets_in(self, uid: int | None) -> bool:
        """The model: without lists everybody; else who is listed, the puller, and the members of listed groups."""
        if not self.uids and not self.gids:
            return True
        if uid is None:
            return False
        groups = USERS[uid][1]
        listed_uids = {*self.uids, OWNER} if self.uids else set()
        listed_gids = {*self.gids, USERS[OWNER][0]} if self.gids else set()
        return uid in listed_uids or bool(groups & listed_gids)


LISTS = [((), ()), ((NAMED,), ()), ((), (GROUP,)), ((NAMED,), (GROUP,)), ((OWNER,), ())]
KINDS = [
    Kind(f"k{number}{'s' if secret else 'p'}", uids, gids, secret)
    for (number, (uids, gids)), secret in itertools.product(enumerate(LISTS), (False, True))
]


def in_list(site: InProcess, kind: Kind, uid: int | None) -> bool:
    return kind.tag in site.tags(uid, **_gid(uid))


def in_lookup(site: InProcess, kind: Kind, uid: int | None) -> bool:
    return _get(site, f"/api/lookup/{SYSTEM}/docker/{kind.tag}", uid).status_code == 200


def in_lookup_by_id(site: InProcess, kind: Kind, uid: int | None) -> bool:
    record = site.gateway.images.get(site.gateway.desk.reference(SYSTEM, "docker", kind.tag))
    assert record is not None
    assert record.image is not None
    return _get(site, f"/api/lookup/{SYSTEM}/id/{record.image.id}", uid).status_code == 200


def in_acl(site: InProcess, kind: Kind, uid: int | None) -> bool:
    return _get(site, f"/api/acl/{SYSTEM}/docker/{kind.tag}", uid).status_code == 200


def in_history(site: InProcess, kind: Kind, uid: int | None) -> bool:
    found = _get(site, f"/api/history/{SYSTEM}?limit=1000", uid).json["list"]
    return any(kind.tag in event["image"] for event in found)


def in_past_list(site: InProcess, kind: Kind, uid: int | None) -> bool:
    found = _get(site, f"/api/history/{SYSTEM}/images?at=1900000000", uid).json["list"]
    return any(kind.tag in image["tag"] for image in found)


def in_usage(site: InProcess, kind: Kind, uid: int | None) -> bool:
    return f"{kind.name}:1" in _get(site, f"/api/usage/{SYSTEM}", uid).text


def in_refusal_of_removal(site: InProcess, kind: Kind, uid: int | None) -> bool:
    """Who may not remove it hears 403 when he may know of it, and 404 as for nothing when not."""
    path = f"/api/image/{SYSTEM}/docker/{kind.tag}"
    status = site.request("DELETE", path, uid, **_gid(uid)).status_code
    assert status in {403, 404}
    return status == 403


def in_refusal_of_acl_change(site: InProcess, kind: Kind, uid: int | None) -> bool:
    path = f"/api/acl/{SYSTEM}/docker/{kind.tag}"
    return site.request("POST", path, uid, {"allowed_uids": "1"}, **_gid(uid)).status_code == 403


Route = Callable[[InProcess, Kind, Any], bool]
OPEN: list[Route] = [in_list, in_lookup, in_lookup_by_id]
AUTHENTICATED: list[Route] = [in_acl, in_history, in_past_list, in_usage]
NOT_FOR_THE_OWNER: list[Route] = [in_refusal_of_removal, in_refusal_of_acl_change]


@pytest.fixture
def filled(site: InProcess, monkeypatch: pytest.MonkeyPatch) -> InProcess:
    """A gateway on a system whose user database knows the supplementary groups of USERS, with one image of each kind."""
    monkeypatch.setattr(callers, "groups_of", lambda uid, gid: frozenset(USERS.get(uid, (gid, {gid}))[1]))
    for kind in KINDS:
        site.registry.contents[kind.name] = Content(kind.name, secret="pw" if kind.secret else None)
        lists = {"allowed_uids": ",".join(map(str, kind.uids)), "allowed_gids": ",".join(map(str, kind.gids))}
        body = {name: text for name, text in lists.items() if text}
        answer = site.pulled(kind.tag, OWNER, login={"site": "owner:pw"}, body=body)
        assert answer["status"] == "READY", answer
    return site


def _cases() -> Iterator[tuple[Kind, int | None, Route]]:
    for kind, uid in itertools.product(KINDS, [*USERS, ANONYMOUS]):
        for route in OPEN + (AUTHENTICATED if uid is not None else []):
            yield kind, uid, route
        if uid not in {ANONYMOUS, OWNER}:
            for route in NOT_FOR_THE_OWNER:
                yield kind, uid, route


def test_every_route_shows_exactly_what_the_acl_lets_the_user_see(filled: InProcess) -> None:
    wrong = [
        (route.__name__, kind, uid) for kind, uid, route in _cases() if route(filled, kind, uid) != kind.lets_in(uid)
    ]
    assert wrong == []


def test_the_file_of_a_private_image_is_for_those_who_see_its_tag_and_a_public_one_is_for_all(
    filled: InProcess,
) -> None:
    for kind, uid in itertools.product(KINDS, [*USERS, ANONYMOUS]):
        record = filled.gateway.images.get(filled.gateway.desk.reference(SYSTEM, "docker", kind.tag))
        assert record is not None
        assert record.image is not None
        node = filled.node_record(record.image.id)
        groups = USERS[uid][1] if uid is not None else set()
        runs = bool(node["public"] or uid in node["uids"] or groups & set(node["gids"]))
        assert runs == (kind.lets_in(uid) if kind.secret else True), (kind, uid)


def test_what_is_hidden_answers_exactly_as_what_does_not_exist(filled: InProcess) -> None:
    hidden = next(kind for kind in KINDS if not kind.lets_in(STRANGER))
    for path in (f"/api/lookup/{SYSTEM}/docker/", f"/api/acl/{SYSTEM}/docker/"):
        there = _get(filled, f"{path}{hidden.tag}", STRANGER)
        nowhere = _get(filled, f"{path}zz:1", STRANGER)
        assert there.status_code == nowhere.status_code == 404
        assert there.text.replace(hidden.tag, "TAG") == nowhere.text.replace("zz:1", "TAG")


def test_a_running_private_pull_is_in_nobody_else_s_queue(filled: InProcess) -> None:
    filled.registry.contents["new"] = Content("new", secret="pw")
    filled.pull("new:1", OWNER, login={"site": "owner:pw"}, body={"allowed_uids": str(NAMED)})
    seen = {}
    for uid in USERS:
        queue = _get(filled, f"/api/queue/{SYSTEM}", uid).json["list"]
        seen[uid] = any(entry["image"] == "new:1" for entry in queue)
    assert [uid for uid, sees in seen.items() if sees] == [OWNER]


def _gid(uid: int | None) -> dict[str, int]:
    return {} if uid is None else {"gid": USERS[uid][0]}


def _get(site: InProcess, path: str, uid: int | None) -> Any:
    path, _, query = path.partition("?")
    sent = {"authentication": site.minter.credential(uid, gid=USERS[uid][0])} if uid is not None else {}
    return site._client.simulate_get(path, headers=sent, query_string=query)
