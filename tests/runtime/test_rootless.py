"""Without the setuid bit, or with --userns: the same container in a user namespace, and what cannot be had there is said."""

import os
import stat
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.requires import requires, requires_root
from tests.runtime import node as nodes
from tests.runtime.node import NOBODY, Node, only_line

pytestmark = [requires_root, requires("mksquashfs", "busybox", "gcc", "squashfuse_ll")]


@pytest.fixture(scope="module")
def made() -> Iterator[Node]:
    with nodes.node() as made:
        made.image("tiny")
        made.shifter.chmod(0o755)
        made.open_fuse()
        yield made


@pytest.fixture
def node(made: Node) -> Iterator[Node]:
    before = dict(made.settings)
    yield made
    made.settings = before
    made.configure()
    assert made.leftovers() == []
    assert list((made.directory / "loopMount").iterdir()) == []


def test_a_start_without_the_setuid_bit(node: Node) -> None:
    data = nodes.public(node.directory / "data")
    (data / "note").write_text("volume\n")
    done = node.start(
        "--image=id:tiny", "-V", f"{data}:/new/place:ro", "-e", "A=1", "sh", "-c",
        "cat /etc/os-release /new/place/note; echo $A; id -u; cat /etc/passwd; touch /new/place/x; exit 5",
    )  # fmt: skip
    assert done.returncode == 5
    assert done.stdout == f"NAME=tiny\nvolume\n1\n{NOBODY}\nnobody:x:{NOBODY}:{NOBODY}:nobody:/nonexistent:/bin/sh\n"
    assert "Read-only file system" in done.stderr


def test_a_user_may_choose_it_although_the_launcher_is_setuid(node: Node) -> None:
    node.shifter.chmod(0o4755)
    try:
        done = node.start("--userns", "--image=id:tiny", "cat", "/proc/self/uid_map")
    finally:
        node.shifter.chmod(0o755)
    assert done.stdout.split() == [str(NOBODY), str(NOBODY), "1"]


def test_the_command_has_no_capability_in_its_namespace(node: Node) -> None:
    done = node.start("--image=id:tiny", "sh", "-c", "cat /proc/self/status; mount -t tmpfs none /tmp")
    fields = dict(line.split(":\t", 1) for line in done.stdout.splitlines() if ":\t" in line)
    assert {fields[name] for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == {"0" * 16}
    assert fields["NoNewPrivs"] == "1"
    assert "permission denied" in done.stderr.lower()


def test_a_directory_as_the_image(node: Node) -> None:
    node.configure(allowLocalChroot="1")
    tree = nodes.public(node.directory / "unpacked")
    for name in ("bin", "proc", "sys", "dev", "tmp", "var/tmp", "etc"):
        nodes.public(tree / name)
    (tree / "bin/busybox").write_bytes(Path("/bin/busybox").read_bytes())
    (tree / "bin/busybox").chmod(0o755)
    done = node.start(f"--image=local:{tree}", "/bin/busybox", "ls", "/etc/passwd")
    assert (done.returncode, done.stdout) == (0, "/etc/passwd\n"), done


def test_what_needs_root_is_said(node: Node) -> None:
    node.configure(sitePreMountHook="/etc/shifter/premount.sh", perNodeCachePath=str(node.directory))
    done = node.start("--image=id:tiny", "true")
    assert done.returncode == 0
    assert "hook /etc/shifter/premount.sh needs root: it is left out" in done.stderr
    said = only_line(node.start("--image=id:tiny", "-V", "/a:/b:perNodeCache=size=400m", "true"))
    assert "perNodeCache needs a setuid shifter" in said


def test_a_format_that_cannot_be_shown_without_privilege(node: Node) -> None:
    record = (node.directory / "images/tiny.json").read_text()
    (node.directory / "images/big.json").write_text(record.replace("tiny", "big").replace("squashfs", "xfs"))
    (node.directory / "images/big.xfs").write_bytes(b"x")
    assert "xfs cannot be mounted without privilege" in only_line(node.start("--image=id:big", "true"))


def test_an_image_that_is_not_sound_or_not_readable(node: Node) -> None:
    node.image("broken")
    (node.directory / "images/broken.squashfs").write_bytes(b"x" * 4096)
    assert "is it a sound image, and yours to read" in only_line(node.start("--image=id:broken", "true"))


def test_a_fuse_device_that_is_not_for_users_is_named(node: Node) -> None:
    closed, node.fuse = node.fuse, node.directory / "closed"
    os.mknod(node.fuse, 0o600 | stat.S_IFCHR, os.stat("/dev/fuse").st_rdev)
    try:
        said = only_line(node.start("--image=id:tiny", "true"))
    finally:
        node.fuse.unlink()
        node.fuse = closed
    assert "/dev/fuse is not yours to open" in said and "chmod 666 /dev/fuse" in said and "--image=local:DIR" in said


def test_the_program_that_shows_the_image_ends_with_the_command(node: Node) -> None:
    assert node.start("--image=id:tiny", "true").returncode == 0
    limit = time.monotonic() + 10

    def running() -> list[str]:
        found = []
        for process in filter(str.isdigit, os.listdir("/proc")):
            try:
                words = Path(f"/proc/{process}/cmdline").read_bytes()
            except OSError:
                continue
            if b"squashfuse" in words and str(node.directory).encode() in words:
                found.append(process)
        return found

    while running():
        assert time.monotonic() < limit
        os.sched_yield()
