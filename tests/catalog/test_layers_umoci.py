"""Random stacks of layers: the image file holds what umoci unpacks. umoci is the judge; where policy differs, it says
so here.

Wanted differences: setuid and setgid bits of files and device nodes are taken out (not made here), directories that
no layer has an entry for are dated 0 (umoci: now), and where umoci gives up because a layer has something below a
file of a lower layer, the file gives way.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import stat
import subprocess
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st

from cas.store import Store
from catalog.conversion_options import ConversionOptions
from catalog.failure import PullFailed
from catalog.flatten import merge_layers
from catalog.layers import NeedsSurvey
from tests.catalog.registry_fixture import (
    OCI,
    build,
    directory,
    file,
    gz,
    hardlink,
    opaque,
    sha256,
    symlink,
    tar,
    whiteout,
)
from tests.requires import requires, requires_root

pytestmark = [requires("umoci", "tar2sqfs", "unsquashfs"), requires_root]

SCALE = float(os.environ.get("SHIFTER_TEST_SCALE", "1"))
Member = tuple[tarfile.TarInfo, bytes]

NAMES = ["a", "b", "c", "a/a", "a/b", "b/a", "b/c", "a/b/c", "a/a/b", "c/a/b", "c/b"]
NAMES += ["a/" + "long" * 30, "b/\udcff\u00e9 \n*", "c/" + "/".join(["deep"] * 30)]
names = st.sampled_from(NAMES)
targets = st.sampled_from(["a", "b", "/b", "../a", "a/b", "/a/a", "c", "..", "/", "gone"])
numbers = st.integers(min_value=1, max_value=99)
modes = st.sampled_from([0o644, 0o755, 0o700, 0o1777])


def owned(number: int, mode: int) -> dict[str, int]:
    return {"mtime": 1_000_000 + number, "uid": number, "gid": 100 + number, "mode": mode}


members = st.one_of(
    st.builds(lambda name, n, m: file(name, b"%d" % n * n, **owned(n, m)), names, numbers, modes),
    st.builds(lambda name, n, m: directory(name, **owned(n, m)), names, numbers, modes),
    st.builds(lambda name, target, n: symlink(name, target, **owned(n, 0o777)), names, targets, numbers),
    st.builds(hardlink, names, names),
    st.builds(lambda name, n, m: (_fifo(name, owned(n, m)), b""), names, numbers, modes),
    st.builds(whiteout, names),
    st.builds(opaque, names),
)
layers = st.lists(st.lists(members, max_size=6), min_size=1, max_size=4)
formats = st.sampled_from([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])


def _fifo(name: str, fields: dict[str, int]) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type = tarfile.FIFOTYPE
    for key, value in fields.items():
        setattr(info, key, value)
    return info


Tree = dict[str, tuple[object, ...]]


def tree(root: Path) -> Tree:
    """Path -> kind, permissions, owner, date, contents or link target, and the first of its names (hard links share
    it).
    """
    found: Tree = {}
    first: dict[int, str] = {}
    for path in sorted([root, *root.rglob("*")], key=str):
        status, name = path.lstat(), str(path.relative_to(root))
        kind = stat.S_IFMT(status.st_mode)
        held: object = None
        if stat.S_ISREG(status.st_mode):
            held = path.read_bytes()
        elif stat.S_ISLNK(status.st_mode):
            held = os.readlink(path)
        same = name if kind == stat.S_IFDIR else first.setdefault(status.st_ino, name)
        found[name] = (
            kind,
            stat.S_IMODE(status.st_mode),
            status.st_uid,
            status.st_gid,
            int(status.st_mtime),
            held,
            same,
        )
    return found


def umoci(blobs: list[bytes], where: Path) -> Tree | None:
    """What umoci unpacks; None when it gives up."""
    image = build(*blobs)
    layout = where / "oci"
    (layout / "blobs/sha256").mkdir(parents=True)
    (layout / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    for digest, content in [*image.blobs.items(), (image.digest, image.manifest)]:
        (layout / "blobs" / digest.replace(":", "/")).write_bytes(content)
    entry = {"mediaType": OCI + "manifest.v1+json", "digest": image.digest, "size": len(image.manifest)}
    entry["annotations"] = {"org.opencontainers.image.ref.name": "1"}
    (layout / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [entry]}))
    done = subprocess.run(
        ["umoci", "raw", "unpack", "--image", f"{layout}:1", str(where / "umoci")], capture_output=True
    )
    return tree(where / "umoci") if done.returncode == 0 else None


def ours(blobs: list[bytes], where: Path, *, survey: bool, image_file: bool = True) -> Tree:
    """What the image file holds that the one pass, or the two, make of these layers."""
    store = Store(where / "store", sync=False)
    objects = []
    for blob in blobs:
        with store.writer() as writer:
            writer.write(blob)
            objects.append(writer.commit().name)
    stream = where / f"stream{survey}"
    with stream.open("wb") as out:
        merge_layers(store, objects, out.write, ConversionOptions(), what="it", survey=survey)
    image, unpacked = where / f"image{survey}", where / f"ours{survey}"
    with stream.open("rb") as source:
        subprocess.run(["tar2sqfs", "-q", "-s", "-c", "zstd", "-X", "level=1", str(image)], stdin=source, check=True)
    subprocess.run(["unsquashfs", "-q", "-n", "-d", str(unpacked), str(image)], check=True, stdout=subprocess.DEVNULL)
    return tree(unpacked)


def undated(one: Tree, like: Tree) -> Tree:
    """`one`, where directories that are dated 0 in `like` are dated 0 too."""
    result = {}
    for name, facts in one.items():
        implied = name in like and like[name][0] == stat.S_IFDIR and like[name][4] == 0
        result[name] = (*facts[:4], 0, *facts[5:]) if implied else facts
    return result


def blobs_of(
    stack: list[list[Member]], pack: Callable[[bytes], bytes] = gz, format: int = tarfile.GNU_FORMAT
) -> list[bytes]:
    return [pack(tar(*layer, format=format)) for layer in stack]


def compare(stack: list[list[Member]], format: int) -> None:
    blobs = blobs_of(stack, format=format)
    assume(len(set(map(sha256, blobs))) == len(blobs))
    where = Path(tempfile.mkdtemp(prefix="layers-"))
    try:
        expected = umoci(blobs, where)
        try:
            surveyed = ours(blobs, where, survey=True)
        except PullFailed:
            assert expected is None
            return
        if expected is not None:
            assert surveyed == undated(expected, surveyed)
        with contextlib.suppress(NeedsSurvey):
            assert ours(blobs, where, survey=False) == surveyed
    finally:
        shutil.rmtree(where)


@settings(
    max_examples=int(60 * SCALE),
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
@given(layers, formats)
@example(
    [[directory("a"), file("a/b", b"1")], [file("a", b"2")], [directory("a"), file("a/c", b"3")]], tarfile.GNU_FORMAT
)
@example([[directory("a"), file("a/b", b"1"), hardlink("b", "a/b")], [whiteout("a/b")]], tarfile.GNU_FORMAT)
@example([[file("a", b"1"), hardlink("b", "a")], [file("a", b"2")]], tarfile.GNU_FORMAT)
@example([[directory("a"), symlink("b", "a")], [file("b/c", b"through the link")]], tarfile.GNU_FORMAT)
@example([[directory("a"), file("a/b", b"1")], [opaque("a"), file("a/c", b"2")]], tarfile.GNU_FORMAT)
@example([[directory("a"), file("a/b", b"1")], [whiteout("a"), directory("a"), file("a/c", b"2")]], tarfile.GNU_FORMAT)
@example([[file("a", b"1")], [hardlink("b", "a")], [file("a", b"2")]], tarfile.GNU_FORMAT)
@example([[symlink("a", "gone"), hardlink("b", "a")]], tarfile.GNU_FORMAT)
@example([[file("a", b"1"), file("a", b"2"), directory("b"), directory("b", mode=0o700)]], tarfile.GNU_FORMAT)
def test_the_image_holds_what_umoci_unpacks(stack: list[list[Member]], format: int) -> None:
    compare(stack, format)


def test_the_one_pass_serves_ordinary_images() -> None:
    """The stacks that builders write need no survey: packages upgraded, files removed, links kept."""
    base = [
        directory("usr"),
        directory("usr/bin"),
        file("usr/bin/perl", b"1"),
        hardlink("usr/bin/perl5", "usr/bin/perl"),
    ]
    base += [symlink("bin", "usr/bin"), directory("etc"), file("etc/a", b"1"), directory("tmp", mode=0o1777)]
    upgrade = [
        directory("usr"),
        directory("usr/bin"),
        file("usr/bin/perl", b"2"),
        hardlink("usr/bin/perl5", "usr/bin/perl"),
    ]
    cleanup = [directory("etc"), whiteout("etc/a"), opaque("tmp")]
    where = Path(tempfile.mkdtemp(prefix="layers-"))
    try:
        found = ours(blobs_of([base, upgrade, cleanup]), where, survey=False)
    finally:
        shutil.rmtree(where)
    assert sorted(found) == [".", "bin", "etc", "tmp", "usr", "usr/bin", "usr/bin/perl", "usr/bin/perl5"]
    assert found["usr/bin/perl5"] == found["usr/bin/perl"]


@pytest.mark.parametrize("pack", [gz, bytes])
def test_a_file_below_a_file_of_a_lower_layer_takes_its_place(tmp_path: Path, pack: Callable[[bytes], bytes]) -> None:
    found = ours(blobs_of([[file("a", b"1")], [file("a/b", b"2")]], pack), tmp_path, survey=True)
    assert sorted(found) == [".", "a", "a/b"]
