"""`shifter --check`: what makes a node unfit is said, with what to do; fit nodes exit 0."""

import os
import stat
from collections.abc import Iterator

import pytest

from tests.requires import requires, requires_root
from tests.runtime import node as nodes
from tests.runtime.node import NOBODY, Node

pytestmark = [requires_root, requires("mksquashfs", "busybox", "gcc", "squashfuse_ll")]


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


def test_a_fit_node(node: Node) -> None:
    done = node.start("--check")
    assert done.returncode == 0, done
    assert {line[:4] for line in done.stdout.splitlines()} <= {"ok  ", "note"}
    assert f"ok   configuration: {node.directory}/udiRoot.conf" in done.stdout
    assert "ok   file system squashfs: known" in done.stdout


def test_whether_starts_without_privilege_can_be_had_is_noted(node: Node) -> None:
    node.open_fuse()
    assert "ok   --userns: " in node.start("--check").stdout
    node.fuse = node.directory / "closed"
    os.mknod(node.fuse, 0o600 | stat.S_IFCHR, os.stat("/dev/fuse").st_rdev)
    done = node.start("--check")
    node.fuse = None
    assert "note --userns: /dev/fuse is not yours to open" in done.stdout
    assert done.returncode == 0


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"siteFs": "/no/where:/x"}, "FAIL siteFs /no/where:/x: /no/where is missing: mount it, or take it out"),
        ({"module_m_siteFs": "/no/where:/x"}, "FAIL module_m_siteFs /no/where:/x: /no/where is missing: mount it"),
        (
            {"module_m_copyPath": "/no/copy"},
            "FAIL module_m_copyPath: /no/copy is no directory: make it, or take it out",
        ),
        ({"optUdiImage": "/no/udi"}, "FAIL optUdiImage: /no/udi is no directory: make it"),
        ({"perNodeCachePath": "/no/cache"}, "FAIL perNodeCachePath: /no/cache is no directory: make it"),
        ({"etcPath": "/no/etc"}, "FAIL etcPath: /no/etc: No such file or directory: make it, owned by root"),
        ({"imagePath": "/no/images"}, "FAIL imagePath: /no/images: not a directory here: mount it"),
        ({"udiMount": "/dev/shm"}, "FAIL udiMount: /dev/shm: others can change it"),
        ({"wrong": "1"}, "FAIL configuration: "),
    ],
)
def test_what_makes_a_node_unfit(node: Node, settings: dict[str, str], said: str) -> None:
    node.configure(**settings)
    done = node.start("--check")
    assert done.returncode == 1
    assert said in done.stdout


def test_a_directory_of_somebody_elses_on_the_way_is_named(node: Node) -> None:
    theirs = node.directory / "theirs"
    (theirs / "etc").mkdir(parents=True)
    os.chown(theirs, NOBODY, NOBODY)
    (node.directory / "by-link").symlink_to(theirs / "etc")
    for path in (theirs / "etc", node.directory / "by-link"):
        node.configure(etcPath=str(path))
        done = node.start("--check")
        assert f"FAIL etcPath: {theirs}: others can change it: chown root, chmod go-w" in done.stdout
        assert done.returncode == 1


def test_a_gateway_and_a_munge_that_do_not_answer_are_noted(node: Node) -> None:
    node.configure(imageGateway="http://127.0.0.1:1")
    done = node.start("--check", env={"MUNGE_SOCKET": "/no/socket"})
    assert "note gateway http://127.0.0.1:1: " in done.stdout
    assert "note munge: " in done.stdout


def test_root_sees_the_held_images(node: Node) -> None:
    assert node.start("--image=id:tiny", "true").returncode == 0
    assert "ok   held image " in node.start("--check", uid=0).stdout
    assert "held image" not in node.start("--check").stdout
    assert node.drop_holds() != []
