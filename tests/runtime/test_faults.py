"""Every system call of a start fails once: the start says which one, or does without; nothing runs half-prepared or is left.

strace injects the failures into the launcher itself (not into the planner or the command), once with a plan to compute and an
image to mount, once with both at hand.
"""

import re
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.requires import requires, requires_root
from tests.runtime import node as nodes
from tests.runtime.node import Node

pytestmark = [requires_root, requires("mksquashfs", "busybox", "gcc", "strace")]

HARMLESS = {  # of the C library before main, or that cannot fail in a way that matters
    "execve", "brk", "access", "arch_prctl", "set_tid_address", "set_robust_list", "rseq", "readlink", "getrandom", "mprotect",
    "close", "exit_group", "rt_sigaction", "rt_sigprocmask", "mmap", "munmap", "geteuid", "setfsuid", "setfsgid", "umask",
    "prlimit64", "fcntl", "setuid", "wait4",
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
    """How often the launcher makes each system call before it becomes the command."""
    lines = (node.directory / "trace").read_text().splitlines()
    ends = [number for number, line in enumerate(lines) if line.startswith("execve(")]
    names = (re.match(r"(\w+)\(", line) for line in lines[: ends[1]])
    return Counter(found[1] for found in names if found and found[1] not in HARMLESS)


@pytest.mark.parametrize("ready", [True, False], ids=["plan and image at hand", "nothing at hand"])
def test_each_system_call_fails_in_turn(node: Node, ready: bool) -> None:
    forget(node)
    if ready:
        assert traced(node).returncode == 0
    assert traced(node).stdout == "NAME=tiny\n"
    counted = calls(node)
    assert counted["move_mount"] >= 7
    for name, count in counted.items():
        # each way of failing is of its own; the many that drop one capability each are alike
        for number in [1, 2, count // 2, count] if count > 12 else range(1, count + 1):
            if not ready:
                forget(node)
            elif not list((node.directory / "loopMount/plans").glob("*")):
                assert traced(node).returncode == 0
            done = traced(node, "-e", f"inject={name}:error=EIO:when={max(number, 1)}")
            where = f"{name} number {number} of {count}: {done}"
            if done.returncode == 0:
                assert done.stdout == "NAME=tiny\n", where
            else:
                assert (done.returncode, done.stdout) == (1, ""), where
                assert done.stderr.startswith("shifter: "), where
                assert "Traceback" not in done.stderr, where
    node.drop_holds()
    assert node.left() == []
    assert not list(Path(node.directory / "udiMount").iterdir())
