"""With the event store in MongoDB a site's old scripts find the collection `images` as they know it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pymongo
import pytest

from catalog.acl import Access
from catalog.mongo_mirror import MongoMirror
from catalog.reference import Reference
from tests.catalog.databases import ferretdb
from tests.catalog.gateway_fixture import ALICE, BOB, SYSTEM, Content, ImaginedRegistry, InProcess
from tests.catalog.test_image_list import add, image, opened


def test_the_images_collection_has_the_original_s_shape_and_follows_what_happens(open_gateway: Any) -> None:
    with ferretdb() as uri:
        # A lone MongoDBURI, as old files have it, means this store.
        site: InProcess = open_gateway(
            ImaginedRegistry({"bar": Content(), "secret": Content("s", secret="pw")}), MongoDBURI=uri, MongoDB="Shifter"
        )
        client: pymongo.MongoClient[dict[str, Any]] = pymongo.MongoClient(uri)
        images = client["Shifter"]["images"]
        site.pulled("bar:1", ALICE)
        site.pulled("bar:2", ALICE)
        site.pulled("secret:1", ALICE, login={"site": "a:pw"}, body={"allowed_uids": str(BOB)})
        site.pulled("gone:1", ALICE)
        site.gateway.workers.each_beat()
        (public,) = images.find({"tag": "bar:1"})
        assert (public["tag"], public["status"], public["system"], public["itype"]) == (
            ["bar:1", "bar:2"], "READY", SYSTEM, "docker",
        )  # fmt: skip
        assert (public["ENV"], public["WORKDIR"], public["private"]) == (["PATH=/bin", "A=b=c"], "/work", False)
        assert public["expiration"] > public["last_pull"]
        (private,) = images.find({"tag": "secret:1"})
        assert (private["userACL"], private["private"]) == ([ALICE, BOB], True)
        (failed,) = images.find({"pulltag": "gone:1"})
        assert failed["status"] == "FAILURE"
        assert failed["status_message"].startswith("registry site has no gone:1")
        site.request("DELETE", f"/api/expire/{SYSTEM}/docker/bar:1", 0)
        site.request("DELETE", f"/api/expire/{SYSTEM}/docker/bar:2", 0)
        site.gateway.workers.each_beat()
        assert images.find_one({"id": public["id"]}, {"status": 1, "_id": 0}) == {"status": "EXPIRED"}
        client.close()


def test_the_collection_is_kept_by_one_gateway_at_a_time_in_steps_and_the_next_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("catalog.mongo_mirror._AT_ONCE", 3)
    catalog, images = opened(tmp_path)
    with ferretdb() as uri, pymongo.MongoClient[dict[str, Any]](uri) as client:
        database = client["Shifter"]
        first, turn = MongoMirror(database, images, 10, lambda: bool(turn)), [1]
        second = MongoMirror(database, images, 10, lambda: not turn)
        for number in range(5):
            add(catalog, f"a:{number}")
        second.update()
        assert database["images"].count_documents({}) == 0
        first.update()
        assert sorted(one["tag"] for one in database["images"].find()) == [[f"a:{n}"] for n in range(5)]
        assert database["mirror"].find_one({"_id": "images"}) == {"_id": "images", "position": 10}
        turn.clear()
        name = Reference("one", "docker", "a:3")
        catalog.change(name, lambda it: it.remove(1e9, by="owner", uid=0, user="root"))
        catalog.change(name, lambda it: it.tag_as(image("a:1"), Access(True), 1e9, uid=0, user="root"))
        written: list[Any] = []
        write = second._write
        monkeypatch.setattr(second, "_write", lambda groups: (written.append(groups), write(groups)))
        second.update()
        assert len(written) == 1  # what the first had written is not written again
        assert sorted(one["tag"] for one in database["images"].find()) == [["a:0"], ["a:1", "a:3"], ["a:2"], ["a:4"]]
    images.close()


def test_documents_of_the_original_make_way_for_ours_when_ours_say_all_that_they_say(tmp_path: Path) -> None:
    catalog, images = opened(tmp_path)
    with ferretdb() as uri, pymongo.MongoClient[dict[str, Any]](uri) as client:
        database = client["Shifter"]
        old = {"system": "one", "itype": "docker", "status": "READY"}
        database["images"].insert_many(
            [
                {**old, "id": image("a:1").id, "tag": ["a:1"]},
                {**old, "id": image("b:1").id, "tag": ["b:1", "not migrated:1"]},
                {**old, "id": image("a:1").id, "tag": ["a:1"], "system": "two"},
            ]
        )
        add(catalog, "a:1")
        add(catalog, "b:1")
        MongoMirror(database, images, 10, lambda: True).update()
        (moved,) = database["images_before"].find()
        assert moved["tag"] == ["a:1"]
        left = database["images"].find({"mirror": {"$ne": True}}, {"_id": 0, "tag": 1, "system": 1})
        assert sorted((one["system"], one["tag"]) for one in left) == [
            ("one", ["b:1", "not migrated:1"]), ("two", ["a:1"]),
        ]  # fmt: skip
    images.close()
