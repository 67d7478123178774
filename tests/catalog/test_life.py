"""The life of an image: use, expiry, autoexpire, undelete, and the administrators' routes."""

from __future__ import annotations

from typing import Any

import pytest

from tests.catalog.gateway_fixture import ALICE, BOB, SYSTEM, Content, ImaginedRegistry, InProcess

DAY = 86400.0


@pytest.fixture
def lived(open_gateway: Any) -> InProcess:
    site: InProcess = open_gateway(
        ImaginedRegistry({"bar": Content(), "foo": Content("other")}),
        ImageExpirationTimeout="90:00:00:00",
        Metrics=True,
    )
    site.pulled("bar:1", ALICE)
    site.pulled("foo:1", ALICE)
    return site


def autoexpire(site: InProcess, uid: int = 0, query: str = "") -> Any:
    credential = site.minter.credential(uid)
    return site._client.simulate_get(
        f"/api/autoexpire/{SYSTEM}/", headers={"authentication": credential}, query_string=query
    ).json


def look_up(site: InProcess, tag: str = "bar:1") -> int:
    return site.request("GET", f"/api/lookup/{SYSTEM}/docker/{tag}", ALICE).status_code


def test_an_image_that_nobody_used_for_the_timeout_expires_and_a_look_up_or_pull_moves_that(lived: InProcess) -> None:
    lived.clock.now += 60 * DAY
    assert look_up(lived) == 200
    lived.clock.now += 60 * DAY
    assert autoexpire(lived)["images"] == ["docker:foo:1"]
    assert lived.tags() == ["bar:1"]
    lived.clock.now += 20 * DAY
    lived.pulled("bar:1", BOB)
    lived.clock.now += 89 * DAY
    assert autoexpire(lived)["images"] == []
    lived.clock.now += 2 * DAY
    assert autoexpire(lived)["images"] == ["docker:bar:1"]


def test_a_dry_run_only_says_what_would_expire(lived: InProcess) -> None:
    lived.clock.now += 91 * DAY
    assert autoexpire(lived, query="dry_run=true")["images"] == ["docker:bar:1", "docker:foo:1"]
    assert lived.tags() == ["bar:1", "foo:1"]


def test_autoexpire_never_touches_a_live_pull_however_old_the_image(lived: InProcess) -> None:
    lived.clock.now += 91 * DAY
    lived.pull("bar:1", ALICE)
    assert autoexpire(lived)["images"] == ["docker:foo:1"]
    lived.work()
    assert look_up(lived) == 200


def test_many_look_ups_are_one_use_an_hour(lived: InProcess) -> None:
    def uses() -> int:
        row = lived.gateway.images.connection().execute("SELECT count(*) FROM history WHERE action = 'used'").fetchone()
        return int(row[0])

    lived.clock.now += 7200
    for _ in range(10):
        look_up(lived)
    assert uses() == 1
    lived.clock.now += 3601
    look_up(lived)
    assert uses() == 2


def test_old_clients_expire_by_get_and_are_told_true_false_or_null(lived: InProcess) -> None:
    path = f"/api/expire/{SYSTEM}/docker/bar:1/"
    assert lived.request("GET", path, ALICE).json["status"] is False
    assert look_up(lived) == 200
    assert lived.request("GET", path, 0).json["status"] is True
    assert look_up(lived) == 404
    assert lived.request("GET", path, 0).json["status"] is None
    assert lived.request("GET", path, None).status_code == 401


def test_the_proper_verb_is_delete_and_it_refuses_with_a_status(lived: InProcess) -> None:
    path = f"/api/expire/{SYSTEM}/docker/bar:1/"
    assert lived.request("DELETE", path, ALICE).status_code == 403
    assert lived.request("DELETE", path, 0).json == {"status": True}
    assert lived.request("DELETE", path, 0).status_code == 404


def test_an_expired_image_is_gone_for_nodes_and_comes_back_with_undelete(lived: InProcess) -> None:
    image = lived.request("GET", f"/api/lookup/{SYSTEM}/docker/bar:1", ALICE).json["id"]
    record = lived.directory / "images" / f"{image}.json"
    lived.request("DELETE", f"/api/expire/{SYSTEM}/docker/bar:1", 0)
    assert not record.exists()
    assert lived.request("POST", f"/api/restore/{SYSTEM}/docker/bar:1", ALICE).status_code == 403
    assert lived.request("POST", f"/api/restore/{SYSTEM}/docker/bar:1", 0).json == {"status": True}
    assert record.exists()
    assert look_up(lived) == 200


def test_undelete_says_when_the_file_is_gone(lived: InProcess) -> None:
    found = lived.request("GET", f"/api/lookup/{SYSTEM}/docker/bar:1", ALICE).json
    lived.request("DELETE", f"/api/expire/{SYSTEM}/docker/bar:1", 0)
    lived.gateway.publication.place(lived.gateway.configuration.platforms[SYSTEM]).store.delete(found["object"])
    refused = lived.request("POST", f"/api/restore/{SYSTEM}/docker/bar:1", 0)
    assert refused.status_code == 409
    assert "has been swept from the store; pull it again" in refused.json["error"]


def test_an_image_under_two_tags_stays_for_nodes_until_both_are_gone(lived: InProcess) -> None:
    lived.pulled("bar:2", BOB)
    image = lived.request("GET", f"/api/lookup/{SYSTEM}/docker/bar:2", ALICE).json["id"]
    record = lived.directory / "images" / f"{image}.json"
    lived.request("DELETE", f"/api/expire/{SYSTEM}/docker/bar:1", 0)
    assert record.exists()
    lived.request("DELETE", f"/api/expire/{SYSTEM}/docker/bar:2", 0)
    assert not record.exists()


def test_an_expired_tag_is_pulled_again_as_new(lived: InProcess) -> None:
    lived.request("DELETE", f"/api/expire/{SYSTEM}/docker/bar:1", 0)
    assert lived.pulled("bar:1", BOB)["status"] == "READY"


def test_a_live_pull_cannot_be_expired_or_removed(lived: InProcess) -> None:
    lived.clock.now += 1000
    lived.pull("bar:1", ALICE)
    for path in (f"/api/expire/{SYSTEM}/docker/bar:1", f"/api/image/{SYSTEM}/docker/bar:1"):
        refused = lived.request("DELETE", path, 0)
        assert refused.status_code == 409
        assert "a pull is under way" in refused.json["error"]


def test_admins_are_whole_names(open_gateway: Any) -> None:
    from tests.catalog.gateway_fixture import document

    site = open_gateway()
    platforms = document(site.directory)["Platforms"]
    platforms[SYSTEM]["admins"] = f"rootmaster,9{ALICE}"  # as a substring test would have it, root and ALICE are in it
    other = open_gateway(Platforms=platforms)
    for uid in (0, ALICE):
        assert other.request("DELETE", f"/api/expire/{SYSTEM}/docker/x:1", uid).status_code == 403


def test_metrics_lists_the_newest_look_ups_newest_last(lived: InProcess) -> None:
    for number in range(3):
        lived.clock.now += 10
        lived.request("GET", f"/api/lookup/{SYSTEM}/docker/{'bar:1' if number else 'foo:1'}", ALICE)
    credential = lived.minter.credential(0)
    found = lived._client.simulate_get(
        f"/api/metrics/{SYSTEM}/", headers={"authentication": credential}, query_string="limit=2"
    ).json
    assert [one["tag"] for one in found] == ["bar:1", "bar:1"]
    assert found[1].keys() == {"user", "uid", "system", "type", "tag", "id", "time"}
    assert (found[1]["uid"], found[1]["time"]) == (ALICE, lived.clock.now)
    assert lived.request("GET", f"/api/metrics/{SYSTEM}/", ALICE).status_code == 403


# Monitoring


def test_healthz_says_what_does_not_answer(lived: InProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    healthy = lived.request("GET", "/healthz", None)
    assert (healthy.status_code, healthy.json["healthy"]) == (200, True)
    from eventsourcing.persistence import OperationalError

    def away() -> None:
        raise OperationalError("disk I/O error")

    monkeypatch.setattr(lived.gateway.catalog.recorder, "max_notification_id", away)
    sick = lived.request("GET", "/healthz", None)
    assert sick.status_code == 503
    assert sick.json["checks"]["events"] == "disk I/O error"


def test_metrics_has_the_figures_that_a_site_watches(lived: InProcess) -> None:
    lived.pulled("nope:1", ALICE)
    lived.pull("bar:2", ALICE)
    look_up(lived)
    lived.request("GET", f"/api/lookup/{SYSTEM}/docker/zzz", ALICE)
    text = lived.request("GET", "/metrics", None).text
    lines = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    assert lines['shifter_references{system="mycluster",state="READY"}'] == "2"
    assert lines["shifter_queue_length"] == "1"
    assert lines['shifter_events_total{action="ready"}'] == "2"
    assert lines['shifter_attempts_total{outcome="failure"}'] == "1"
    assert lines['shifter_lookups_total{outcome="found"}'] == "1"
    assert lines['shifter_lookups_total{outcome="not found"}'] == "1"
    assert lines['shifter_bytes_total{source="site"}'] == "10"
    assert lines["shifter_image_list_lag"] == "0"
    assert float(lines['shifter_store_bytes{system="mycluster"}']) > 0
    assert 'shifter_stage_seconds_total{stage="CONVERSION"}' in lines
    for name in ("bar", "foo", str(ALICE)):
        assert name not in text
