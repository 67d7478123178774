"""Imports: what a user prepared becomes an image, if he could read it and it is what he says."""

from __future__ import annotations

import itertools
import os
import resource
import shutil
import struct
import subprocess
from pathlib import Path
from typing import Any

import pytest

from catalog import import_job
from tests.catalog.gateway_fixture import ALICE, BOB, CAROL, SYSTEM, InProcess
from tests.requires import requires

pytestmark = requires("mksquashfs", "rdsquashfs", "umoci", "skopeo")


@pytest.fixture
def shared(public_directory: Path) -> Path:
    """A directory that every user reaches, with a tree to make images from."""
    tree = public_directory / "tree"
    (tree / "bin").mkdir(parents=True)
    (tree / "bin" / "tool").write_text("#!/bin/sh\n")
    return public_directory


def squashed(shared: Path, name: str = "image.squashfs", *options: str) -> Path:
    made = shared / name
    subprocess.run(["mksquashfs", shared / "tree", made, "-quiet", "-no-progress", *options], check=True)
    return made


def ask(
    site: InProcess, path: Path | str, uid: int = ALICE, *, form: str = "squashfs", tag: str = "x:1", **keys: Any
) -> Any:
    body = {"filepath": str(path), "format": form, **keys}
    return site.request("POST", f"/api/doimport/{SYSTEM}/custom/{tag}/", uid, body)


def imported(site: InProcess, path: Path | str, uid: int = ALICE, **options: Any) -> dict[str, Any]:
    first = ask(site, path, uid, **options)
    assert first.status_code == 200, first.text
    assert first.json["status"] == "INIT"
    site.work()
    answer: dict[str, Any] = ask(site, path, uid, **options).json
    return answer


def test_a_squashfs_becomes_an_image_named_by_its_content(site: InProcess, shared: Path) -> None:
    file = squashed(shared, "image.squashfs", "-no-xattrs")
    image = imported(site, file)
    assert image["status"] == "READY"
    fast = subprocess.run(["b3sum", "--no-names", file], capture_output=True, text=True, check=True).stdout.strip()
    assert image["id"] == image["object"] == fast
    assert (site.directory / "images" / f"{image['id']}.squashfs").read_bytes() == file.read_bytes()
    found = site.request("GET", f"/api/lookup/{SYSTEM}/custom/x:1", BOB)
    assert found.json["id"] == image["id"]


def test_its_states_are_hashing_and_transfer(site: InProcess, shared: Path) -> None:
    imported(site, squashed(shared, "i", "-no-xattrs"))
    actions = [
        one.detail.get("stage")
        for one in _history(site)
        if one.action == "stage"
    ]  # fmt: skip
    assert actions == ["HASHING", "TRANSFER"]


def _history(site: InProcess) -> list[Any]:
    from catalog.history import Filter, History

    return History(site.gateway.images).happenings(Filter(), limit=100)


def test_the_acl_given_with_an_import_is_kept(site: InProcess, shared: Path) -> None:
    image = imported(site, squashed(shared, "i", "-no-xattrs"), allowed_uids=str(BOB))
    assert site.request("GET", f"/api/lookup/{SYSTEM}/custom/x:1", BOB).status_code == 200
    assert site.request("GET", f"/api/lookup/{SYSTEM}/custom/x:1", CAROL).status_code == 404
    assert site.node_record(image["id"])["uids"] == [ALICE, BOB]


@pytest.mark.parametrize("kind", ["oci-layout", "docker-archive"])
def test_layouts_and_archives_of_other_tools_are_converted(site: InProcess, shared: Path, kind: str) -> None:
    layout = shared / "layout"
    for command in (
        ["umoci", "init", "--layout", layout],
        ["umoci", "new", "--image", f"{layout}:1"],
        ["umoci", "insert", "--image", f"{layout}:1", shared / "tree" / "bin", "/bin"],
        ["umoci", "config", "--image", f"{layout}:1", "--config.env", "A=b", "--architecture", "amd64"],
    ):
        subprocess.run(command, check=True, capture_output=True)
    source = layout
    if kind == "docker-archive":
        source = shared / "saved.tar"
        subprocess.run(
            ["skopeo", "copy", "-q", f"oci:{layout}:1", f"docker-archive:{source}:x:1"], check=True, capture_output=True
        )
    for path in [layout, *layout.rglob("*")]:
        path.chmod(0o755 if path.is_dir() else 0o644)
    source.chmod(0o755)
    image = imported(site, source, form=kind)
    assert (image["status"], image["status_message"]) == ("READY", "")
    assert image["ENV"] == ["A=b"]
    file = site.directory / "images" / f"{image['id']}.squashfs"
    listing = subprocess.run(["rdsquashfs", "-d", file], capture_output=True, text=True, check=True).stdout
    assert "bin/tool" in listing


def failure(site: InProcess, path: Path | str, uid: int = ALICE, **options: Any) -> str:
    answer = imported(site, path, uid, **options)
    assert answer["status"] == "FAILURE", answer
    assert list((site.directory / "images").glob("*.squashfs")) == []
    return str(answer["status_message"])


def test_what_is_no_squashfs_is_refused(site: InProcess, shared: Path) -> None:
    file = shared / "text"
    file.write_text("x" * 200)
    assert failure(site, file) == f"{file} is no squashfs image of version 4.0"
    file.write_text("x")
    assert failure(site, file) == f"{file} is no squashfs image: it has 1 bytes"


def test_a_cut_off_or_damaged_squashfs_is_refused(site: InProcess, shared: Path) -> None:
    file = squashed(shared, "i", "-no-xattrs")
    content = file.read_bytes()
    file.write_bytes(content[:200])
    assert "is cut off: it has 200 of" in failure(site, file)
    file.write_bytes(content[:96] + b"\xff" * (len(content) - 96))
    assert f"{file} is damaged" in failure(site, file)


def folded(levels: int) -> bytes:
    """A squashfs of so many directories, each of which names the next one twice: 2 to the power of them paths."""
    inodes = listings = b""
    offset = number = 0
    for level in range(levels):
        start = len(listings)
        if level:
            listings += struct.pack("<III", 1, 0, number)
            listings += b"".join(struct.pack("<HhHH", offset, 0, 1, 0) + name for name in (b"a", b"b"))
        offset, number = len(inodes), level + 1
        directory = (1, 0o755, 0, 0, 0, number, 0, 2, len(listings) - start + 3, start, number + 1)
        inodes += struct.pack("<HHHHIIIIHHI", *directory)
    tables = [struct.pack("<H", 0x8000 | len(table)) + table for table in (inodes, listings, bytes(4))]
    ends = list(itertools.accumulate(map(len, tables), initial=96))
    none, plain = 2**64 - 1, 0x1 | 0x2 | 0x8 | 0x10 | 0x200
    head = (0x73717368, levels, 0, 1 << 17, 0, 1, 17, plain, 1, 4, 0)
    places = (offset, ends[3] + 8, ends[3], none, ends[0], ends[1], none, none)
    return struct.pack("<IIIIIHHHHHHQQQQQQQQ", *head, *places) + b"".join(tables) + struct.pack("<Q", ends[2])


def test_a_squashfs_that_unfolds_without_end_is_refused(
    site: InProcess, shared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = shared / "folded"
    file.write_bytes(folded(4))
    assert imported(site, file, tag="few:1")["status"] == "READY"
    site.request("DELETE", f"/api/image/{SYSTEM}/custom/few:1/", ALICE)
    monkeypatch.setitem(import_job._READER_LIMITS, resource.RLIMIT_AS, 256 << 20)  # as at the real limit, sooner
    file.write_bytes(folded(60))
    assert f"{file} unfolds to more paths than can be walked" in failure(site, file)


def test_a_squashfs_that_is_written_to_while_it_is_copied_is_refused(
    site: InProcess, shared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = squashed(shared, "i", "-no-xattrs")

    def meanwhile(watch: object, **numbers: int) -> None:
        with file.open("r+b") as image:
            image.write(b"hsqs")

    monkeypatch.setattr("catalog.workers.Watch.progress", meanwhile)
    reason = failure(site, file)
    assert f"{file} was written to while it was copied into the store: try again when it is complete" in reason
    assert os.listdir(site.directory / "images/cas/tmp") == []


def test_what_is_copied_is_what_is_judged(site: InProcess, shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An image with attributes that takes the place of one without, in the file, between the look and the copy."""
    file = squashed(shared, "i", "-no-xattrs")
    os.setxattr(shared / "tree/bin/tool", "user.x", b"y")
    other = squashed(shared, "other")
    from cas.store import Store

    real = Store.put_open

    def exchanged(store: Store, fd: int, source: Path, **keywords: Any) -> Any:
        file.write_bytes(other.read_bytes())
        return real(store, fd, source, **keywords)

    monkeypatch.setattr(Store, "put_open", exchanged)
    assert "holds extended attributes" in failure(site, file)


def test_a_full_disk_is_told_as_one(site: InProcess, shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = squashed(shared, "i", "-no-xattrs")

    def full(*arguments: object) -> int:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr("cas.copying.hash_side_by_side", full)
    assert "no space left while writing" in failure(site, file)
    assert os.listdir(site.directory / "images/cas/tmp") == []


def test_extended_attributes_are_refused_with_what_to_do(site: InProcess, shared: Path) -> None:
    tool = shared / "tree" / "bin" / "tool"
    os.setxattr(tool, "user.note", b"x")
    file = squashed(shared, "i", "-xattrs")
    assert failure(site, file) == f"{file} holds extended attributes; make it anew with mksquashfs -no-xattrs"


def test_nobody_imports_what_he_could_not_read(site: InProcess, shared: Path) -> None:
    file = squashed(shared, "i", "-no-xattrs")
    file.chmod(0o600)
    os.chown(file, BOB, BOB)
    assert "is not yours to read" in failure(site, file, ALICE)
    assert imported(site, file, BOB, tag="y:1")["status"] == "READY"


def test_a_directory_on_the_way_that_is_closed_to_the_user_closes_the_file_too(site: InProcess, shared: Path) -> None:
    private = shared / "private"
    private.mkdir(mode=0o700)
    file = private / "image"
    shutil.copy(squashed(shared, "i", "-no-xattrs"), file)
    file.chmod(0o644)
    assert failure(site, file, ALICE) == f"{private} is not yours to read; an import takes only what its user may read"


@pytest.mark.parametrize("closed", ["", "index.json", "blobs", "blobs/sha256"])
def test_what_lies_in_a_layout_must_be_the_user_s_to_read_too(site: InProcess, shared: Path, closed: str) -> None:
    layout = shared / "layout"
    subprocess.run(["umoci", "init", "--layout", layout], check=True)
    subprocess.run(["umoci", "new", "--image", f"{layout}:x"], check=True)
    subprocess.run(["chmod", "-R", "a+rX", layout], check=True)
    (layout / closed).chmod(0o700 if closed else 0o744)  # to list a directory is not to reach what is in it
    assert failure(site, layout, form="oci-layout").endswith(
        "is not yours to read; an import takes only what its user may read"
    )


def test_the_group_of_a_file_counts(site: InProcess, shared: Path) -> None:
    file = squashed(shared, "i", "-no-xattrs")
    os.chown(file, BOB, ALICE)
    file.chmod(0o640)
    assert imported(site, file, ALICE)["status"] == "READY"


def test_links_relative_paths_and_devices_are_refused(site: InProcess, shared: Path) -> None:
    link = shared / "link"
    link.symlink_to(squashed(shared, "i", "-no-xattrs"))
    assert "is a symbolic link" in failure(site, link)
    assert "is no absolute path" in failure(site, "tmp/x")
    assert "is no absolute path" in failure(site, f"{shared}/../x")
    assert "is neither a file nor a directory" in failure(site, "/dev/null")
    assert "No such file" in failure(site, shared / "nothing")


@pytest.mark.parametrize("path", ["/a\0b", "/" + 1024 * "dir/"])
def test_what_no_file_can_be_called_is_refused_at_once(site: InProcess, path: str) -> None:
    refused = ask(site, path)
    assert refused.status_code == 400
    assert refused.json["error"].startswith("the filepath is none")


def test_an_unknown_format_is_refused_with_those_that_are_known(site: InProcess, shared: Path) -> None:
    reason = failure(site, squashed(shared, "i", "-no-xattrs"), form="ext4")
    assert reason == "format 'ext4' cannot be imported; use squashfs, oci-layout, docker-archive"


def test_only_import_users_may_import(open_gateway: Any, shared: Path) -> None:
    off = open_gateway(ImportUsers=None)
    assert ask(off, "/x").status_code == 403
    assert "import is switched off" in ask(off, "/x").json["error"]


def test_a_list_of_import_users_is_by_name_or_uid(open_gateway: Any, shared: Path) -> None:
    some = open_gateway(ImportUsers=["root", str(ALICE)])
    assert ask(some, "/x", ALICE).status_code == 200
    refused = ask(some, "/x", BOB)
    assert refused.status_code == 403
    assert "may not import images" in refused.json["error"]


def test_nobody_replaces_another_user_s_import(site: InProcess, shared: Path) -> None:
    file = squashed(shared, "i", "-no-xattrs")
    imported(site, file, ALICE)
    refused = ask(site, file, BOB)
    assert refused.status_code == 403
    assert "belongs to another user" in refused.json["error"]


def test_an_import_cannot_pose_as_a_docker_image(site: InProcess) -> None:
    result = site.request(
        "POST", f"/api/doimport/{SYSTEM}/docker/x:1/", ALICE, {"filepath": "/x", "format": "squashfs"}
    )
    assert result.status_code == 400
    assert "cannot have the type docker" in result.json["error"]
