"""An unprivileged user who attacks: paths that change under the launcher, images that point out, limits, signals, descriptors.

Each test tries to get what the user may not have, or to leave something behind. What the container itself must deny (mount,
mknod, setuid) is tried in it.
"""

import ctypes
import os
import resource
import signal
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.requires import requires, requires_root
from tests.runtime import node as nodes
from tests.runtime.node import NOBODY, Node, only_line

pytestmark = [requires_root, requires("mksquashfs", "busybox", "gcc")]
SCALE = float(os.environ.get("SHIFTER_TEST_SCALE", "1"))


@pytest.fixture(scope="module")
def made() -> Iterator[Node]:
    with nodes.node() as made:
        made.image("tiny")
        yield made


@pytest.fixture
def node(made: Node) -> Iterator[Node]:
    yield made
    made.drop_holds()
    assert made.left() == []


def run(node: Node, words: list[str], **how: object) -> subprocess.CompletedProcess[str]:
    options: dict[str, object] = {
        "user": NOBODY, "group": NOBODY, "extra_groups": [], "cwd": "/", "capture_output": True, "text": True,
        "env": {"PATH": "/bin"}, "timeout": 60, **how,
    }  # fmt: skip
    return subprocess.run([str(node.shifter), *words], **options)  # type: ignore[call-overload,no-any-return]


# what a volume's source can be made to mean


def test_a_source_that_is_swapped_while_it_is_checked_never_shows_what_is_not_the_users(node: Node) -> None:
    place = nodes.public(node.directory / "race")
    os.chown(place, NOBODY, NOBODY)
    (place / "mine").mkdir()
    secret = node.directory / "secret"
    secret.mkdir(mode=0o700)
    (secret / "key").write_text("root's\n")
    swap, mine, bad = place / "swap", place / "mine", place / "bad"
    os.symlink(mine, swap)
    over = threading.Event()

    def swapping() -> None:
        while not over.is_set():
            os.symlink(secret, bad)
            os.rename(bad, swap)
            os.symlink(mine, bad)
            os.rename(bad, swap)

    thread = threading.Thread(target=swapping)
    thread.start()
    try:
        for number in range(int(24 * SCALE)):
            done = node.start("--image=id:tiny", "-V", f"{swap}:/v{number % 2}", "cat", f"/v{number % 2}/key")
            assert "root's" not in done.stdout
    finally:
        over.set()
        thread.join()


@pytest.mark.parametrize(
    "source",
    [
        "/proc/self/fd/3",
        "/proc/self/fd/6",
        "/proc/self/root",
        "/proc/self/cwd",
        "/proc/1/root",
        "/proc/1/cwd",
        "/proc/1/fd/0",
    ],
)
def test_magic_links_are_no_way_to_the_launchers_own_descriptors(node: Node, source: str) -> None:
    node.start("--image=id:tiny", "-V", "/tmp:/mnt", "true")
    assert node.start("--image=id:tiny", "-V", f"{source}:/mnt", "ls", "/mnt").returncode == 1


def test_what_the_node_keeps_cannot_be_a_source(node: Node) -> None:
    node.image("private", public=False, uids=[1])
    assert node.start("--image=id:private", "true", uid=1).returncode == 0
    for place in ("holds", "plans"):
        said = only_line(node.start("--image=id:tiny", "-V", f"{node.directory}/loopMount/{place}:/mnt", "true"))
        assert "you may not read it" in said
    hold = next(path for path in (node.directory / "loopMount/holds").iterdir() if path.is_dir())
    assert "Permission denied" in only_line(node.start("--image=id:tiny", "-V", f"{hold}:/mnt", "true"))


def test_a_target_tells_nothing_of_what_the_user_cannot_see(node: Node) -> None:
    closed = node.directory / "closed"
    (closed / "inner").mkdir(parents=True)
    closed.chmod(0o700)
    said = [
        only_line(node.start("--image=id:tiny", "-V", f"/usr:{closed}/{name}", "true")) for name in ("inner", "absent")
    ]
    assert said[0].replace("inner", "absent") == said[1]


def test_a_hard_link_to_a_private_image_is_no_image(node: Node) -> None:
    node.image("private", public=False, uids=[1])
    file = node.directory / "images/private.squashfs"
    assert "no image" in only_line(node.start("--image=id:private", "true"))
    os.link(file, node.directory / "images/mine.squashfs")
    assert "no image" in only_line(node.start("--image=id:mine", "true"))
    for name in ("../images/private", "private.squashfs", ".", "private/../private", "%2e%2e/private"):
        assert node.start(f"--image=id:{name}", "true").returncode == 1


# what an image can be made to mean


def test_links_in_an_image_lead_nowhere_outside_it(node: Node) -> None:
    secret = node.directory / "host-secret"
    secret.write_text("host\n")
    secret.chmod(0o600)
    node.image("links", {"leak": f"->{secret}", "up": "->../../../..", "proc-link": "->/proc/1/root", "out": "->/srv"})
    done = node.start("--image=id:links", "sh", "-c", f"cat /leak /up{secret}; ls /proc-link/; true")
    assert done.stdout == ""
    shared = nodes.public(node.directory / "shared")
    done = node.start("--image=id:links", "-V", f"{shared}:/out/made", "ls", "/srv")
    assert done.stdout == "made\n"
    assert not Path("/srv/made").exists()


def test_an_image_with_links_in_the_systems_places_cannot_redirect_what_root_writes(node: Node) -> None:
    victim = nodes.public(node.directory / "victim")
    for name in ("etc", "var", "opt", "tmp"):
        tree = nodes.public(node.directory / f"tree-{name}")
        for place in ("bin", "proc", "sys", "dev", "tmp", "var/tmp", "etc", "opt"):
            if not place.startswith(name):
                (tree / place).mkdir(parents=True, exist_ok=True)
        (tree / name).symlink_to(victim)
        (tree / "bin/busybox").write_bytes(Path("/bin/busybox").read_bytes())
        (tree / "bin/busybox").chmod(0o755)
        node.pack(tree, f"link-{name}")
        node.start(f"--image=id:link-{name}", "-V", "/usr:/opt/x/y", "/bin/busybox", "true")
    assert list(victim.iterdir()) == []


def test_setuid_programs_capabilities_and_devices_of_an_image_have_no_power(node: Node) -> None:
    tree = nodes.public(node.directory / "tree-setuid")
    for place in ("bin", "proc", "sys", "dev", "tmp", "var/tmp", "etc"):
        (tree / place).mkdir(parents=True)
    for name, mode in (("busybox", 0o755), ("su", 0o4755), ("id", 0o6755)):
        (tree / "bin" / name).write_bytes(Path("/bin/busybox").read_bytes())
        (tree / "bin" / name).chmod(mode)
    os.setxattr(tree / "bin/busybox", "security.capability", bytes.fromhex("0100000202200000000000000000000000000000"))
    os.mknod(tree / "null", 0o666 | 0o020000, os.makedev(1, 3))
    os.mknod(tree / "disk", 0o666 | 0o060000, os.stat("/").st_dev)
    node.pack(tree, "powers")
    done = node.start(
        "--image=id:powers", "/bin/busybox", "sh", "-c",
        "busybox grep -E '^(Cap|NoNew)' /proc/self/status; /bin/id -u; busybox cat /null; busybox head -c 1 /disk; true",
    )  # fmt: skip
    caps = [line for line in done.stdout.splitlines() if line.startswith("Cap")]
    assert caps
    assert all(line.endswith("\t" + "0" * 16) for line in caps)
    assert f"\n{NOBODY}\n" in done.stdout
    assert "/null" in done.stderr
    assert "/disk" in done.stderr


def test_an_image_cannot_forge_the_prepared_environment(node: Node) -> None:
    node.image("forged", {"var/shifterConfig.json": '{"identifier":"other","user":"nobody","volMap":"","modules":""}'})
    assert node.start("--image=id:forged", "--plan", "true").stdout.split()[1] == "image"


# what the container denies


def test_what_a_container_may_do(node: Node) -> None:
    done = node.start(
        "--image=id:tiny", "sh", "-c",
        "mount -t tmpfs none /tmp; mknod /tmp/shifter-attack c 1 3; mount -o remount,rw /; chmod 4755 /bin/busybox; true",
    )  # fmt: skip
    assert done.stdout == ""
    assert not Path("/tmp/shifter-attack").exists()
    lines = done.stderr.splitlines()
    assert len(lines) == 4, lines
    assert all(
        "permission denied" in line.lower() or "not permitted" in line.lower() or "read-only" in line.lower()
        for line in lines
    )


def test_nothing_of_the_host_is_mounted_but_what_the_plan_says(node: Node) -> None:
    words = ["--image=id:tiny", "-V", "/usr:/data/usr:ro"]
    plan = [line.split() for line in node.start(*words, "--plan", "true").stdout.splitlines()]
    targets = {field[7:] for step in plan for field in step if field.startswith("target=")} | {"/"}
    recursive = {f[7:] for step in plan if "flags=rec" in step for f in step if f.startswith("target=")}
    mounts = [line.split() for line in node.start(*words, "cat", "/proc/self/mountinfo").stdout.splitlines()]
    for fields in mounts:
        place, options = fields[4], fields[5].split(",")
        assert place in targets or any(place.startswith(f"{top}/") for top in recursive), place
        assert "nosuid" in options, fields
    readonly = {fields[4] for fields in mounts if "ro" in fields[5].split(",")}
    assert {"/data/usr", "/bin", "/etc"} <= readonly


# the starter itself


def test_the_starter_cannot_be_traced(node: Node) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    process = subprocess.Popen(
        [str(node.shifter), "--image=docker:never:1", "true"],
        user=NOBODY, group=NOBODY, extra_groups=[], stderr=subprocess.DEVNULL, cwd="/",
    )  # fmt: skip
    del libc
    script = (
        f"import ctypes;l=ctypes.CDLL(None,use_errno=True);print(l.ptrace(16,{process.pid},0,0),ctypes.get_errno())"
    )
    traced = subprocess.run(
        ["/usr/bin/python3", "-c", script],
        user=NOBODY,
        group=NOBODY,
        capture_output=True,
        text=True,
        check=False,
        cwd="/",
    )
    process.wait()
    assert traced.stdout.split()[0] == "-1"


def test_a_traced_start_has_no_privilege(node: Node) -> None:
    node.drop_holds()
    # not -f: strace would stop the program that shows the image, and wait for it
    done = subprocess.run(
        ["strace", "-o", "/dev/null", str(node.shifter), "--image=id:tiny", "cat", "/proc/self/uid_map"],
        user=NOBODY, group=NOBODY, extra_groups=[], capture_output=True, text=True, check=False, cwd="/", timeout=60,
    )  # fmt: skip
    assert done.returncode == 1 or done.stdout.split() == [
        str(NOBODY),
        str(NOBODY),
        "1",
    ]  # a namespace of the user's own
    assert [hold for hold in (node.directory / "loopMount/holds").glob("*") if hold.is_dir()] == []


@pytest.mark.parametrize(
    "variable",
    ["LD_PRELOAD=/tmp/x.so", "LD_AUDIT=/tmp/x.so", "GLIBC_TUNABLES=glibc.malloc.check=3", "PYTHONPATH=/tmp", "PYTHONHOME=/tmp",
     "PYTHONSTARTUP=/tmp/x", "POSIXLY_CORRECT=1", "LC_ALL=../../x", "PATH=.", "IFS=/"],
)  # fmt: skip
def test_the_environment_has_no_say_in_a_start(node: Node, variable: str) -> None:
    name, _, value = variable.partition("=")
    done = run(node, ["--image=id:tiny", "/bin/cat", "/etc/os-release"], env={name: value})
    assert (done.stdout, done.stderr) == ("NAME=tiny\n", "")


def test_huge_environments_and_command_lines(node: Node) -> None:
    large = {f"V{number}": "x" * 100_000 for number in range(15)}
    done = run(
        node,
        ["--image=id:tiny", "sh", "-c", "echo ${#V3} $#", "sh", *["w" * 100] * 5000],
        env={**large, "PATH": "/bin"},
    )
    assert done.stdout == "100000 5000\n"
    said = only_line(run(node, ["--image=id:tiny", *["--env=A=" + "x" * 120_000] * 12, "true"]))
    assert "too long" in said
    said = only_line(run(node, ["--image=id:tiny", "true"], env={"SHIFTER_VOLUME": "x" * 130_000}))
    assert "volume" in said


@pytest.mark.parametrize(
    "words", [[], ["-"], ["--"], ["--image"], ["--image=\x01\x1b[2J"], ["--image=" + "a" * 5000], ["-i", ""]]
)
def test_odd_command_lines_end_in_one_line(node: Node, words: list[str]) -> None:
    said = only_line(run(node, words))
    assert "\x1b" not in said
    assert len(said) < 4096


def test_no_words_at_all(node: Node) -> None:
    script = (
        f"import os,ctypes;os.setgroups([]);os.setgid({NOBODY});os.setuid({NOBODY});"
        f"ctypes.CDLL(None).execve({os.fsencode(node.shifter)!r},(ctypes.c_char_p*1)(),(ctypes.c_char_p*1)())"
    )
    done = subprocess.run(["/usr/bin/python3", "-c", script], capture_output=True, text=True, check=False, cwd="/")
    assert done.returncode == 1
    assert done.stderr.startswith("shifter: ")


@pytest.mark.parametrize(
    ("limit", "value"),
    [
        (resource.RLIMIT_NOFILE, 0), (resource.RLIMIT_NOFILE, 4), (resource.RLIMIT_FSIZE, 0), (resource.RLIMIT_NPROC, 1),
        (resource.RLIMIT_AS, 16 << 20), (resource.RLIMIT_STACK, 64 << 10), (resource.RLIMIT_CORE, resource.RLIM_INFINITY),
    ],
)  # fmt: skip
def test_a_start_lives_with_the_callers_limits_or_names_what_it_could_not_do(
    node: Node, limit: int, value: int
) -> None:
    for plan in (node.directory / "loopMount/plans").glob("*"):
        plan.unlink()

    def restrict() -> None:
        resource.setrlimit(limit, (value, value))

    done = run(node, ["--image=id:tiny", "sh", "-c", "ulimit -n; ulimit -f"], preexec_fn=restrict)
    if done.returncode == 0:
        wanted = {resource.RLIMIT_NOFILE: 0, resource.RLIMIT_FSIZE: 1}.get(limit)
        assert wanted is None or done.stdout.splitlines()[wanted] == str(value), done
    elif done.returncode == 1:
        assert done.stderr.splitlines()[-1].startswith("shifter: "), done
    else:
        assert limit in (resource.RLIMIT_AS, resource.RLIMIT_STACK, resource.RLIMIT_NPROC), (
            done
        )  # what the command itself cannot live with


@pytest.mark.parametrize("files", [0, 2])
def test_a_start_that_may_open_nothing_names_the_limit(node: Node, files: int) -> None:
    done = run(
        node,
        ["--image=id:tiny", "true"],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (files, files)),
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "shifter: cannot start: too few files may be open: raise the limit (ulimit -n)\n"


@pytest.mark.parametrize("closed", [[0], [1], [2], [0, 1, 2]])
def test_closed_standard_descriptors_are_not_ours_to_fill(node: Node, closed: list[int]) -> None:
    def close() -> None:
        for number in closed:
            os.close(number)

    done = subprocess.run(
        [str(node.shifter), "--image=id:tiny", "sh", "-c", "cat /etc/os-release; cat; exit 3"],
        user=NOBODY, group=NOBODY, extra_groups=[], cwd="/", preexec_fn=close, stdin=subprocess.DEVNULL,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 3
    assert "udiMount" not in done.stdout


def test_an_odd_umask_changes_nothing_of_the_start_and_reaches_the_command(node: Node) -> None:
    done = run(node, ["--image=id:tiny", "sh", "-c", "umask; cat /etc/passwd"], umask=0o777)
    assert done.stdout.startswith("0777\nnobody:")
    plans = list((node.directory / "loopMount/plans").glob("*"))
    assert plans
    assert all(plan.stat().st_mode & 0o777 == 0o600 for plan in plans)


def test_ignored_children_and_blocked_signals_do_not_hang_a_start(node: Node) -> None:
    def odd() -> None:
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_BLOCK, set(signal.Signals))

    for plan in (node.directory / "loopMount/plans").glob("*"):
        plan.unlink()
    assert run(node, ["--image=id:tiny", "echo", "through"], preexec_fn=odd).stdout == "through\n"


def test_signals_at_any_moment_leave_nothing(node: Node) -> None:
    for number in range(int(24 * SCALE)):
        process = subprocess.Popen(
            [str(node.shifter), "--image=id:tiny", "-V", "/tmp:/new/at/depth", "cat"],
            user=NOBODY, group=NOBODY, extra_groups=[], stdin=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd="/",
        )  # fmt: skip
        try:
            process.wait(number / 500)
        except subprocess.TimeoutExpired:
            process.send_signal([signal.SIGTERM, signal.SIGINT, signal.SIGKILL, signal.SIGHUP][number % 4])
        process.communicate()
    node.drop_holds()
    assert node.left() == []


def test_a_working_directory_that_is_gone(node: Node) -> None:
    gone = nodes.public(node.directory / "gone")
    script = f"cd {gone} && rmdir {gone} && exec {node.shifter} --image=id:tiny pwd"
    done = subprocess.run(["sh", "-c", script], user=NOBODY, group=NOBODY, capture_output=True, text=True, check=False)
    del done
    os.makedirs(gone, exist_ok=True)
    os.chown(node.directory / "gone", NOBODY, NOBODY)
    inner = nodes.public(gone / "inner")
    script = f"cd {inner} && rmdir {inner} && exec {node.shifter} --image=id:tiny pwd"
    done = subprocess.run(
        ["sh", "-c", script], user=NOBODY, group=NOBODY, extra_groups=[], capture_output=True, text=True, check=False
    )
    assert done.stdout == "/\n"
    assert "the command starts in /" in done.stderr


def test_no_kernel_module_is_ever_loaded_by_us() -> None:
    sources = "".join(
        path.read_text()
        for path in (Path(__file__).parents[2] / "runtime").rglob("*.[cp]*")
        if path.suffix in (".c", ".py")
    )
    for word in ("init_module", "finit_module", "/sbin/modprobe", 'insmod"'):
        assert word not in sources
