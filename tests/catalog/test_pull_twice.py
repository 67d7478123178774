"""The same work is never done twice: layers are fetched once, contents converted once, by whoever comes first."""

from __future__ import annotations

import json
import random
import threading
from pathlib import Path

import pytest

from catalog import assemble as module
from catalog.conversion_options import ConversionOptions
from catalog.conversions import conversion_key, forget_missing, recall
from catalog.pull import PulledImage
from tests.catalog.lying_registry import Answer, LyingRegistry, Request, lying
from tests.catalog.registry_fixture import Built, Puller, build, file, gz, tar
from tests.requires import requires

pytestmark = requires("tar2sqfs")

BASE = gz(tar(file("base", random.Random(1).randbytes(400_000))))


def top(name: str) -> bytes:
    return gz(tar(file(name, name.encode())))


@pytest.fixture
def conversions(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The images that were converted."""
    seen: list[str] = []
    real = module.flatten

    def counting(*arguments: object, what: str, **more: object) -> Path:
        seen.append(what)
        return real(*arguments, what=what, **more)  # type: ignore[arg-type]  # passed on as they came

    monkeypatch.setattr(module, "flatten", counting)
    return seen


def layers_fetched(registry: LyingRegistry) -> list[str]:
    """Digests of the layers that were asked for, in order."""
    layers = {layer["digest"] for layer in json.loads(registry.image.manifest)["layers"]}
    return [digest for request in registry.requests if (digest := request.path.rpartition("/")[2]) in layers]


def test_the_same_content_under_another_tag_label_and_configuration(tmp_path: Path, conversions: list[str]) -> None:
    with lying(build(BASE, config={"Labels": {"a": "1"}})) as registry:
        puller = Puller(tmp_path, registry.url)
        first = puller.pull("a/b:1")
        registry.requests.clear()
        registry.image = build(BASE, config={"Labels": {"a": "2"}, "Env": ["X=1"]})
        second = puller.pull("other/name:2")
        assert layers_fetched(registry) == []
    assert second.object == first.object
    assert second.id != first.id
    assert second.env == ("X=1",)
    assert conversions == ["a/b:1"]


def test_the_layers_may_be_gone_when_the_image_is_there(tmp_path: Path) -> None:
    with lying(build(BASE)) as registry:
        puller = Puller(tmp_path, registry.url)
        first = puller.pull("a/b:1")
        for name in list(puller.layers.names()):
            puller.layers.delete(name)
        registry.requests.clear()
        assert puller.pull("a/b:1") == first
        assert layers_fetched(registry) == []


def test_only_a_changed_layer_is_fetched(tmp_path: Path, conversions: list[str]) -> None:
    with lying(build(BASE, top("one"))) as registry:
        puller = Puller(tmp_path, registry.url)
        puller.pull("a/b:1")
        registry.requests.clear()
        registry.image = build(BASE, top("two"))
        puller.pull("a/b:1")
        assert layers_fetched(registry) == [json.loads(registry.image.manifest)["layers"][1]["digest"]]
    assert len(conversions) == 2


def test_an_image_file_that_is_gone_is_made_again(tmp_path: Path, conversions: list[str]) -> None:
    with lying(build(BASE)) as registry:
        puller = Puller(tmp_path, registry.url)
        first = puller.pull("a/b:1")
        puller.images.delete(first.object)
        assert forget_missing(puller.images) == 1
        assert puller.pull("a/b:1") == first
    assert len(conversions) == 2


def test_other_options_are_another_conversion(tmp_path: Path, conversions: list[str]) -> None:
    with lying(build(BASE)) as registry:
        first = Puller(tmp_path, registry.url).pull("a/b:1")
        second = Puller(tmp_path, registry.url, ConversionOptions(arguments=("-comp", "gzip"))).pull("a/b:1")
    assert first.object != second.object
    assert len(conversions) == 2


def test_the_number_of_workers_changes_neither_the_key_nor_the_bytes(tmp_path: Path, conversions: list[str]) -> None:
    objects = set()
    with lying(build(BASE, top("one"))) as registry:
        for workers in (1, 2, 7):
            puller = Puller(tmp_path / str(workers), registry.url, ConversionOptions(workers=workers))
            objects.add(puller.pull("a/b:1").object)
    assert len(objects) == 1
    assert len(conversions) == 3
    one, seven = (conversion_key(["a"], ConversionOptions(workers=workers)) for workers in (1, 7))
    assert one == seven


def test_a_damaged_entry_counts_for_nothing(tmp_path: Path, conversions: list[str]) -> None:
    with lying(build(BASE)) as registry:
        puller = Puller(tmp_path, registry.url)
        puller.pull("a/b:1")
        for damage in (b"", b"{}", b'{"object": "../../x", "sha256": "", "size": 1}', b"[]"):
            for entry in (puller.images.root / "conversions").iterdir():
                entry.write_bytes(damage)
                assert recall(puller.images, entry.name) is None
            puller.pull("a/b:1")
    assert len(conversions) == 5


def test_pulls_at_once_of_images_that_share_a_base_fetch_it_once(tmp_path: Path, conversions: list[str]) -> None:
    images: dict[str, Built] = {f"n{number}": build(BASE, top(f"t{number}")) for number in range(6)}
    first = images["n0"]
    base = json.loads(first.manifest)["layers"][0]["digest"]
    with lying(first) as registry:
        for image in images.values():
            first.blobs.update(image.blobs)

        def hook(request: Request) -> Answer | None:
            name = request.path.split("/")[2]
            if "/manifests/" in request.path:
                return Answer(body=images[name].manifest, headers={"Content-Type": images[name].media_type})
            return None

        registry.hook = hook
        results: list[PulledImage] = []
        threads = [
            threading.Thread(target=lambda n=name: results.append(Puller(tmp_path, registry.url).pull(f"{n}:1")))
            for name in [*images, *images]
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(registry.paths(base)) == 1
    assert len(results) == 12
    assert len({result.object for result in results}) == 6
    assert len(conversions) == 6


def test_no_more_connections_than_the_location_allows(tmp_path: Path) -> None:
    layers = [top(f"layer{number}") for number in range(8)]
    now, most, lock = [0], [0], threading.Lock()
    meeting = threading.Barrier(2)
    with lying(build(*layers)) as registry:
        digests = {layer["digest"] for layer in json.loads(registry.image.manifest)["layers"]}

        def hook(request: Request) -> Answer | None:
            if request.path.rpartition("/")[2] not in digests:
                return None
            with lock:
                now[0] += 1
                most[0] = max(most[0], now[0])
            meeting.wait(10)  # two are here at a time, and no third one can be
            with lock:
                now[0] -= 1
            return registry.truth(request)

        registry.hook = hook
        Puller(tmp_path, registry.url, location={"name": "two-at-a-time", "connections": 2}).pull("a/b:1")
    assert most == [2]
