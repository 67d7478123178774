"""Starts that must not be: one line that says what, which, and what to do; status 1; nothing left behind."""

import json
import os
from collections.abc import Iterator

import pytest

from tests.requires import requires, requires_root
from tests.runtime import node as nodes
from tests.runtime.node import NOBODY, Node, only_line

pytestmark = [requires_root, requires("mksquashfs", "busybox", "gcc")]


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


def test_root_is_refused(node: Node) -> None:
    assert "running as root: a container is a user's" in only_line(node.start("--image=id:tiny", "true", uid=0))


def test_a_uid_without_a_passwd_entry_is_refused(node: Node) -> None:
    said = only_line(node.start("--image=id:tiny", "true", uid=4242))
    assert "uid 4242 has no passwd entry" in said
    assert f"{node.directory}/etc/passwd" in said


def test_no_configuration(node: Node) -> None:
    (node.directory / "udiRoot.conf").unlink()
    said = only_line(node.start("--image=id:tiny", "true"))
    assert f"{node.directory}/udiRoot.conf: cannot be read: No such file" in said


@pytest.mark.parametrize(("mode", "owner"), [(0o646, 0), (0o664, 0), (0o644, NOBODY)])
def test_a_configuration_that_others_can_write(node: Node, mode: int, owner: int) -> None:
    path = node.directory / "udiRoot.conf"
    os.chmod(path, mode)
    os.chown(path, owner, 0)
    try:
        said = only_line(node.start("--image=id:tiny", "true"))
    finally:
        os.chown(path, 0, 0)
    assert f"{path}: must be owned by root and writable by nobody else" in said
    assert "chown root" in said


def test_an_unknown_key_of_the_configuration(node: Node) -> None:
    node.configure(siteFS="/home:/home")
    said = only_line(node.start("--image=id:tiny", "true"))
    assert "unknown key 'siteFS': did you mean 'siteFs'?" in said


@pytest.mark.parametrize(
    ("volume", "said"),
    [
        ("/no/such/place:/mnt", "/no/such/place: No such file or directory"),
        ("/root:/mnt", "/root: you may not read it"),
        ("/etc/shadow:/mnt", "/etc/shadow: you may not read it"),
        ("/tmp:/etc", "/etc is the system's"),
        ("/tmp:/etc/passwd", "/etc is the system's"),
        ("/tmp:/var/log", "/var is the system's"),
        ("/tmp:/opt", "/opt is the system's"),
        ("/tmp:/opt/udiImage/x", "/opt/udiImage is the system's"),
        ("/tmp:/", "/ is the system's"),
        ("/tmp:mnt", "target 'mnt' is not an absolute path"),
        ("tmp:/mnt", "source 'tmp' is not an absolute path"),
        ("/tmp", "has no target"),
        ("/tmp:/a/../b", "has '..'"),
        ("/tmp:/mnt:rec", "flag 'rec' is for the site"),
        ("/tmp:/mnt:fast", "flag 'fast'"),
        ("/tmp:/a;/var/tmp:/a", "target /a is used twice"),
        ("/tmp:/mnt:perNodeCache", "needs a size"),
        ("/tmp:/bin/sh", "/bin/busybox is a file in the image"),
        ("/tmp:/bin/cat/x", "is a file in the image"),
        ("/etc/hosts:/usr", "/usr is a directory in the image, a file is needed"),
        ("/tmp:/tmp/not-there", "/tmp/not-there does not exist in"),
        ("/proc/self/fd/5:/mnt", "/proc/self/fd/5"),
    ],
)
def test_a_volume_that_cannot_be(node: Node, volume: str, said: str) -> None:
    assert said in only_line(node.start("--image=id:tiny", "--volume", volume, "true"))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--image=id:nothing", "true"], "no image id:nothing on this system"),
        (["--image=id:../images/tiny", "true"], "no image id:../images/tiny"),
        (["--image=docker:no:such", "true"], "no imageGateway in udiRoot.conf"),
        (["--image=what:ever:it", "true"], "what:ever"),
        (["--image=", "true"], "no image name"),
        (["true"], "no image named"),
        (["--image=local:/", "true"], "allowLocalChroot"),
        (["--image"], "option --image needs a value"),
        (["--colour", "true"], "option --colour is not known"),
        (["--image=id:tiny", "--env", "A", "true"], "write NAME=VALUE"),
        (["--image=id:tiny", "--env-file=/no/file", "true"], "--env-file /no/file: No such file"),
        (["--image=id:tiny", "--env-file=/etc/shadow", "true"], "--env-file /etc/shadow: Permission denied"),
        (["--image=id:tiny", "--env-file=/dev/zero", "true"], "--env-file /dev/zero: not a regular file"),
        (["--image=id:tiny", "--module=fast", "true"], "module 'fast' is not known here"),
        (["--image=id:tiny", "--entrypoint"], "no entry point"),
    ],
)
def test_a_command_line_that_cannot_be(node: Node, words: list[str], said: str) -> None:
    assert said in only_line(node.start(*words))


def test_a_gateway_that_does_not_answer(node: Node) -> None:
    node.configure(imageGateway="http://127.0.0.1:1", gatewayTimeout="1")
    said = only_line(node.start("--image=docker:alpine:3", "true"))
    assert "image docker:alpine:3: cannot be looked up" in said
    assert "127.0.0.1:1" in said


def test_an_image_of_others_looks_as_if_it_did_not_exist(node: Node) -> None:
    node.image("private", public=False, uids=[1], gids=[50])
    absent = only_line(node.start("--image=id:nothing", "true"))
    assert only_line(node.start("--image=id:private", "true")) == absent.replace("nothing", "private")
    assert node.start("--image=id:private", "true", uid=1).returncode == 0
    assert node.start("--image=id:private", "true", groups=[50]).returncode == 0
    assert node.start("--image=id:private", "true", gid=50).returncode == 0


def test_an_image_that_is_not_sound_or_not_the_sites(node: Node) -> None:
    images = node.directory / "images"
    node.image("broken")
    (images / "broken.squashfs").write_bytes(b"not an image" * 1000)
    assert "not a sound squashfs file" in only_line(node.start("--image=id:broken", "true"))
    node.image("mine")
    os.chown(images / "mine.squashfs", NOBODY, NOBODY)
    assert "its user or others could write it" in only_line(node.start("--image=id:mine", "true"))
    node.image("open")
    os.chmod(images / "open.squashfs", 0o666)
    assert "its user or others could write it" in only_line(node.start("--image=id:open", "true"))
    node.image("gone")
    (images / "gone.squashfs").unlink()
    assert "gone.squashfs is missing" in only_line(node.start("--image=id:gone", "true"))
    (images / "odd.json").write_text(json.dumps({"version": 2, "id": "odd"}))
    assert "odd.json: malformed" in only_line(node.start("--image=id:odd", "true"))


def test_a_link_out_of_the_image_directory_is_not_followed(node: Node) -> None:
    node.image("away")
    file = node.directory / "images/away.squashfs"
    file.rename(node.directory / "elsewhere.squashfs")
    file.symlink_to("../elsewhere.squashfs")
    assert "is missing" in only_line(node.start("--image=id:away", "true"))
