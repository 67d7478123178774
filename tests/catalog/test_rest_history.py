"""The past over REST: pages, filters, and nobody sees more of it than of the present."""

from __future__ import annotations

from typing import Any

import pytest

from tests.catalog.gateway_fixture import (
    ALICE,
    BOB,
    SYSTEM,
    Content,
    ImaginedRegistry,
    InProcess,
    Opener,
    minter,
    munged,
    open_gateway,
)
from tests.requires import requires, requires_root

__all__ = ["minter", "munged", "open_gateway"]  # fixtures
pytestmark = [requires("munged"), requires_root]


@pytest.fixture
def site(open_gateway: Opener) -> InProcess:
    """A gateway whose registry has these images."""
    return open_gateway(ImaginedRegistry({name: Content() for name in ("a", "b", "secret", "was-open")}))


def history(site: InProcess, query: str = "", uid: int | None = ALICE) -> dict[str, Any]:
    result = site.request("GET", f"/api/history/{SYSTEM}/?{query}", uid)
    assert result.status_code == 200, result.text
    answer: dict[str, Any] = result.json
    return answer


def told(site: InProcess, query: str = "", uid: int | None = ALICE) -> list[tuple[str, str]]:
    return [
        (event["action"], event["image"]) for event in history(site, query, uid)["list"] if event["action"] != "stage"
    ]


def test_events_are_told_oldest_first_with_who_and_when(site: InProcess) -> None:
    site.pulled("a:1", ALICE)
    events = history(site)["list"]
    assert events[0]["action"] == "pull"
    assert events[-1]["action"] == "ready"
    assert {event["uid"] for event in events if event["action"] == "pull"} == {ALICE}
    assert all(isinstance(event["time"], float) for event in events)
    assert [event["id"] for event in events] == sorted(event["id"] for event in events)
    assert "public" in events[-1]["detail"]


def test_pages_of_any_size_together_are_the_whole(site: InProcess) -> None:
    for number in range(4):
        site.pulled(f"a:{number}", ALICE)
    whole = [event["id"] for event in history(site, "limit=1000")["list"]]
    for size in (1, 3, 7):
        pages: list[int] = []
        before: Any = ""
        while before is not None:
            page = history(site, f"limit={size}" + (f"&before={before}" if before else ""))
            assert len(page["list"]) <= size
            pages = [event["id"] for event in page["list"]] + pages
            before = page["next"]
        assert pages == whole


def test_filters(site: InProcess) -> None:
    site.pulled("a:1", ALICE)
    site.clock.now += 60
    site.pulled("b:1", BOB)
    middle = history(site, "image=b:1")["list"][0]["time"]
    assert told(site, "image=docker:a:1") == [("pull", "docker:a:1"), ("ready", "docker:a:1")]
    assert {image for _, image in told(site, "image=b*")} == {"docker:b:1"}
    assert told(site, f"user={BOB}&action=pull") == [("pull", "docker:b:1")]
    assert told(site, "action=failure") == []
    assert {image for _, image in told(site, f"since={middle}")} == {"docker:b:1"}
    assert {image for _, image in told(site, f"until={middle}")} == {"docker:a:1"}


def test_a_private_image_is_in_its_users_and_the_administrators_history_alone(site: InProcess) -> None:
    site.pulled("secret:1", ALICE, body={"allowed_uids": str(ALICE)})
    assert ("ready", "docker:secret:1") in told(site, uid=ALICE)
    assert ("ready", "docker:secret:1") in told(site, uid=0)
    assert told(site, uid=BOB) == []
    assert told(site, "image=docker:secret:1", uid=BOB) == []


def test_the_list_as_it_was_shows_nobody_what_is_private_now(site: InProcess) -> None:
    site.pulled("was-open:1", ALICE)
    at = history(site)["list"][-1]["time"]

    def tags(uid: int) -> list[str]:
        result = site.request("GET", f"/api/history/{SYSTEM}/images/?at={at}", uid)
        assert result.status_code == 200, result.text
        return [tag for image in result.json["list"] for tag in image["tag"]]

    assert tags(BOB) == ["was-open:1"]
    changed = site.request("POST", f"/api/acl/{SYSTEM}/docker/was-open:1/", ALICE, {"allowed_uids": str(ALICE)})
    assert changed.status_code == 200, changed.text
    assert tags(ALICE) == tags(0) == ["was-open:1"]
    assert tags(BOB) == []


@pytest.mark.parametrize(
    ("path", "uid", "status"),
    [
        (f"/api/history/{SYSTEM}/", None, 401),
        (f"/api/history/{SYSTEM}/images/?at=1h", None, 401),
        ("/api/history/nowhere/", ALICE, 404),
        (f"/api/history/{SYSTEM}/?limit=0", ALICE, 400),
        (f"/api/history/{SYSTEM}/?limit=x", ALICE, 400),
        (f"/api/history/{SYSTEM}/?before=-1", ALICE, 400),
        (f"/api/history/{SYSTEM}/?since=yesterday", ALICE, 400),
        (f"/api/history/{SYSTEM}/?since=99999999999999999999999", ALICE, 400),
        (f"/api/history/{SYSTEM}/?image=docker:a%20b", ALICE, 400),
        (f"/api/history/{SYSTEM}/images/", ALICE, 400),
    ],
)
def test_questions_that_cannot_be_answered_get_a_reason(
    site: InProcess, path: str, uid: int | None, status: int
) -> None:
    result = site.request("GET", path, uid)
    assert result.status_code == status, result.text
    assert result.json["error"]


@pytest.mark.parametrize("query", [f"user={'9' * 30}", f"before={'9' * 30}&user={2**63}", "user=\u0663"])
def test_numbers_beyond_what_a_database_has_find_nothing_or_all_and_break_nothing(site: InProcess, query: str) -> None:
    answer = site.request("GET", f"/api/history/{SYSTEM}?{query}", ALICE)
    assert (answer.status_code, answer.json["list"]) == (200, [])
