"""Hostile images: each ends in one sentence, within bounded time and memory, and nothing outside the store is
touched.
"""

from __future__ import annotations

import json
import os
import resource
import time
from pathlib import Path

import pytest

from cas.store import Store
from catalog.conversion_options import ConversionOptions
from catalog.failure import PullFailed
from catalog.flatten import flatten
from tests.catalog.hostile_images import (
    END,
    LIMITS,
    TAKEN,
    HostileDocument,
    HostileLayer,
    configurations,
    documents,
    layers,
    pax,
    raw,
)
from tests.catalog.lying_registry import Answer, lying
from tests.catalog.registry_fixture import OCI, Built, Puller, build, directory, file, gz, sha256, symlink, tar
from tests.requires import requires

pytestmark = requires("tar2sqfs")

OPTIONS = ConversionOptions(limits=LIMITS)
LAYERS = layers()


def test_the_corpus_is_large_and_has_no_name_twice() -> None:
    names = [layer.name for layer in LAYERS]
    assert len(names) == len(set(names))
    assert (
        len([layer for layer in LAYERS if layer.refusal is not TAKEN]) + len(documents()) + len(configurations()) >= 200
    )


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, Store]:
    directory = tmp_path_factory.mktemp("hostile")
    return Store(directory / "cache", sync=False), Store(directory / "images" / "cas", sync=False)


@pytest.mark.parametrize("layer", LAYERS, ids=[str(number) for number in range(len(LAYERS))])
def test_a_hostile_layer(stores: tuple[Store, Store], layer: HostileLayer) -> None:
    cache, images = stores
    outside = sorted(os.listdir(images.root.parent.parent))
    names = []
    for content in (gz(tar(directory("d"), file("good", b"x"))), layer.content):
        with cache.writer() as writer:
            writer.write(content)
            names.append(writer.commit().name)
    started = time.monotonic()
    try:
        path = flatten(cache, names, images, OPTIONS, what="a/b:1", check=lambda: None)
    except PullFailed as error:
        assert layer.refusal is not TAKEN, f"{layer.name}: {error}"
        assert str(error).startswith("layer 2 of a/b:1: "), layer.name
        assert layer.refusal in str(error), layer.name
        assert str(error).isprintable(), layer.name
        assert len(str(error)) < 600, layer.name
    else:
        path.unlink()
        assert layer.refusal is TAKEN, layer.name
    assert time.monotonic() - started < 20, layer.name
    assert os.listdir(images.root / "tmp") == [], layer.name
    assert sorted(os.listdir(images.root.parent.parent)) == outside


def test_the_corpus_needed_little_memory() -> None:
    """Of this process and its children, after the corpus: no bomb was held in memory."""
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss + resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    assert used < 1 << 20  # KiB; the corpus itself has some hundred MiB in it


@pytest.mark.parametrize("document", documents(), ids=lambda document: document.name)
def test_a_hostile_manifest(tmp_path: Path, document: HostileDocument) -> None:
    with lying(Built(document.content, document.media_type, document.blobs)) as registry:
        puller = Puller(tmp_path, registry.url, OPTIONS)
        with pytest.raises(PullFailed) as caught:
            puller.pull("a/b:1")
    assert document.refusal in str(caught.value)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 600
    assert puller.litter() == []


@pytest.mark.parametrize(("name", "content", "refusal"), configurations(), ids=[one[0] for one in configurations()])
def test_a_hostile_configuration(tmp_path: Path, name: str, content: bytes, refusal: str) -> None:
    honest = build(gz(tar(file("a"))))
    document = json.loads(honest.manifest)
    document["config"].update(digest=sha256(content), size=len(content))
    image = Built(json.dumps(document).encode(), honest.media_type, {**honest.blobs, sha256(content): content})
    with lying(image) as registry:
        puller = Puller(tmp_path, registry.url, OPTIONS)
        with pytest.raises(PullFailed) as caught:
            puller.pull("a/b:1")
    assert refusal in str(caught.value)
    assert str(caught.value).isprintable()


def test_an_index_that_leads_to_itself_and_one_that_goes_on_for_ever(tmp_path: Path) -> None:
    kind = OCI + "index.v1+json"
    chain: dict[str, bytes] = {}
    entry = {"mediaType": kind, "digest": sha256(b"x"), "size": 1, "platform": {"os": "linux", "architecture": "amd64"}}
    for _ in range(10):
        content = json.dumps({"schemaVersion": 2, "mediaType": kind, "manifests": [entry]}).encode()
        chain[sha256(content)] = content
        entry = {**entry, "digest": sha256(content), "size": len(content)}
    with lying(Built(content, kind, {})) as registry:
        registry.hook = lambda request: Answer(body=chain.get(request.path.rpartition("/")[2], content))
        with pytest.raises(PullFailed, match=r"^the index of a/b:1 leads to indexes only$"):
            Puller(tmp_path, registry.url, OPTIONS).pull("a/b:1")
        assert len(registry.requests) == 3


def test_a_manifest_that_names_one_layer_many_times_is_fetched_once_and_taken(tmp_path: Path) -> None:
    layer = gz(tar(file("a", b"1")))
    with lying(build(*[layer] * 15)) as registry:
        Puller(tmp_path, registry.url, OPTIONS).pull("a/b:1")
        assert len(registry.blob_requests()) == 1


def test_a_layer_cannot_write_through_a_link_of_another_layer(tmp_path: Path) -> None:
    """The erofs way unpacks: a link to the outside in one layer and a file behind it in the next stay inside."""
    victim = tmp_path / "victim"
    victim.mkdir()
    stack = [gz(tar(symlink("l", str(victim)))), gz(tar(file("l/x", b"x")))]
    with lying(build(*stack)) as registry:
        options = ConversionOptions(format="erofs", scratch=tmp_path, limits=LIMITS)
        Puller(tmp_path, registry.url, options).pull("a/b:1")
    assert os.listdir(victim) == []


@pytest.mark.parametrize("twice", [False, True], ids=["one pass", "with a survey"])
@pytest.mark.parametrize("sparse", [False, True], ids=["zeros", "holes"])
def test_the_limit_of_unpacked_bytes_is_one_of_all_layers_together(
    stores: tuple[Store, Store], sparse: bool, twice: bool
) -> None:
    """Layers that are small enough each are not taken when there are many of them."""
    cache, images = stores
    names = []
    for number in range(4):
        path = f"big{number}"
        if sparse:
            content = bytes(
                pax(GNU__sparse__major="1", GNU__sparse__minor="0", GNU__sparse__realsize=str(30 << 20))
                + raw(path.encode(), size=512)
                + b"0\n".ljust(512, b"\0")
            )
        else:
            content = raw(path.encode(), size=30 << 20) + bytes(30 << 20)
        content += tar(file("again"), file("again")) if twice else END
        with cache.writer() as writer:
            writer.write(gz(content))
            names.append(writer.commit().name)
    with pytest.raises(PullFailed, match=r"^layer \d of a/b:1: the image unpacks to more than 67108864 bytes"):
        flatten(cache, names, images, OPTIONS, what="a/b:1", check=lambda: None)
    assert flatten(cache, names[:2], images, OPTIONS, what="a/b:1", check=lambda: None).exists()
    for path in (images.root / "tmp").iterdir():
        path.unlink()
