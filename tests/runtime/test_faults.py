"""Every system call of a start fails once: the start says which one, or does without; nothing runs half-prepared or is left.

strace injects the failures into the launcher itself (not into the planner or the command): with a plan to compute and an image to
mount, with both at hand, into an environment that setupRoot prepared, and when setupRoot prepares it. After each failure the node
is as before: its mounts, loop devices, files and processes.
"""

import errno
import os
import re
import socket
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import pytest

from runtime import keep
from runtime.udiroot import read
from tests.requires import requires, requires_root
from tests.runtime import node as nodes
from tests.runtime.node import Node

pytestmark = [requires_root, requires("mksquashfs", "busybox", "gcc", "strace")]

BEFORE_MAIN = "of the C library before main, which ends by a signal where it fails, or goes on"
NEVER = {  # calls that are not made to fail, and why
    "execve": "the start itself",
    "exit_group": "does not return",
    "close": "the kernel closes in any case; an error is of an earlier write, which has been looked at",
    "umask": "cannot fail",
    "brk": "glibc's start ends by a signal without it; malloc takes mmap, which is made to fail",
    "arch_prctl": BEFORE_MAIN, "set_tid_address": BEFORE_MAIN, "poll": BEFORE_MAIN, "set_robust_list": BEFORE_MAIN,
    "rseq": BEFORE_MAIN, "readlink": BEFORE_MAIN, "getrandom": BEFORE_MAIN, "mprotect": BEFORE_MAIN, "access": BEFORE_MAIN,
}  # fmt: skip
ERRORS = {  # what the manual pages have for each call; the rest fails with EIO and ENOMEM
    "openat2": ("EMFILE", "ENOENT", "EACCES"), "openat": ("EMFILE", "EACCES", "EIO"), "open": ("EMFILE", "EPERM", "ENFILE"),
    "fstat": ("EIO", "EOVERFLOW"), "stat": ("ENOENT", "EACCES", "EIO"), "statx": ("EIO", "ENOMEM"),
    "fsopen": ("ENODEV", "EPERM", "EMFILE"), "fsconfig": ("EINVAL", "ENOMEM", "EPERM"), "fsmount": ("EMFILE", "EPERM"),
    "open_tree": ("EMFILE", "EPERM", "ENOMEM"), "move_mount": ("ENOSPC", "EPERM", "ELOOP"), "mount_setattr": ("EPERM", "EINVAL"),
    "mkdirat": ("ENOSPC", "EDQUOT", "EROFS"), "symlinkat": ("ENOSPC", "EROFS"), "write": ("ENOSPC", "EDQUOT", "EIO"),
    "writev": ("ENOSPC", "EDQUOT", "EIO"), "sendfile": ("ENOSPC", "EIO"), "fchown": ("EPERM", "EROFS"),
    "fchmodat": ("EPERM", "EROFS"), "utimensat": ("EROFS", "EACCES"), "unshare": ("EPERM", "ENOSPC", "ENOMEM"),
    "mount": ("EPERM", "EACCES"), "umount2": ("EPERM", "EBUSY"), "pivot_root": ("EPERM", "EBUSY"), "chroot": ("EPERM", "EACCES"),
    "fchdir": ("EACCES", "EIO"), "chdir": ("EACCES", "EIO"), "getcwd": ("ENOENT", "ENOMEM"), "faccessat2": ("EACCES", "EIO"),
    "fork": ("EAGAIN", "ENOMEM"), "clone": ("EAGAIN", "ENOMEM"), "socketpair": ("EMFILE", "ENFILE"),
    "sendto": ("EPIPE", "ENOBUFS"), "sendmsg": ("EPIPE", "ENOBUFS"), "recvfrom": ("EIO", "ENOMEM"), "flock": ("ENOLCK", "EINTR"),
    "ioctl": ("EPERM", "ENOMEM"), "pwrite64": ("ENOSPC", "EIO"), "ftruncate": ("ENOSPC", "EIO"),
    "capset": ("EPERM",), "prctl": ("EPERM",), "setresuid": ("EAGAIN", "EPERM"), "setresgid": ("EPERM",), "setfsuid": ("EPERM",),
    "setfsgid": ("EPERM",),
    "mmap": ("ENOMEM",), "getgroups": ("EPERM",), "rt_sigprocmask": ("EINVAL",), "rt_sigaction": ("EINVAL",),
}  # fmt: skip
WITHOUT = {  # calls, as strace shows them after their number, that a start may do without, and why
    r"openat\(.*udiRoot\.conf|openat\(.*/plans\"|openat\(\d+, \"[0-9a-f]{16}\"| stat\(| read\(": "a plan is computed anew",
    r"fstat\((3, |4, \{st_mode=S_IFREG\|0600)": "the same: of the configuration, the plans and the plan",
    r"openat\(\d+, \"[0-9a-f-]+\.[0-9a-f]+\", .*O_PATH|statx\(|1 open_tree\(": "a hold is sought again, locked",
    r"utimensat\(": "a hold is dropped earlier than it need be",
    r"pread64\(": "another loop device is taken",
    r"ioctl\(\d+, LOOP_CTL_GET_FREE": "asked again: a device may become free",
    r"fstat\(\d+, \{st_mode=S_IFDIR\|0700": "whether there are other holds is looked at another time",
    r"fstat\(\d+, .*st_size=0, ...}, AT_EMPTY_PATH": "glibc's dprintf, of a new file",
    r"fcntl\(\d+, F_[SG]ETFD": "musl's open says it twice; glibc looks whether the standard descriptors are there",
    r"getcwd\(|chdir\(\"/\"": "the command starts in /",
    r"prctl\(PR_SET_DUMPABLE": "cannot fail; a setuid start is not dumpable in any case",
    r"setresuid\(0, 0, 0\) += -1": "it must fail: a look whether privilege is gone",
    r"setfsuid\(-1\)": "the same",
    r"mmap\(.*PROT_NONE|munmap\(|mmap\(NULL, 4096": "malloc has other ways",
    r" rt_sig| prlimit64\(": "cannot fail with these arguments",
    r"wait4\(": "the planner ends with its socket",
}
NAMES = {  # what the message has when the call failed; without an entry, the path of the call, or any
    "getresuid": "getresuid", "getresgid": "who is calling", "close_range": "close_range", "getgroups": "getgroups",
    "setresgid": "setresgid|become the caller", "setresuid": "setresuid|become the caller|hold an image", "prctl": "prctl",
    "capset": "capset", "fstat": r"new file system: fstat|(: |at |image )/\S*: |at \S+ is gone",
    "fchdir": "fchdir|prepared environment: /", "chroot": "prepared environment: /", "setgroups": "environment for uid",
    "setfsuid": "setfsuid", "setfsgid": "setfsuid", "socketpair": "socketpair", "fork": "fork", "clone": "fork", "sendto": "send",
    "sendmsg": "sendmsg", "recvfrom": "recv", "unshare": "unshare", "mmap": "out of memory",
    "pivot_root": "pivot_root", "umount2": "umount2", "rt_sigprocmask": "hold an image", "prlimit64": "too few files",
}  # fmt: skip
CAUSELESS = r"out of memory|act as uid|too few files|is gone: start again"  # what they say includes the cause
MUSL = {
    "EIO": "I/O error", "ENOMEM": "Out of memory", "EMFILE": "No file descriptors available", "ELOOP": "Symbolic link loop",
    "EOVERFLOW": "Value too large for data type", "EDQUOT": "Quota exceeded", "EBUSY": "Resource busy",
}  # fmt: skip
"""What errors are called there, where it differs."""
EXIT_IF_PRIVILEGED = "test $(id -u) = 65534 && grep -q 'NoNewPrivs:.1' /proc/self/status && cat /etc/os-release"


class Call(NamedTuple):
    """One call of a start: its name, which of that name it is, and how strace shows it."""

    name: str
    number: int
    shown: str

    @property
    def kind(self) -> str:
        """Its name, whichever C library makes it."""
        return self.shown.split("(")[0]


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


def traced(node: Node, *options: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        ["strace", "-qq", "-o", str(node.directory / "trace"), *options, "-u", "nobody", str(node.shifter),
         "--image=id:tiny", "-V", "/usr:/data", "sh", "-c", EXIT_IF_PRIVILEGED],
        env={"PATH": "/bin"}, cwd="/", capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip


def plain(line: str) -> str:
    """A line of strace's, with glibc's newfstatat as musl's fstat and stat."""
    return re.sub(r"^newfstatat\(AT_FDCWD, ", "stat(", re.sub(r"^newfstatat\((\d+), \"\"", r"fstat(\1", line))


def calls(node: Node, last: str = "") -> list[Call]:
    """What the launcher calls before it becomes the command, or ends; up to the first call named `last`."""
    counted: Counter[str] = Counter()
    found = []
    for line in (node.directory / "trace").read_text().splitlines():
        match = re.match(r"(\w+)\(", line)
        if match is None:
            continue
        name = match[1]
        counted[name] += 1
        if counted["execve"] > 1 or name == last:
            break
        if name not in NEVER:
            found.append(Call(name, counted[name], plain(line)))
    return found


def faults(made: list[Call]) -> Iterator[tuple[Call, str]]:
    """Each call with an error: the first that looks so with each of its errors, the others with one of them in turn.

    The bounding set is emptied by one call for a capability, and the planner's steps are received by one call each: of those the
    first two, the last and one between.
    """
    seen: Counter[str] = Counter()
    alike = {"prctl": [c for c in made if "CAPBSET" in c.shown], "recvfrom": [c for c in made if c.name == "recvfrom"]}
    skipped = {c for each in alike.values() for c in each if c not in (*each[:2], each[len(each) // 2], each[-1])}
    for call in made:
        if call in skipped:
            continue
        errors = ERRORS.get(call.kind, ("EIO", "ENOMEM"))
        shape = re.sub(r"\d+|/[^\"]*", "", call.shown)[:40]
        seen[shape] += 1
        seen[call.name] += 1
        for error in errors if seen[shape] == 1 else (errors[seen[call.name] % len(errors)],):
            yield call, error


def state(node: Node) -> set[str]:
    """What a node has: mounts, files but for finished plans, processes of this node's programs."""
    mounts = Path("/proc/self/mounts").read_text().splitlines()
    found = {line for line in mounts if str(node.directory) in line}
    for place in ("udiMount", "loopMount", "loopMount/holds", "loopMount/plans"):
        with suppress(FileNotFoundError):
            names = os.listdir(node.directory / place)
            found |= {f"{place}/{name}" for name in names if place != "loopMount/plans" or name.startswith(".")}
    found = {name for name in found if not name.endswith(".lock")}  # an image's: its next start takes it
    wanted = os.fsencode(node.directory)
    for process in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            if wanted in (command := process.read_bytes()):
                found.add(f"process {command!r}")
    return found


def assert_as_before(node: Node, before: set[str], where: object, look: Callable[[Node], set[str]]) -> None:
    """The node is as it was; a mount and its loop device go moments after the last process that had them."""
    limit = time.monotonic() + 20
    while (changed := look(node) ^ before) and time.monotonic() < limit:
        pass
    assert not changed or node.carried_elsewhere(), (where, sorted(changed))


def devices(node: Node) -> set[str]:
    return set(node.leftovers())


def looks(line: str) -> list[str]:
    """A call without what differs from start to start, or when it fails: its name, and what it is given first, and as texts."""
    if re.match(r"getres|getcwd", line):
        return line.split("(")[:1]
    texts = [] if re.match(r"p?read|recv", line) else re.findall(r'"([^"]*)"', line)
    return [re.sub(r"[0-9a-f]*\d[0-9a-f]*", "N", word) for word in (re.split(r"[,)]", line)[0], *texts)]


def met(node: Node, call: Call) -> bool:
    """Whether what failed was this call: others may take a loop device first, or the planner's bytes come in other pieces."""
    injected = [line for line in (node.directory / "trace").read_text().splitlines() if "(INJECTED)" in line]
    return bool(injected) and looks(plain(injected[0])) == looks(call.shown)


def judge(done: "subprocess.CompletedProcess[str]", call: Call, error: str) -> None:
    """The container ran as it should, which this call allows; or did not run at all, and one line says what failed and why."""
    where = (call, error, done.returncode, done.stdout, done.stderr)
    if done.returncode == 0:
        assert done.stdout in ("NAME=tiny\n", ""), where
        assert any(re.search(pattern, f"{call.number} {call.shown}") for pattern in WITHOUT), where
        return
    assert (done.returncode, done.stdout) == (1, ""), where
    lines = done.stderr.splitlines()
    assert len(lines) == 1, where
    assert lines[0].startswith("shifter: "), where
    paths = [path for path in re.findall(r'"([^"]+)"', call.shown) if "/" in path or call.kind.endswith("at")]
    names = [NAMES[call.kind]] if call.kind in NAMES else [*map(re.escape, paths), r"(: |at |image |mount )/\S*: "]
    assert any(re.search(name, lines[0]) for name in names), where
    number = getattr(errno, error)
    assert os.strerror(number) in lines[0] or MUSL.get(error, "?") in lines[0] or re.search(CAUSELESS, lines[0]), where


def fail_in_turn(
    node: Node,
    made: list[Call],
    ready: Callable[[], None],
    run: Callable[..., "subprocess.CompletedProcess[str]"],
    after: Callable[[], None],
) -> None:
    """Each of the calls fails in a start of its own, and the node is as before. `ready` and `after` are each start's frame."""
    ready()
    after()
    before, attached = state(node), devices(node)
    batch: list[tuple[Call, str]] = []
    other: list[Call] = []
    for call, error in faults(made):
        ready()
        done = run("-e", f"inject={call.name}:error={error}:when={call.number}")
        if met(node, call):
            judge(done, call, error)
        else:
            other.append(call)
            assert done.returncode == 0 or done.stderr.startswith("shifter: "), (call, error, done)
        after()
        assert_as_before(node, before, (call, error), state)
        batch.append((call, error))
        if len(batch) == 16 or call == made[-1]:  # each look asks every loop device of the machine
            assert_as_before(node, attached, batch, devices)
            batch.clear()
    assert len(other) < len(made) // 2, other


def nothing() -> None:
    """Nothing has to be done."""


def test_each_system_call_of_a_first_start_fails_in_turn(node: Node) -> None:
    """Up to its own namespace: from there on a start with a plan at hand makes the same calls."""
    for _ in range(2):  # the first makes the directories
        forget(node)
        assert traced(node).stdout == "NAME=tiny\n"
    whole, first = calls(node), calls(node, last="unshare")
    assert {"socketpair", "sendto", "recvfrom", "sendmsg", "ioctl", "flock"} <= {call.name for call in first}
    rest = [call for call in whole if call not in first and call.name in ("recvfrom", "wait4", "munmap")]
    fail_in_turn(node, first + rest, nothing, lambda *options: traced(node, *options), lambda: forget(node))


def planned(node: Node) -> None:
    """There is a plan: one that failed is not used again."""
    if not any(plan.name[0] != "s" for plan in (node.directory / "loopMount/plans").glob("*")):
        assert traced(node).returncode == 0


def test_each_system_call_of_a_start_with_plan_and_image_at_hand_fails_in_turn(node: Node) -> None:
    forget(node)
    assert traced(node).stdout == traced(node).stdout == "NAME=tiny\n"
    made = calls(node)
    assert len([call for call in made if call.name == "move_mount"]) >= 7
    fail_in_turn(node, made, lambda: planned(node), lambda *options: traced(node, *options), nothing)
    node.drop_holds()
    assert node.left() == []


PREPARE = ("-U", "65534", "-G", "65534", "-v", "/usr:/data", "id", "tiny")


def program(node: Node, name: str, *words: str) -> None:
    subprocess.run([str(node.directory / "bin" / name), *words], check=True)


def test_each_system_call_of_a_join_fails_in_turn(node: Node) -> None:
    forget(node)
    program(node, "setupRoot", *PREPARE)
    assert traced(node).stdout == traced(node).stdout == "NAME=tiny\n"
    made = calls(node)
    assert [call.name for call in made if call.name in ("chroot", "move_mount")] == ["chroot"]
    fail_in_turn(node, made, lambda: planned(node), lambda *options: traced(node, *options), nothing)
    program(node, "unsetupRoot")
    node.drop_holds()
    assert node.left() == []


def test_each_system_call_of_a_set_up_fails_in_turn(node: Node) -> None:
    forget(node)
    program(node, "setupRoot", *PREPARE)
    program(node, "unsetupRoot")
    kept = keep.read_setup(read(str(node.directory / "udiRoot.conf")), ["setup", *PREPARE])
    assert kept is not None
    _, who, steps = kept

    def prepare(*options: str) -> "subprocess.CompletedProcess[str]":
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
    made = calls(node)
    assert len([call for call in made if call.name == "move_mount"]) >= 7
    program(node, "unsetupRoot")
    fail_in_turn(node, made, nothing, prepare, lambda: program(node, "unsetupRoot"))
    node.drop_holds()
    assert node.left() == []
