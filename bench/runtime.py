"""How long a container takes to start, held against `bench/floor.c`: the same mounts and dropped rights, nothing else.

Every start is made by an unprivileged user through the setuid bit, from one small process that spawns and waits, in turn with
the floor program, so that a ratio means the same on a busy machine. Times are milliseconds, lower quartiles.
"""

import atexit
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import cache
from pathlib import Path

from bench import Measured, row
from tests.runtime import node as nodes
from tests.runtime.node import NOBODY, Node

ROUNDS = int(os.environ.get("SHIFTER_BENCH_ROUNDS", "100"))
SPAWN = """
import json, os, sys, time
environment, rounds, together, commands = json.loads(sys.argv[1])
null = [(os.POSIX_SPAWN_OPEN, 1, "/dev/null", os.O_WRONLY, 0)]
out = []
for _ in range(rounds):
    for number, command in enumerate(commands):
        begin = time.perf_counter()
        children = [os.posix_spawn(command[0], command, environment, file_actions=null) for _ in range(together)]
        failed = sum(os.waitpid(child, 0)[1] != 0 for child in children)
        out.append((number, time.perf_counter() - begin, failed))
print(json.dumps(out))
"""
Command = Sequence[str | Path]


def spawn(
    commands: Sequence[Command], rounds: int = ROUNDS, together: int = 1, environment: dict[str, str] | None = None
) -> list[float]:
    """Milliseconds of each command (lower quartile), run in turn as an unprivileged user. Raises RuntimeError when one fails."""
    words = json.dumps(
        [environment or {"PATH": "/bin"}, rounds, together, [[str(word) for word in command] for command in commands]]
    )
    done = subprocess.run(
        ["/usr/bin/python3", "-IS", "-c", SPAWN, words],
        user=NOBODY, group=NOBODY, extra_groups=[], cwd="/", capture_output=True, text=True, check=True,
    )  # fmt: skip
    found: list[tuple[int, float, int]] = json.loads(done.stdout)
    if any(failed for _, _, failed in found):
        raise RuntimeError(f"a start failed: {done.stderr.splitlines()[:1]}")
    times = [sorted(taken for number, taken, _ in found if number == n) for n in range(len(commands))]
    return [taken[len(taken) // 4] * 1000 for taken in times]


@cache
def node() -> Node:
    """The node that all rows use, with a busybox and a Debian-like image in both formats; gone when the process ends."""
    stack = ExitStack()
    made = stack.enter_context(nodes.node())
    atexit.register(stack.close)
    atexit.register(made.drop_holds)
    for name, build in (("busybox", busybox_tree), ("debian", debian_tree)):
        tree = made.directory / name
        build(tree)
        for kind in ("squashfs", "erofs"):
            made.pack(tree, f"{name}.{kind}", kind)
        shutil.rmtree(tree)
    floor = made.directory / "floor"
    subprocess.run(["gcc", "-O2", "-static", "-o", str(floor), str(Path(__file__).parent / "floor.c")], check=True)
    floor.chmod(0o4755)
    return made


def skeleton(tree: Path) -> None:
    for directory in ("bin", "etc", "proc", "sys", "dev", "tmp", "var/tmp", "opt"):
        (tree / directory).mkdir(parents=True)
    tree.chmod(0o755)


def busybox_tree(tree: Path) -> None:
    """One static program."""
    skeleton(tree)
    shutil.copy("/bin/busybox", tree / "bin/busybox")
    for name in ("true", "find", "sh"):
        (tree / "bin" / name).symlink_to("busybox")


def debian_tree(tree: Path) -> None:
    """The host's own coreutils, C library and Python, and 400 files in /etc."""
    skeleton(tree)
    for link in ("lib", "lib64"):
        (tree / link).symlink_to(f"usr/{link}") if Path(f"/{link}").is_symlink() else (tree / link).mkdir()
    for pattern in (
        "bin/true",
        "bin/find",
        "bin/python3.11",
        "lib64/ld-linux-*",
        "lib/x86_64-linux-gnu/ld-*",
        "lib/x86_64-linux-gnu/lib[a-m]*.so*",
    ):
        for source in Path("/usr").glob(pattern):
            target = tree / "usr" / source.relative_to("/usr")
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target, follow_symlinks=False)
    for name in ("libz.so.1", "libpthread.so.0", "libselinux.so.1", "libpcre2-8.so.0"):
        for source in Path("/usr/lib/x86_64-linux-gnu").glob(f"{name}*"):
            shutil.copy2(source, tree / "usr/lib/x86_64-linux-gnu" / source.name, follow_symlinks=False)
    if Path("/usr/lib/python3.11").is_dir():
        shutil.copytree("/usr/lib/python3.11", tree / "usr/lib/python3.11", symlinks=True)
    shutil.copy("/usr/bin/true", tree / "bin/true")
    for number in range(400):
        (tree / f"etc/file-{number}.conf").write_text(f"# {number}\n" * 20)


def start_of(image: str, *command: str) -> Command:
    return [node().shifter, f"--image=id:{image}", *(command or ("/bin/true",))]


def hold_of(image: str) -> Path:
    """Where the node holds the image, which a start has just had made."""
    spawn([start_of(image)], 1)
    number = os.stat(node().directory / "images" / f"{image}.{image.rpartition('.')[2]}").st_ino
    return next(
        path
        for path in (node().directory / "loopMount/holds").iterdir()
        if f"-{number:x}-" in path.name and path.is_dir()
    )


def warm(image: str) -> Measured:
    """Plan cached, image held, against the floor from the same held image."""
    floor = [node().directory / "floor", "held", hold_of(image), node().directory / "udiMount", "/bin/true"]
    ours, least = spawn([start_of(image), floor])
    return Measured(ours, ours / least)


def cold(image: str) -> Measured:
    """Plan cached, nothing held: each start mounts the image itself, against the floor that does the same."""
    kind = image.rpartition(".")[2]
    node().configure(holdLinger="0")
    node().drop_holds()
    file = node().directory / "images" / f"{image}.{kind}"
    floor = [node().directory / "floor", "own", f"{file}:{kind}", node().directory / "udiMount", "/bin/true"]
    try:
        spawn([start_of(image)], 1)
        ours, least = spawn([start_of(image), floor])
    finally:
        node().configure(holdLinger="300")
    return Measured(ours, ours / least)


def rows() -> None:
    """The rows that exist once for each image and format."""
    for image in ("busybox.squashfs", "busybox.erofs", "debian.squashfs", "debian.erofs"):
        for name, measure in (("warm", warm), ("cold", cold)):

            def run(image: str = image, measure: Callable[[str], Measured] = measure) -> Measured:
                return measure(image)

            row(
                f"start.private.{name}.{image}",
                unit="ms",
                goal=1.3,
                against="floor program, same mounts",
                better="less",
            )(run)


rows()


def forget_plans() -> None:
    for plan in (node().directory / "loopMount/plans").glob("*"):
        plan.unlink()


@row("start.private.first", unit="ms", goal=45, better="less")
def first() -> Measured:
    """No plan, no held image: Python plans, the image gets its hold."""
    took = []
    for _ in range(10):
        forget_plans()
        node().drop_holds()
        took += spawn([start_of("busybox.squashfs")], 1)
    return Measured(statistics.median(took))


@row("start.planned", unit="ms", goal=45, better="less")
def planned() -> Measured:
    """No plan kept, but the image is held: what every start by tag costs besides the gateway."""
    node().configure(planCache="0")
    try:
        return Measured(spawn([start_of("busybox.squashfs")], 20)[0])
    finally:
        node().configure(planCache=None)


@row("start.tag", unit="ms", goal=45, better="less")
def by_tag() -> Measured:
    """By tag, so that the gateway is asked each time; on a whole site."""
    from sim.busybox_image import write
    from sim.site import Site

    directory = Path(tempfile.mkdtemp(prefix="shifter-bench-", dir="/tmp"))
    directory.chmod(0o755)
    try:
        with Site.up(directory) as site:
            write(directory / "oci")
            site.push(f"{directory}/oci:latest", "busybox:latest")
            site.run_as(NOBODY, ["shifterimg", "pull", "busybox:latest"]).check_returncode()
            environment = {"PATH": "/bin", "MUNGE_SOCKET": str(site.munge_socket)}
            start = [Path(site.bin) / "shifter", "--image=busybox:latest", "/bin/true"]
            return Measured(spawn([start], 20, environment=environment)[0])
    finally:
        shutil.rmtree(directory)


@row("start.joined", unit="ms", goal=2.0, against="exec of a static program", better="less")
def joined() -> Measured:
    """Into the environment that setupRoot prepared."""
    with Prepared():
        spawn([start_of("busybox.squashfs")], 1)
        ours, least = spawn([start_of("busybox.squashfs"), ["/bin/busybox", "true"]], 2 * ROUNDS)
    return Measured(ours, ours / least)


class Prepared:
    """A prepared environment, taken down after."""

    def __enter__(self) -> None:
        subprocess.run([node().directory / "bin/setupRoot", "-U", str(NOBODY), "id", "busybox.squashfs"], check=True)

    def __exit__(self, *_: object) -> None:
        subprocess.run([node().directory / "bin/unsetupRoot"], check=True)


def prepare_times(rounds: int, before: Callable[[], object]) -> float:
    took = []
    for _ in range(rounds):
        before()
        begin = time.perf_counter()
        with Prepared():
            took.append(time.perf_counter() - begin)
    return statistics.median(took) * 1000


@row("setuproot.first", unit="ms", goal=60, better="less")
def setuproot_first() -> Measured:
    """setupRoot with an image that the node does not hold yet."""
    return Measured(prepare_times(10, lambda: (forget_plans(), node().drop_holds())))


@row("setuproot.warm", unit="ms", goal=15, better="less")
def setuproot_warm() -> Measured:
    """setupRoot again, for a request that it had before."""
    return Measured(prepare_times(20, lambda: None))


@row("start.64.private", unit="ms", goal=120, better="less")
def many_private() -> Measured:
    """64 starts at once, until the last is done."""
    hold_of("busybox.squashfs")
    return Measured(spawn([start_of("busybox.squashfs")], 10, together=64)[0])


@row("start.64.joined", unit="ms", goal=60, better="less")
def many_joined() -> Measured:
    """64 starts at once into a prepared environment, until the last is done."""
    with Prepared():
        spawn([start_of("busybox.squashfs")], 1)
        return Measured(spawn([start_of("busybox.squashfs")], 10, together=64)[0])


def read_row(name: str, command: Sequence[str]) -> None:
    """The same command inside, and in a bare mount of the same image (the held one)."""

    @row(name, unit="ms", goal=1.05, against="bare mount of the same image", better="less")
    def run() -> Measured:
        hold = hold_of("debian.squashfs")
        timer = (
            "import subprocess,sys,time\nt=[]\n"
            "for _ in range(15):\n"
            " b=time.perf_counter();subprocess.run(sys.argv[1:],check=True,stdout=-3);t.append(time.perf_counter()-b)\n"
            "print(min(t))"
        )
        inside = [
            str(word) for word in start_of("debian.squashfs", "/usr/bin/python3.11", "-IS", "-c", timer, *command)
        ]
        ours, bares = [], []
        for _ in range(5):
            outcome = subprocess.run(
                inside, user=NOBODY, group=NOBODY, capture_output=True, text=True, check=True, cwd="/"
            )
            enter = 'mount --bind /dev "$1/dev" && exec /usr/sbin/chroot --userspec=65534:65534 "$@"'  # the timer needs /dev/null
            bare = subprocess.run(
                ["unshare", "-m", "sh", "-c", enter, "sh", str(hold), "/usr/bin/python3.11", "-IS", "-c", timer, *command],
                capture_output=True, text=True, check=True, cwd="/", env={"PATH": "/usr/bin:/bin"},
            )  # fmt: skip
            ours.append(float(outcome.stdout) * 1000)
            bares.append(float(bare.stdout) * 1000)
        return Measured(min(ours), min(ours) / min(bares))


read_row("read.find", ["/usr/bin/find", "/usr", "-xdev"])
read_row(
    "read.import", ["/usr/bin/python3.11", "-IS", "-c", "import asyncio, email, json, unittest, xml.dom, http.server"]
)

if __name__ == "__main__":
    sys.exit("use: python -m bench start.")
