"""What nodes see of an image, and what they must never be made to see."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cas.errors import ObjectMissing, StoreError
from cas.store import Store
from catalog.acl import PUBLIC, Access
from catalog.publish import meta, publish, published, withdraw
from catalog.pull import PulledImage

ID = "ab" * 32


def image(object_: str = "0" * 64, **fields: object) -> PulledImage:
    facts: dict[str, object] = {
        "id": ID,
        "object": object_,
        "size": 5,
        "format": "squashfs",
        "env": (),
        "entrypoint": None,
        "cmd": None,
        "workdir": None,
        "labels": {},
        "arch": "amd64",
        "anonymous": True,
        "layers": (),
    }
    return PulledImage(**{**facts, **fields})  # type: ignore[arg-type]  # the fields above


@pytest.fixture
def images(tmp_path: Path) -> Store:
    return Store(tmp_path / "images" / "cas")


def test_publish_leaves_a_relative_link_a_record_and_a_meta_file(images: Store) -> None:
    name = images.put_stream(io.BytesIO(b"image")).name
    directory = images.root.parent
    publish(directory, images, image(name, env=("A=b",), entrypoint=("/bin/x", "y z"), workdir="/w"), PUBLIC)
    assert os.readlink(directory / f"{ID}.squashfs") == f"cas/objects/{name[:2]}/{name[2:]}"
    assert (directory / f"{ID}.squashfs").read_bytes() == b"image"
    assert json.loads((directory / f"{ID}.json").read_text()) == {
        "version": 1,
        "id": ID,
        "format": "squashfs",
        "object": name,
        "size": 5,
        "arch": "amd64",
        "entrypoint": ["/bin/x", "y z"],
        "cmd": None,
        "workdir": "/w",
        "env": ["A=b"],
        "labels": {},
        "public": True,
        "uids": [],
        "gids": [],
    }
    text = (directory / f"{ID}.meta").read_text()
    assert text == "FORMAT: squashfs\nENTRY: ['/bin/x', 'y z']\nWORKDIR: /w\nENV: A=b\n"
    assert sorted(os.listdir(directory)) == sorted(["cas", f"{ID}.squashfs", f"{ID}.json", f"{ID}.meta"])
    assert published(directory) == {ID: name}


def test_publish_again_changes_the_access_and_the_object(images: Store) -> None:
    directory = images.root.parent
    for content, access in ((b"one", PUBLIC), (b"two", Access(False, frozenset({7, 5}), frozenset({3})))):
        name = images.put_stream(io.BytesIO(content)).name
        publish(directory, images, image(name), access)
    assert (directory / f"{ID}.squashfs").read_bytes() == b"two"
    assert "USERACL: 5,7\nGROUPACL: 3\n" in (directory / f"{ID}.meta").read_text()
    assert json.loads((directory / f"{ID}.json").read_text())["uids"] == [5, 7]


def test_an_access_that_lets_in_nobody_is_not_public_in_meta() -> None:
    assert "USERACL: 4294967294" in meta(image(), Access(False)).decode()


def test_withdraw_takes_all_of_it_away_and_may_be_repeated(images: Store) -> None:
    name = images.put_stream(io.BytesIO(b"image")).name
    publish(images.root.parent, images, image(name), PUBLIC)
    withdraw(images.root.parent, ID)
    withdraw(images.root.parent, ID)
    assert os.listdir(images.root.parent) == ["cas"]
    assert images.contains(name)


def test_an_image_whose_object_is_gone_is_not_published(images: Store) -> None:
    with pytest.raises(ObjectMissing):
        publish(images.root.parent, images, image(), PUBLIC)
    assert os.listdir(images.root.parent) == ["cas"]


def test_a_store_elsewhere_is_refused(images: Store, tmp_path: Path) -> None:
    name = images.put_stream(io.BytesIO(b"image")).name
    (tmp_path / "elsewhere").mkdir()
    with pytest.raises(StoreError, match="not below"):
        publish(tmp_path / "elsewhere", images, image(name), PUBLIC)


def test_values_that_meta_cannot_hold_are_left_out_and_stand_in_the_record(images: Store) -> None:
    directory = images.root.parent
    name = images.put_stream(io.BytesIO(b"image")).name
    hostile = image(
        name,
        env=("GOOD=1", "BAD=x\nUSERACL: 0", "TAIL=\\", "CR=a\rENV: b", "LINE=\u2028USERACL: 0", "NUL=\0"),
        entrypoint=("/bin/it's",),
        cmd=("a\nFORMAT: x",),
        workdir="/a\nUSERACL: 1",
    )
    publish(directory, images, hostile, Access(False, frozenset({1000})))
    assert (directory / f"{ID}.meta").read_text() == "FORMAT: squashfs\nUSERACL: 1000\nENV: GOOD=1\n"
    assert json.loads((directory / f"{ID}.json").read_text())["env"] == list(hostile.env)


@given(
    env=st.lists(st.text(max_size=20), max_size=4),
    entry=st.lists(st.text(max_size=10), max_size=3),
    workdir=st.none() | st.text(max_size=20),
)
def test_no_value_can_forge_a_key(env: list[str], entry: list[str], workdir: str | None) -> None:
    written = meta(
        image(env=tuple(env), entrypoint=tuple(entry), cmd=tuple(entry), workdir=workdir), Access(False, frozenset({5}))
    )
    lines = written.decode("utf-8", "surrogateescape").splitlines()
    keys = [line.partition(": ")[0] for line in lines]
    order = ["FORMAT", "ENTRY", "CMD", "WORKDIR", "USERACL", "GROUPACL", "ENV"]
    assert keys == sorted(keys, key=order.index)
    assert keys.count("USERACL") == keys.count("FORMAT") == 1
    assert not any(line.endswith("\\") for line in lines)
