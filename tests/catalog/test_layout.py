"""Images brought as files are the images that a registry would have given."""

from __future__ import annotations

import io
import json
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
