"""Images brought as files are the images that a registry would have given."""

from __future__ import annotations

import io
import json
import random
import subprocess
import tarfile
from pathlib import Path
from types import SimpleNamespace

import pytest

from cas.store import Store
from catalog.conversion_options import ConversionOptions
from catalog.failure import PullFailed
from catalog.layout import pull_layout
from catalog.pull import PulledImage
from tests.catalog.registry_fixture import OCI, Built, Watcher, build, file, gz, sha256, tar
from tests.requires import requires

pytestmark = requires("tar2sqfs")

IMAGE = build(gz(tar(file("a", b"1"))), gz(tar(file("b", b"2"))), config={"Env": ["A=b"]})


def layout(directory: Path, images: dict[str, Built]) -> Path:
    (directory / "blobs/sha256").mkdir(parents=True)
    entries = []
    for name, image in images.items():
        for digest, content in {**image.blobs, image.digest: image.manifest}.items():
            (directory / "blobs" / digest.replace(":", "/")).write_bytes(content)
        entries.append(
            {
                "mediaType": OCI + "manifest.v1+json",
                "digest": image.digest,
                "size": len(image.manifest),
                "annotations": {"org.opencontainers.image.ref.name": name},
            }
        )
    (directory / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": entries}))
    (directory / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    return directory


def bring(path: Path, directory: Path, tag: str | None = None) -> PulledImage:
    layers, images = Store(directory / "cache", sync=False), Store(directory / "images/cas", sync=False)
    platform = SimpleNamespace(arch="amd64", variant=None)
    try:
        return pull_layout(path, platform, layers, images, Watcher(), ConversionOptions(), tag=tag)  # type: ignore[arg-type]  # the fields read
    finally:
        assert [*(layers.root / "tmp").iterdir(), *(images.root / "tmp").iterdir()] == []


def test_a_layout_and_its_archive(tmp_path: Path) -> None:
    path = layout(tmp_path / "oci", {"1": IMAGE})
    with tarfile.open(tmp_path / "oci.tar", "w") as archive:
        archive.add(path, ".")
    for source in (path, tmp_path / "oci.tar"):
        brought = bring(source, tmp_path / source.suffix.strip("."))
        assert (brought.id, brought.env, brought.anonymous) == (IMAGE.id, ("A=b",), False)


def test_one_of_several_is_chosen_by_its_tag(tmp_path: Path) -> None:
    other = build(gz(tar(file("x"))))
    path = layout(tmp_path / "oci", {"1": IMAGE, "2": other})
    assert bring(path, tmp_path, "2").id == other.id
    with pytest.raises(PullFailed, match="oci holds several images; available: 1, 2"):
        bring(path, tmp_path)
    with pytest.raises(PullFailed, match="oci holds no image '3'; available: 1, 2"):
        bring(path, tmp_path, "3")


@requires("skopeo")
def test_a_docker_archive_holds_the_same_tree(tmp_path: Path) -> None:
    path = layout(tmp_path / "oci", {"1": IMAGE})
    target = f"docker-archive:{tmp_path}/d.tar:a/b:1"
    subprocess.run(["skopeo", "copy", "-q", f"oci:{path}:1", target], check=True, capture_output=True)
    brought = bring(tmp_path / "d.tar", tmp_path / "1")
    names = subprocess.run(
        ["rdsquashfs", "-d", str(Store(tmp_path / "1/images/cas").path(brought.object))],
        check=True,
        capture_output=True,
    ).stdout
    assert names == b"file a 0644 0 0\nfile b 0644 0 0\n"
    assert bring(tmp_path / "d.tar", tmp_path / "2").id == brought.id


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda path: (path / "index.json").write_text("{"), "index.json is not JSON"),
        (lambda path: (path / "index.json").unlink(), "neither an OCI layout"),
        (lambda path: (path / "index.json").write_text('{"manifests": []}'), "oci holds no image"),
        (lambda path: (path / "blobs" / IMAGE.digest.replace(":", "/")).unlink(), "oci lacks the blob sha256:"),
        (
            lambda path: (path / "blobs" / IMAGE.digest.replace(":", "/")).write_text("{}"),
            "other bytes for the manifest",
        ),
        (
            lambda path: (path / "blobs" / list(IMAGE.blobs)[1].replace(":", "/")).write_bytes(b"x"),
            "oci holds other bytes for layer",
        ),
    ],
)
def test_a_damaged_layout(tmp_path: Path, damage: object, reason: str) -> None:
    path = layout(tmp_path / "oci", {"1": IMAGE})
    damage(path)  # type: ignore[operator]  # a function
    with pytest.raises(PullFailed, match=reason):
        bring(path, tmp_path)


def test_a_link_out_of_a_layout_is_not_followed(tmp_path: Path) -> None:
    path = layout(tmp_path / "oci", {"1": IMAGE})
    secret = tmp_path / "secret"
    secret.write_bytes(b"secret")
    blob = path / "blobs" / sha256(b"secret").replace(":", "/")
    blob.symlink_to(secret)
    entry = {"mediaType": OCI + "manifest.v1+json", "digest": sha256(b"secret"), "size": 6}
    (path / "index.json").write_text(json.dumps({"manifests": [entry]}))
    with pytest.raises(PullFailed, match="oci lacks the blob"):
        bring(path, tmp_path)


def test_a_file_that_is_no_archive(tmp_path: Path) -> None:
    (tmp_path / "x.tar").write_bytes(b"not an archive" * 100)
    with pytest.raises(PullFailed, match=r"x\.tar cannot be read"):
        bring(tmp_path / "x.tar", tmp_path)
    with pytest.raises(PullFailed, match=r"gone\.tar cannot be read: .*No such file"):
        bring(tmp_path / "gone.tar", tmp_path)


def test_a_docker_archive_that_lacks_a_layer(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "d.tar", "w") as archive:
        content = json.dumps([{"Config": "c.json", "RepoTags": None, "Layers": ["x/layer.tar"]}]).encode()
        for name, data in (("manifest.json", content), ("c.json", b"{}")):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    with pytest.raises(PullFailed, match=r"d\.tar lacks the file x/layer\.tar"):
        bring(tmp_path / "d.tar", tmp_path)


def test_links_inside_a_layout_are_followed_and_a_circle_is_not(tmp_path: Path) -> None:
    path = layout(tmp_path / "oci", {"1": IMAGE})
    (path / "blobs").rename(path / "elsewhere")
    (path / "blobs").symlink_to("x/../elsewhere/.")
    (path / "x").mkdir()
    assert bring(path, tmp_path / "1").id == IMAGE.id
    (path / "blobs").unlink()
    (path / "blobs").symlink_to("blobs")
    with pytest.raises(PullFailed, match="oci lacks the blob"):
        bring(path, tmp_path / "2")


def docker_archive(path: Path, manifest: object, *more: tuple[str, bytes], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]  # any mode
        for name, data in (("manifest.json", json.dumps(manifest).encode()), *more):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


@pytest.mark.parametrize("tags", [5, "a", [5], {"a": 1}, [None, ["x"]]])
def test_tags_that_make_no_sense_are_none(tmp_path: Path, tags: object) -> None:
    entry = {"Config": "c.json", "RepoTags": tags, "Layers": []}
    archive = docker_archive(tmp_path / "d.tar", [entry, entry], ("c.json", b"{}"))
    with pytest.raises(PullFailed, match=r"d\.tar holds several images; available: none"):
        bring(archive, tmp_path)


def test_an_archive_of_too_many_files_is_refused(tmp_path: Path) -> None:
    archive = docker_archive(tmp_path / "d.tar", [], *[(f"f{number}", b"") for number in range(10_001)])
    with pytest.raises(PullFailed, match=r"d\.tar holds more than an image may: 10001 files"):
        bring(archive, tmp_path)


@pytest.mark.parametrize("pack", ["gz", "xz", "bz2"])
def test_a_damaged_archive_is_said_to_be_one(tmp_path: Path, pack: str) -> None:
    noise = random.Random(3).randbytes(200_000)
    entry = {"Config": "c.json", "RepoTags": None, "Layers": ["l"]}
    whole = docker_archive(tmp_path / "d", [entry], ("c.json", b"{}"), ("l", noise), mode=f"w:{pack}").read_bytes()
    for place in range(20, len(whole), len(whole) // 12):
        damaged = tmp_path / f"{place}.tar"
        damaged.write_bytes(whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :])
        with pytest.raises(PullFailed):
            bring(damaged, tmp_path / f"{place}")
