"""An image is mounted once a node: made by a race, shared, replaced, lingering, dropped; and starts that die meanwhile."""

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from runtime import holds
from runtime.udiroot import read
from tests.requires import requires, requires_root
from tests.runtime import node as nodes
from tests.runtime.loop_limit import LoopLimit
from tests.runtime.node import NOBODY, Node

pytestmark = [requires_root, requires("mksquashfs", "busybox", "gcc")]


@pytest.fixture(scope="module")
def made() -> Iterator[Node]:
    with nodes.node() as made:
        made.image("tiny")
        made.image("other")
        yield made


@pytest.fixture
def node(made: Node) -> Iterator[Node]:
    made.drop_holds()
    before = dict(made.settings)
    yield made
    made.settings = before
    made.configure()
    made.drop_holds()
    assert made.left() == []


def running(node: Node, *options: str, uid: int = NOBODY) -> subprocess.Popen[bytes]:
    """A container that has started and waits until its standard input is closed."""
    process = subprocess.Popen(
        [str(node.shifter), *options, "sh", "-c", "echo ready; cat"],
        user=uid, group=uid, extra_groups=[], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd="/",
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    return process


def end(process: subprocess.Popen[bytes]) -> None:
    process.communicate()
    assert process.returncode == 0


def devices(node: Node) -> list[str]:
    """Loop devices that hold an image of this node."""
    return [name for name in node.leftovers() if name.startswith(f"{node.directory}/images/")]


def comes_to(node: Node, number: int) -> bool:
    """Whether the node gets to hold this many devices: others' namespaces and what runs behind a start need a moment."""
    limit = time.monotonic() + 10
    while len(devices(node)) != number and time.monotonic() < limit:
        os.sched_yield()
    return len(devices(node)) == number


def kept(node: Node) -> list[holds.Hold]:
    return holds.holds(f"{node.directory}/loopMount")


def test_64_starts_at_once_make_one_mount_on_one_device(node: Node) -> None:
    started = [
        subprocess.Popen(
            [str(node.shifter), "--image=id:tiny", "stat", "-c", "%d", "/"],
            user=NOBODY, group=NOBODY, extra_groups=[], stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd="/",
        )
        for _ in range(64)
    ]  # fmt: skip
    outcomes = [process.communicate() for process in started]
    assert {process.returncode for process in started} == {0}, outcomes
    assert len({out for out, _ in outcomes}) == 1
    assert [hold.device != "" for hold in kept(node)] == [True]
    assert comes_to(node, 1)


def test_64_starts_at_once_share_a_device_where_nothing_is_kept(node: Node) -> None:
    node.configure(holdLinger="0")
    first = running(node, "--image=id:tiny")
    started = [running(node, "--image=id:tiny") for _ in range(8)]
    assert comes_to(node, 1)
    for process in [first, *started]:
        end(process)
    assert kept(node) == []
    assert node.left() == []


def test_two_users_share_the_mount_but_only_who_may_run_it(node: Node) -> None:
    node.image("ours", public=False, uids=[1, NOBODY])
    one, two = running(node, "--image=id:ours"), running(node, "--image=id:ours", uid=1)
    assert comes_to(node, 1)
    node.image("ours", public=False, uids=[NOBODY])
    assert "no image id:ours" in nodes.only_line(node.start("--image=id:ours", "true", uid=1))
    done = subprocess.run(
        ["ls", kept(node)[0].path], user=NOBODY, group=NOBODY, capture_output=True, text=True, check=False
    )
    assert "Permission denied" in done.stderr
    end(one)
    end(two)


def test_an_image_that_is_not_used_stays_for_a_while_and_goes_then(node: Node) -> None:
    assert node.start("--image=id:tiny", "true").returncode == 0
    conf = read(f"{node.directory}/udiRoot.conf")
    assert holds.drop_idle(conf) == []
    assert len(kept(node)) == 1
    lock = Path(kept(node)[0].path + ".lock")
    long_ago = time.time() - conf.hold_linger - 1
    os.utime(lock, (long_ago, long_ago))
    assert len(holds.drop_idle(conf)) == 1
    assert node.left() == []


def test_an_image_in_use_is_never_dropped(node: Node) -> None:
    process = running(node, "--image=id:tiny")
    assert node.drop_holds() == []
    assert len(kept(node)) == 1
    end(process)
    assert len(node.drop_holds()) == 1


def test_using_an_image_makes_it_stay_longer(node: Node) -> None:
    assert node.start("--image=id:tiny", "true").returncode == 0
    lock = Path(kept(node)[0].path + ".lock")
    os.utime(lock, (1, 1))
    assert node.start("--image=id:tiny", "true").returncode == 0
    assert lock.stat().st_mtime > time.time() - 100


def test_a_replaced_image_gets_a_mount_of_its_own(node: Node) -> None:
    node.image("changing", {"etc/version": "1\n"})
    old = running(node, "--image=id:changing")
    node.image("changing", {"etc/version": "2\n"})
    assert node.start("--image=id:changing", "cat", "/etc/version").stdout == "2\n"
    assert len(kept(node)) == 2
    end(old)


def test_a_new_image_sweeps_out_what_lingered(node: Node) -> None:
    assert node.start("--image=id:tiny", "true").returncode == 0
    lock = Path(kept(node)[0].path + ".lock")
    os.utime(lock, (1, 1))
    assert node.start("--image=id:other", "true").returncode == 0
    limit = time.monotonic() + 10
    while lock.exists():  # it is done behind the start
        assert time.monotonic() < limit
        os.sched_yield()
    assert len(kept(node)) == 1


def test_a_lock_without_a_hold_goes_but_not_while_it_says_where_the_image_is(node: Node) -> None:
    """A start that failed early leaves one; and where nothing is kept it names the loop device that all starts share."""
    directory = node.directory / "loopMount/holds"
    assert node.start("--image=id:tiny", "true").returncode == 0
    orphan = directory / "1-2-3.4.lock"
    orphan.touch(0o600)
    os.utime(orphan, (1, 1))
    held = set(directory.iterdir()) - {orphan}
    holds.drop_idle(read(str(node.directory / "udiRoot.conf")))
    assert set(directory.iterdir()) == held
    orphan.touch(0o600)  # somebody may be about to make the hold
    holds.drop_idle(read(str(node.directory / "udiRoot.conf")))
    assert orphan.exists()
    node.drop_holds()
    assert list(directory.iterdir()) == []
    node.configure(holdLinger="0")
    first = running(node, "--image=id:tiny")
    node.drop_holds()
    assert len(list(directory.iterdir())) == 1
    assert node.start("--image=id:tiny", "true").returncode == 0
    assert comes_to(node, 1)
    end(first)
    assert comes_to(node, 0)
    node.drop_holds()
    assert list(directory.iterdir()) == []


def test_a_start_killed_at_any_moment_leaves_a_whole_mount_or_none(node: Node) -> None:
    for delay in range(0, 30, 2):
        node.drop_holds()
        for plan in (node.directory / "loopMount/plans").glob("*"):
            plan.unlink()
        process = subprocess.Popen(
            [str(node.shifter), "--image=id:tiny", "sh", "-c", "cat"],
            user=NOBODY, group=NOBODY, extra_groups=[], stdin=subprocess.PIPE, cwd="/", stderr=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            process.wait(delay / 1000)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
        process.communicate()
        assert all(hold.device for hold in kept(node)) or devices(node) == []
        assert node.start("--image=id:tiny", "cat", "/etc/os-release").stdout == "NAME=tiny\n"
        assert comes_to(node, 1)


def test_the_caller_cannot_stop_a_start_that_others_wait_for(node: Node) -> None:
    """A lock on the image that is being mounted would let one user stop all others: the state of a stopped start shows it."""
    node.start("--image=id:tiny", "true")
    lock = Path(kept(node)[0].path + ".lock")
    done = subprocess.run(
        ["flock", str(lock), "true"], user=NOBODY, group=NOBODY, capture_output=True, text=True, check=False
    )
    assert "Permission denied" in done.stderr


@requires("strace")
def test_a_start_waits_for_a_loop_device_and_idle_images_make_room(node: Node) -> None:
    assert node.start("--image=id:other", "true").returncode == 0
    done = subprocess.run(
        ["strace", "-qq", "-o", "/dev/null", "-e", "inject=ioctl:error=ENOSPC:when=1..3", "-u", "nobody", str(node.shifter),
         "-v", "--image=id:tiny", "cat", "/etc/os-release"],
        env={"PATH": "/bin"}, cwd="/", capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.stdout == "NAME=tiny\n"
    assert done.stderr.count("waiting for a loop device") == 3
    assert comes_to(node, 1)


def test_1024_starts_of_200_images_share_128_loop_devices(node: Node) -> None:
    images, starts, together = 200, 1024, 8
    for number in range(images):
        for suffix in ("squashfs", "json"):
            text = (node.directory / f"images/tiny.{suffix}").read_bytes()
            copy = node.directory / f"images/many{number}.{suffix}"
            copy.write_bytes(text.replace(b'"tiny"', b'"many%d"' % number) if suffix == "json" else text)
    limit = LoopLimit(128, node.directory / "images")

    def many() -> list[tuple[int, str, str]]:
        running: list[subprocess.Popen[str]] = []
        ended = []
        for number in range(starts + together):
            if len(running) == together or number >= starts:
                first = running.pop(0)
                printed, said = first.communicate()
                ended.append((first.returncode, printed, said))
            if number < starts:
                command = [str(node.shifter), "-v", f"--image=id:many{number % images}", "cat", "/etc/os-release"]
                running.append(
                    subprocess.Popen(
                        command,
                        user=NOBODY,
                        group=NOBODY,
                        extra_groups=[],
                        cwd="/",
                        text=True,
                        stdout=subprocess.PIPE,
                        stderr=subprocess.PIPE,
                    )
                )
        return ended

    ended = limit.run(many)
    assert [(status, printed) for status, printed, _ in ended] == [(0, "NAME=tiny\n")] * starts
    assert limit.peak <= 128 + together
    waited = sum(said.count("waiting for a loop device") for _, _, said in ended)
    assert waited == limit.refused > 0
    for number in range(images):
        for suffix in ("squashfs", "json"):
            (node.directory / f"images/many{number}.{suffix}").unlink()


def test_starts_of_one_image_share_its_page_cache(node: Node) -> None:
    """What is read of an image is cached with its superblock: memory grows with the images of a node, not with its starts."""
    inside = ["stat", "-c", "%d", "/bin/busybox"]
    alive = [running(node, f"--image=id:{name}") for name in ("tiny", "other") for _ in range(8)]
    seen = {name: {node.start(f"--image=id:{name}", *inside).stdout for _ in range(8)} for name in ("tiny", "other")}
    for process in alive:
        end(process)
    assert [len(devices) for devices in seen.values()] == [1, 1]
    assert seen["tiny"] != seen["other"]
