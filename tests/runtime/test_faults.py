"""Every system call of a start fails once: the start says which one, or does without; nothing runs half-prepared or is left.

strace injects the failures into the launcher itself (not into the planner or the command): with a plan to compute and an image to
mount, with both at hand, into an environment that setupRoot prepared, and when setupRoot prepares it.
"""

import re
import socket
import subprocess
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from runtime import keep
from runtime.udiroot import read
from tests.requires import requires, requires_root
from tests.runtime import node as nodes
from tests.runtime.node import Node

pytestmark = [requires_root, requires("mksquashfs", "busybox", "gcc", "strace")]

HARMLESS = {  # of the C library before main, or that cannot fail in a way that matters
    "execve", "brk", "access", "arch_prctl", "set_tid_address", "set_robust_list", "rseq", "readlink", "getrandom", "mprotect",
    "close", "exit_group", "rt_sigaction", "rt_sigprocmask", "mmap", "munmap", "geteuid", "setfsuid", "setfsgid", "umask",
    "prlimit64", "fcntl", "setuid", "wait4",
    "poll",  # of musl before main; where RLIMIT_NOFILE makes it fail, launcher/entry.S says so
}  # fmt: skip
EXIT_IF_PRIVILEGED = "test $(id -u) = 65534 && grep -q 'NoNewPrivs:.1' /proc/self/status && cat /etc/os-release"


@pytest.fixture(scope="module")
def node() -> Iterator[Node]:
    with nodes.node() as made:
        made.image("tiny")
        yield made
        made.drop_holds()


def forget(node: Node) -> None:
    node.drop_holds()
    for plan in (node.directory / "loopMount/plans").glob("*"):
        plan.unlink()


def traced(node: Node, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["strace", "-qq", "-o", str(node.directory / "trace"), *options, "-u", "nobody", str(node.shifter),
         "--image=id:tiny", "-V", "/usr:/data", "sh", "-c", EXIT_IF_PRIVILEGED],
        env={"PATH": "/bin"}, cwd="/", capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip


def calls(node: Node) -> Counter[str]:
    """How often the launcher makes each system call before it becomes the command, or ends."""
    lines = (node.directory / "trace").read_text().splitlines()
    ends = [number for number, line in enumerate(lines) if line.startswith("execve(")]
    names = (re.match(r"(\w+)\(", line) for line in lines[: ends[1] if len(ends) > 1 else None])
    return Counter(found[1] for found in names if found and found[1] not in HARMLESS)


def in_turn(counted: Counter[str]) -> Iterator[tuple[str, int]]:
    """Each call by name and number; of the many that are alike (one drops one capability) the first, the last and one between."""
    for name, count in counted.items():
        numbers = sorted({1, 2, count // 2, count}) if count > 12 else range(1, count + 1)
        yield from ((name, number) for number in numbers)


@pytest.mark.parametrize("ready", [True, False], ids=["plan and image at hand", "nothing at hand"])
def test_each_system_call_fails_in_turn(node: Node, ready: bool) -> None:
    forget(node)
    if ready:
        assert traced(node).returncode == 0
    assert traced(node).stdout == "NAME=tiny\n"
    counted = calls(node)
    assert counted["move_mount"] >= 7
    for name, number in in_turn(counted):
        if not ready:
            forget(node)
        elif not list((node.directory / "loopMount/plans").glob("*")):
            assert traced(node).returncode == 0
        judge(traced(node, "-e", f"inject={name}:error=EIO:when={number}"), f"{name} number {number}")
    node.drop_holds()
    assert node.left() == []
    assert not list(Path(node.directory / "udiMount").iterdir())


def judge(done: subprocess.CompletedProcess[str], where: str) -> None:
    """The container ran as it should, or did not run at all and one line says why."""
    if done.returncode == 0:
        assert done.stdout == "NAME=tiny\n", (where, done)
    else:
        assert (done.returncode, done.stdout) == (1, ""), (where, done)
        assert done.stderr.startswith("shifter: "), (where, done)
        assert "Traceback" not in done.stderr, (where, done)


PREPARE = ("-U", "65534", "-G", "65534", "-v", "/usr:/data", "id", "tiny")


def program(node: Node, name: str, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(node.directory / "bin" / name), *words], capture_output=True, text=True, check=False)


def test_each_system_call_of_a_join_fails_in_turn(node: Node) -> None:
    forget(node)
    assert program(node, "setupRoot", *PREPARE).returncode == 0
    before = node.leftovers()
    assert traced(node).stdout == traced(node).stdout == "NAME=tiny\n"
    counted = calls(node)
    assert counted["chroot"] == 1 and counted["move_mount"] == 0
    for name, number in in_turn(counted):
        if not any(plan.name[0] != "s" for plan in (node.directory / "loopMount/plans").iterdir()):
            assert traced(node).returncode == 0  # a plan that failed is not used again
        judge(traced(node, "-e", f"inject={name}:error=EIO:when={number}"), f"{name} number {number}")
    assert node.leftovers() == before
    assert program(node, "unsetupRoot").returncode == 0
    node.drop_holds()
    assert node.left() == []


def test_each_system_call_of_a_set_up_fails_in_turn(node: Node) -> None:
    forget(node)
    assert program(node, "setupRoot", *PREPARE).returncode == 0
    assert program(node, "unsetupRoot").returncode == 0
    kept = keep.read_setup(read(str(node.directory / "udiRoot.conf")), ["setup", *PREPARE])
    assert kept is not None
    _, who, steps = kept

    def prepare(*options: str) -> subprocess.CompletedProcess[str]:
        """The launcher's part of setupRoot, with its kept steps."""
        argv = ["strace", "-qq", "-o", str(node.directory / "trace"), *options, str(node.shifter), "--steps", *who]
        ours, theirs = socket.socketpair()
        with ours, theirs, subprocess.Popen(argv, stdin=theirs, stderr=subprocess.PIPE, text=True) as launcher:
            theirs.close()
            with suppress(ConnectionError):
                ours.sendall(steps)
            ours.close()
            _, said = launcher.communicate(timeout=60)
        return subprocess.CompletedProcess(argv, launcher.returncode, "", said)

    assert prepare().returncode == 0
    counted = calls(node)
    assert counted["move_mount"] >= 7
    for name, number in in_turn(counted):
        assert program(node, "unsetupRoot").returncode == 0
        done = prepare("-e", f"inject={name}:error=EIO:when={number}")
        assert done.returncode == 0 or (done.returncode == 1 and done.stderr.startswith("shifter: ")), (
            name,
            number,
            done,
        )
    assert program(node, "unsetupRoot").returncode == 0
    node.drop_holds()
    assert node.left() == []
