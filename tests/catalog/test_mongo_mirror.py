"""With the event store in MongoDB a site's old scripts find the collection `images` as they know it."""

from __future__ import annotations

from typing import Any

import pymongo

from tests.catalog.databases import ferretdb
from tests.catalog.gateway_fixture import ALICE, BOB, SYSTEM, Content, ImaginedRegistry, InProcess


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
