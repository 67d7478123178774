"""A pull from a real registry, judged by what is in the image file."""

from __future__ import annotations

import gzip
import subprocess
import tarfile
from pathlib import Path

import pytest
import zstandard

from catalog.conversion_options import ConversionOptions
from catalog.failure import PullFailed
from tests.catalog.registry_fixture import (
    OCI,
    LiveRegistry,
    Puller,
    build,
    device,
    directory,
    file,
    gz,
    hardlink,
    index,
    opaque,
    symlink,
    tar,
    whiteout,
)
from tests.requires import requires

pytestmark = requires("docker-registry", "tar2sqfs", "unsquashfs", "rdsquashfs")


def listing(puller: Puller, name: str) -> dict[str, str]:
    """Path -> kind, mode, owner and link target, as the image file itself says."""
    text = subprocess.run(
        ["rdsquashfs", "-d", str(puller.images.path(name))], check=True, capture_output=True, errors="surrogateescape"
    ).stdout
    found = {}
    for line in text.splitlines():
        kind, path, *rest = line.split(" ")
        found[path] = " ".join([kind, *rest])
    return found


def content(puller: Puller, name: str, path: str) -> bytes:
    return subprocess.run(
        ["rdsquashfs", "-c", path, str(puller.images.path(name))], check=True, capture_output=True
    ).stdout


BASE = tar(
    directory("etc"), file("etc/os-release", b"base"), file("etc/gone", b"x"), directory("opt"), file("opt/old", b"")
)
TOP = tar(directory("etc"), file("etc/os-release", b"top"), whiteout("etc/gone"), opaque("opt"), file("opt/new", b"n"))


def test_layers_are_merged_and_the_configuration_is_read(puller: Puller, live_registry: LiveRegistry) -> None:
    config = {
        "Env": ["PATH=/bin", "A=b=c"],
        "Entrypoint": ["/bin/x", "-y"],
        "Cmd": None,
        "WorkingDir": "/opt",
        "Labels": {"a": "b"},
    }
    image = build(gz(BASE), gz(TOP), config=config)
    live_registry.push("pull/merged", "1", image)
    pulled = puller.pull("pull/merged:1")
    assert pulled.id == image.id
    assert (pulled.env, pulled.entrypoint, pulled.cmd) == (("PATH=/bin", "A=b=c"), ("/bin/x", "-y"), None)
    assert (pulled.workdir, pulled.labels, pulled.arch, pulled.anonymous) == ("/opt", {"a": "b"}, "amd64", True)
    assert sorted(listing(puller, pulled.object)) == ["etc", "etc/os-release", "opt", "opt/new"]
    assert content(puller, pulled.object, "etc/os-release") == b"top"
    assert pulled.size == puller.images.size(pulled.object)
    assert puller.watcher.stages == ["PULLING", "EXAMINATION", "CONVERSION", "TRANSFER"]
    assert puller.watcher.last["layers_done"] == puller.watcher.last["layers"] == 2
    assert puller.litter() == []


@pytest.mark.parametrize("docker", [True, False])
def test_docker_and_oci_manifests_are_understood(puller: Puller, live_registry: LiveRegistry, docker: bool) -> None:
    live_registry.push("pull/kinds", str(docker), build(gz(BASE), docker=docker))
    assert "etc/gone" in listing(puller, puller.pull(f"pull/kinds:{docker}").object)


def zstd_chunked(content: bytes) -> bytes:
    """As zstd:chunked has it: several frames, with a skippable one after them."""
    frame = zstandard.ZstdCompressor().compress
    return frame(content[:700]) + frame(content[700:]) + b"\x50\x2a\x4d\x18\x04\0\0\0abcd"


@pytest.mark.parametrize(
    ("suffix", "pack"),
    [
        ("tar", bytes),
        ("tar+gzip", gz),
        ("tar+gzip", lambda data: gzip.compress(data[:700]) + gzip.compress(data[700:])),
        ("tar+zstd", zstandard.ZstdCompressor().compress),
        ("tar+zstd", zstd_chunked),
    ],
)
def test_layers_of_every_compression_give_the_same_image(
    puller: Puller, live_registry: LiveRegistry, suffix: str, pack: object
) -> None:
    live_registry.push("pull/plain", "1", build(BASE, media=[OCI + "layer.v1.tar"]))
    image = build(pack(BASE), media=[OCI + f"layer.v1.{suffix}"])  # type: ignore[operator]  # a function
    live_registry.push("pull/packed", "1", image)
    assert puller.pull("pull/packed:1").object == puller.pull("pull/plain:1").object


def test_the_platforms_architecture_is_taken_from_an_index(puller: Puller, live_registry: LiveRegistry) -> None:
    images = {
        (arch, variant): build(gz(tar(file(f"{arch}{variant or ''}"))), arch=arch)
        for arch, variant in [("amd64", None), ("arm64", "v8"), ("arm", "v6"), ("arm", "v7")]
    }
    for image in images.values():
        live_registry.push("pull/many", image.id[:10], image)
    platforms = [
        (image, {"os": "linux", "architecture": arch, **({"variant": variant} if variant else {})})
        for (arch, variant), image in images.items()
    ]
    live_registry.push("pull/many", "1", index(*platforms))
    assert puller.pull("pull/many:1").id == images["amd64", None].id
    assert puller.pull("pull/many:1", arch="arm64").id == images["arm64", "v8"].id
    assert puller.pull("pull/many:1", arch="arm", variant="v7").id == images["arm", "v7"].id
    with pytest.raises(PullFailed, match=r"is not made for ppc64le; available: amd64, arm/v6, arm/v7, arm64/v8"):
        puller.pull("pull/many:1", arch="ppc64le")


def test_an_image_of_another_architecture_is_refused(puller: Puller, live_registry: LiveRegistry) -> None:
    live_registry.push("pull/arm", "1", build(gz(BASE), arch="arm64"))
    with pytest.raises(PullFailed, match=r"^pull/arm:1 is not made for amd64; available: arm64$"):
        puller.pull("pull/arm:1")


def test_a_digest_is_pulled_whatever_the_tag_says_now(puller: Puller, live_registry: LiveRegistry) -> None:
    first, second = build(gz(BASE)), build(gz(TOP))
    live_registry.push("pull/pinned", "1", first)
    live_registry.push("pull/pinned", "1", second)
    assert puller.pull(f"pull/pinned:1@{first.digest}").id == first.id
    assert puller.pull("pull/pinned:1").id == second.id


def test_setuid_bits_and_devices_are_taken_out(puller: Puller, live_registry: LiveRegistry) -> None:
    layer = tar(
        file("su", b"x", mode=0o4755),
        file("sg", b"x", mode=0o2755),
        directory("shared", mode=0o3777),
        device("null"),
        hardlink("null2", "null"),
    )
    live_registry.push("pull/policy", "1", build(gz(layer)))
    found = listing(puller, puller.pull("pull/policy:1").object)
    assert found == {"su": "file 0755 0 0", "sg": "file 0755 0 0", "shared": "dir 03777 0 0"}


def test_a_device_still_hides_the_file_below_it(puller: Puller, live_registry: LiveRegistry) -> None:
    live_registry.push("pull/hides", "1", build(gz(tar(file("null", b"file"))), gz(tar(device("null"), file("a")))))
    assert sorted(listing(puller, puller.pull("pull/hides:1").object)) == ["a"]


def test_links_names_and_owners_come_through(puller: Puller, live_registry: LiveRegistry) -> None:
    long = "d" * 120 + "/" + "f" * 200
    layer = tar(
        file(long, b"long", uid=1000, gid=3_000_000_000, mode=0o640, mtime=1_600_000_000),
        hardlink("hard", long),
        symlink("soft", "/" + long),
        symlink("out", "../../../etc/passwd"),
        file(b"latin-\xe9\nline", b"odd"),
    )
    live_registry.push("pull/names", "1", build(gz(layer)))
    pulled = puller.pull("pull/names:1")
    found = listing(puller, pulled.object)
    assert found[long] == found["hard"] == "file 0640 1000 3000000000"
    assert found["soft"] == f"slink 0777 0 0 /{long}"
    assert found["out"] == "slink 0777 0 0 ../../../etc/passwd"
    assert content(puller, pulled.object, "hard") == b"long"


def test_user_attributes_are_kept_when_configured_and_others_never(
    puller: Puller, live_registry: LiveRegistry, tmp_path: Path
) -> None:
    info, data = file("f", b"x")
    info.pax_headers = {
        "SCHILY.xattr.user.note": "hello",
        "SCHILY.xattr.security.capability": "secret",
        "SCHILY.xattr.trusted.x": "secret",
    }
    live_registry.push("pull/xattr", "1", build(gz(tar((info, data), format=tarfile.PAX_FORMAT))))
    keeping = Puller(tmp_path / "keeping", live_registry.url, ConversionOptions(keep_user_xattrs=True))
    for pulling, expected in ((puller, b""), (keeping, b"user.note=hello\n")):
        path = pulling.images.path(pulling.pull("pull/xattr:1").object)
        found = subprocess.run(["rdsquashfs", "-x", "f", str(path)], check=True, capture_output=True).stdout
        assert found == expected


@pytest.mark.parametrize(
    "arguments", [["--format=gnu"], ["--format=pax", "--sparse-version=0.1"], ["--format=pax", "--sparse-version=1.0"]]
)
def test_sparse_files_are_whole_in_the_image(
    puller: Puller, live_registry: LiveRegistry, tmp_path: Path, arguments: list[str]
) -> None:
    path = tmp_path / "sparse"
    with path.open("wb") as out:
        for at in (0, 5_000_000, 9_999_000):
            out.seek(at)
            out.write(b"data" * 1000)
        out.truncate(20_000_000)
    layer = subprocess.run(["tar", "-cS", *arguments, "-C", str(tmp_path), "sparse"], check=True, capture_output=True)
    live_registry.push("pull/sparse", arguments[-1].strip("-").replace("=", "-"), build(gz(layer.stdout)))
    pulled = puller.pull(f"pull/sparse:{arguments[-1].strip('-').replace('=', '-')}")
    assert content(puller, pulled.object, "sparse") == path.read_bytes()
    assert pulled.size < 100_000


def test_an_image_without_layers_is_an_empty_tree(puller: Puller, live_registry: LiveRegistry) -> None:
    live_registry.push("pull/empty", "1", build())
    assert listing(puller, puller.pull("pull/empty:1").object) == {}


def test_the_image_file_is_mountable_by_its_link(puller: Puller, live_registry: LiveRegistry, tmp_path: Path) -> None:
    live_registry.push("pull/mount", "1", build(gz(BASE)))
    path = puller.images.path(puller.pull("pull/mount:1").object)
    out = subprocess.run(["unsquashfs", "-d", str(tmp_path / "out"), str(path)], capture_output=True, text=True)
    assert out.returncode == 0, out.stderr
    assert (tmp_path / "out/etc/os-release").read_bytes() == b"base"
