"""perNodeCache: the user's own file system, as large as asked for, gone with the start."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.requires import requires, requires_root
from tests.runtime import node as nodes
from tests.runtime.node import NOBODY, Node, only_line

pytestmark = [requires_root, requires("mksquashfs", "busybox", "gcc", "mkfs.xfs")]


@pytest.fixture(scope="module")
def made() -> Iterator[Node]:
    with nodes.node() as made:
        made.image("tiny")
        yield made


@pytest.fixture
def node(made: Node) -> Iterator[Node]:
    before = dict(made.settings)
    yield made
    made.settings = before
    made.configure()
    made.drop_holds()
    assert made.left() == []


def said(node: Node, script: str, *words: str) -> str:
    done = node.start("--image=id:tiny", *words, "sh", "-c", script)
    assert (done.returncode, done.stderr) == (0, ""), done
    return done.stdout


def cached(node: Node, **settings: str) -> Path:
    path = nodes.public(node.directory / "backing")
    path.chmod(0o700)
    node.configure(perNodeCachePath=str(path), **settings)
    return path


def test_it_is_writable_of_the_size_asked_for_and_leaves_nothing(node: Node) -> None:
    backing = cached(node)
    out = said(
        node, "echo mine > /cache/note && cat /cache/note; stat -f -c '%S %b' /cache; stat -c %u /cache",
        "-V", "/any:/cache:perNodeCache=size=400m",
    ).split()  # fmt: skip
    assert out[0] == "mine"
    assert 0.8 * 400 * 2**20 < int(out[1]) * int(out[2]) <= 400 * 2**20
    assert out[3] == str(NOBODY)
    assert list(backing.iterdir()) == []


def test_a_crash_leaves_nothing_either(node: Node) -> None:
    backing = cached(node)
    process = subprocess.Popen(
        [str(node.shifter), "--image=id:tiny", "-V", "/a:/cache:perNodeCache=size=400m", "sh", "-c", "echo up; cat"],
        user=NOBODY, group=NOBODY, extra_groups=[], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd="/",
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == b"up\n"
    assert any(str(backing) in line for line in node.leftovers())
    process.kill()
    process.communicate()
    assert list(backing.iterdir()) == []
    assert [line for line in node.leftovers() if str(backing) in line] == []


def test_each_start_has_its_own(node: Node) -> None:
    cached(node)
    assert said(node, "ls /cache; touch /cache/x", "-V", "/a:/cache:perNodeCache=size=400m") == ""
    assert said(node, "ls /cache", "-V", "/a:/cache:perNodeCache=size=400m") == ""


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("size=2g", "this system allows 1073741824: ask for less"),
        ("size=1m", "is 1048576 bytes enough?"),
        ("size=400m,fs=ext4", "fs=ext4: this system has xfs"),
        ("size=400m,method=file", "only loop is known"),
        ("size=lots", "'lots' is not a positive number"),
    ],
)
def test_what_cannot_be(node: Node, flag: str, message: str) -> None:
    cached(node, perNodeCacheSizeLimit="1g")
    assert message in only_line(node.start("--image=id:tiny", "-V", f"/a:/cache:perNodeCache={flag}", "true"))


def test_a_site_without_a_place_for_it(node: Node) -> None:
    done = node.start("--image=id:tiny", "-V", "/a:/cache:perNodeCache=size=1g", "true")
    assert "perNodeCache is not configured on this system" in only_line(done)
