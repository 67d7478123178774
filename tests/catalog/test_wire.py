"""What existing clients insist on, byte by byte: routes, headers and field types of the REST surface."""

from __future__ import annotations

import json

import pytest

from tests.catalog.gateway_fixture import ALICE, BOB, SYSTEM, Content, InProcess

FIELDS = {
    "id", "system", "itype", "tag", "status", "userACL", "groupACL", "ENV", "ENTRY", "WORKDIR", "LABELS",
    "last_pull", "status_message",
}  # fmt: skip


@pytest.fixture
def ready(site: InProcess) -> InProcess:
    site.registry.contents["bar"] = Content()
    assert site.pulled("bar:1")["status"] == "READY"
    return site


def test_the_root_is_the_text_that_monitoring_looks_for(site: InProcess) -> None:
    assert site.request("GET", "/", uid=None).text == "{lookup,pull,expire,list}"


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", f"/api/list/{SYSTEM}/"),
        ("GET", f"/api/lookup/{SYSTEM}/docker/bar%3A1/"),
        ("POST", f"/api/pull/{SYSTEM}/docker/bar%3A1/"),
        ("GET", f"/api/queue/{SYSTEM}/"),
        ("GET", f"/api/lookup/{SYSTEM}/docker/nope/"),
        ("GET", "/api/nowhere"),
    ],
)
def test_json_is_exactly_application_json_with_a_length_and_unchunked(ready: InProcess, method: str, path: str) -> None:
    result = ready.request(method, path)
    assert result.headers["content-type"] == "application/json"
    assert int(result.headers["content-length"]) == len(result.content)
    assert "transfer-encoding" not in result.headers
    json.loads(result.content)


def test_the_first_pull_answers_init_with_missing_for_what_has_no_value(site: InProcess) -> None:
    site.registry.contents["bar"] = Content()
    answer = site.pull("bar:1")
    assert answer.keys() >= FIELDS
    assert answer["status"] == "INIT"
    for name in ("id", "ENV", "ENTRY", "WORKDIR", "LABELS", "last_pull", "userACL", "groupACL"):
        assert answer[name] == "MISSING"


def test_a_ready_image_has_all_fields_and_last_pull_is_a_float(ready: InProcess) -> None:
    result = ready.request("GET", f"/api/lookup/{SYSTEM}/docker/bar:1/", uid=None)
    image = result.json
    assert image.keys() >= FIELDS
    assert (image["status"], image["tag"], image["itype"]) == ("READY", ["bar:1"], "docker")
    assert isinstance(image["last_pull"], float)
    assert '"last_pull": 1800000000.0' in result.text  # an integer is read as 1970
    assert image["ENV"] == ["PATH=/bin", "A=b=c"]
    assert image["ENTRY"] == ["/bin/x"]


def test_tags_may_be_percent_encoded_or_not_and_the_last_slash_may_miss(ready: InProcess) -> None:
    ready.registry.contents["dir/app"] = Content("other")
    ready.pulled("dir/app:2")
    for tag in ("dir/app:2", "dir%2Fapp%3A2", "dir/app%3A2"):
        for end in ("", "/"):
            assert ready.request("GET", f"/api/lookup/{SYSTEM}/docker/{tag}{end}").json["tag"] == ["dir/app:2"]


def test_without_a_tag_latest_is_meant(ready: InProcess) -> None:
    assert ready.request("GET", f"/api/lookup/{SYSTEM}/docker/bar").status_code == 404
    ready.pulled("bar")
    assert ready.request("GET", f"/api/lookup/{SYSTEM}/docker/bar").json["tag"] == ["bar:1", "bar:latest"]


def test_a_404_has_the_body_that_clients_know(ready: InProcess) -> None:
    result = ready.request("GET", f"/api/lookup/{SYSTEM}/docker/nope%3A1/")
    assert result.status_code == 404
    assert result.json == {
        "status": 404,
        "error": "no image docker:nope:1 on mycluster",
        "message": f"Not Found: http://falconframework.org/api/lookup/{SYSTEM}/docker/nope:1",
    }


def test_tags_of_one_image_with_one_acl_are_one_entry_of_the_list(ready: InProcess) -> None:
    ready.pulled("bar:2")
    ready.pulled("bar:3", uid=ALICE, body={"allowed_uids": str(BOB)})
    images = ready.request("GET", f"/api/list/{SYSTEM}/", uid=ALICE).json["list"]
    assert sorted(image["tag"] for image in images) == [["bar:1", "bar:2"], ["bar:3"]]
    assert len({image["id"] for image in images}) == 1
    assert ready.request("GET", f"/api/lookup/{SYSTEM}/docker/bar:2").json["tag"] == ["bar:1", "bar:2"]


def test_the_list_has_only_what_is_ready(ready: InProcess) -> None:
    ready.pull("coming:1")
    assert ready.tags() == ["bar:1"]


def test_the_queue_has_what_is_neither_ready_nor_expired(ready: InProcess) -> None:
    ready.pulled("missing:1")
    ready.pull("coming:1")
    queue = ready.request("GET", f"/api/queue/{SYSTEM}/").json["list"]
    assert [(entry["image"], entry["status"]) for entry in queue] == [("coming:1", "INIT"), ("missing:1", "FAILURE")]


def test_the_list_works_for_everybody_while_private_images_exist(ready: InProcess) -> None:
    ready.registry.contents["secret"] = Content("private", secret="pw")
    ready.pulled("secret:1", uid=ALICE, login={"site": "alice:pw"}, body={"allowed_uids": str(BOB)})
    assert ready.tags(uid=None) == ["bar:1"]
    assert ready.tags(uid=BOB) == ["bar:1", "secret:1"]


@pytest.mark.parametrize("route", ["pull", "queue"])
def test_pull_and_queue_need_a_credential(ready: InProcess, route: str) -> None:
    path = f"/api/pull/{SYSTEM}/docker/bar:1/" if route == "pull" else f"/api/queue/{SYSTEM}/"
    result = ready.request("POST" if route == "pull" else "GET", path, uid=None)
    assert result.status_code == 401
    assert "send a munge credential" in result.json["error"]


def test_list_and_lookup_of_public_images_need_none(ready: InProcess) -> None:
    assert ready.tags(uid=None) == ["bar:1"]
    assert ready.request("GET", f"/api/lookup/{SYSTEM}/docker/bar:1/", uid=None).status_code == 200


def test_one_system_does_not_know_the_images_of_another(ready: InProcess) -> None:
    assert ready.request("GET", "/api/list/other/").json == {"list": []}
    assert ready.request("GET", "/api/lookup/other/docker/bar:1").status_code == 404


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "reason"),
    [
        ("GET", "/api/list/nosuch/", None, 404, "system 'nosuch' is not configured here; configured: mycluster, other"),
        ("POST", f"/api/pull/{SYSTEM}/docker/UPPER/", None, 400, "must be lower-case"),
        ("POST", f"/api/pull/{SYSTEM}/docker/nvcr.io%2Fa/", None, 400, "registry 'nvcr.io' is not configured here"),
        ("POST", f"/api/pull/{SYSTEM}/custom/a:1/", None, 400, "are not pulled"),
        ("POST", f"/api/pull/{SYSTEM}/docker/bar:1/", {"allowed_uids": "1,2x"}, 400, "'2x' in the ACL '1,2x'"),
        ("POST", f"/api/pull/{SYSTEM}/docker/bar:1/", [1], 400, "no object"),
        ("PUT", f"/api/list/{SYSTEM}/", None, 405, "PUT is not for this route; allowed: GET"),
        ("GET", "/api/nosuchroute/x", None, 404, "no such route"),
    ],
)
def test_a_wrong_request_is_refused_in_json_with_the_reason(
    ready: InProcess, method: str, path: str, body: object, status: int, reason: str
) -> None:
    result = ready.request(method, path, body=body)
    assert result.status_code == status
    assert result.json["status"] == status
    assert reason in result.json["error"]
    assert result.headers["content-type"] == "application/json"


@pytest.mark.parametrize("body", ["{nope", "[" * 50000, r'{"allowed_uids": "\ud800"}'])
def test_a_body_that_is_no_json_is_refused_with_the_reason(ready: InProcess, body: str) -> None:
    credential = ready.minter.credential(0)
    result = ready._client.simulate_post(
        f"/api/pull/{SYSTEM}/docker/bar:1/", headers={"authentication": credential}, body=body
    )
    assert result.status_code == 400
    assert "is not JSON" in result.json["error"]


def test_an_unexpected_error_is_json_and_its_details_are_only_in_the_log(
    ready: InProcess, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(system: str) -> None:
        raise ZeroDivisionError("secret detail")

    monkeypatch.setattr(ready.gateway.images, "shown", broken)
    result = ready.request("GET", f"/api/list/{SYSTEM}/")
    assert result.status_code == 500
    assert "secret detail" not in result.text
    number = result.json["error"].split()[-1]
    assert number in caplog.text
