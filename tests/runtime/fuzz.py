"""A fuzzer for what the launcher parses: plans, cached plans, udiRoot.conf, options, the caller's environment.

`python -m tests.runtime.fuzz [seconds] [directory]` runs libFuzzer (coverage-guided) for so long, from the seeds below and what
it found before in the directory; an input that breaks something is shown, and kept there. fuzz_launcher.c says what an input is.
"""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

from runtime import __version__, plan
from tests.requires import need

HERE = Path(__file__).parent
SANITIZERS = ("address,undefined", "memory")
"""Two builds, because clang cannot have both in one: memory is for what is read before it was written."""
NOBODY = 65534

STEPS: tuple[plan.Step, ...] = (
    plan.Image("/images/a.squashfs", "squashfs", "/loop/holds", "keep"), plan.Sync(), plan.Begin("slave", "/udi", "namespace"),
    plan.Proc("/proc", "hidepid=2,gid=5"), plan.Bind("root", "host", "/sys", "/sys", "rec"),
    plan.Bind("user", "host", "/a", "/b", "nodev,ro"), plan.Bind("root", "image", "/usr", "/usr", "slave,noexec"),
    plan.Tmpfs("/etc", "755"), plan.MakeDir("/etc/new", "1777"), plan.Write("/etc/passwd", "644", "me:x:1:1::/:/bin/sh\n"),
    plan.Copy("/etc/hosts", "/etc/hosts"), plan.Symlink("/etc/mtab", "/proc/mounts"), plan.Overlay("/etc"),
    plan.Remount("/etc", "ro,nodev"), plan.NodeDisk("/tmp", "1048576", "/sbin/mkfs.xfs", "/disk"), plan.RootHook("/hook"),
    plan.Pivot(), plan.Drop(), plan.EnvClear(("A*", "PATH")), plan.EnvSet("B", "2"), plan.EnvDefault("C", "3"),
    plan.EnvUnset("[A-C]*"), plan.EnvPrepend("PATH", "/x"), plan.EnvAppend("PATH", "/y"), plan.Chdir(""), plan.UserHook("/hook"),
    plan.Say("text"), plan.Exec("append", ("/bin/true", "")),
)  # fmt: skip
SHORT: tuple[tuple[plan.Step, ...], ...] = (
    (plan.Join("/udi", "0:0"), plan.Drop(), plan.Exec("none", ("/bin/true",))),
    (plan.Local("/home/me/tree"), plan.Begin("private", "/udi", "host"), plan.Tmpfs("/", "755", "ramfs", "1m")),
    (plan.Fuse("/usr/bin/squashfuse_ll", "/images/a.squashfs", "/udi"), plan.Chdir("/work", "required")),
    (plan.Image("/images/a.erofs", "erofs", "/loop/holds", "share"), plan.Refuse("no")),
    (plan.Image("/images/a.xfs", "xfs", "/loop/holds"), plan.Begin("slave", "/udi"), plan.Proc("/proc", "a=1," * 20)),
    (plan.Drop(), plan.EnvPrepend("A" * 4096, "/x"), plan.EnvUnset("A*")),
)
REQUEST = [plan.encode_record(["user", "1"])]
CACHED = [
    plan.encode_record(["plan", __version__, "9999999999"]), *REQUEST,
    plan.encode_record(["needs", "/etc/passwd", "0:0:7:0.000000000:0.000000000"]), *map(plan.encode, SHORT[0]),
]  # fmt: skip
ENVIRONMENT = b"A=1\0PATH=/bin\0\0s\0B\0002\0d\0C\0003\0p\0PATH\0/x\0a\0PATH\0/y\0u\0[A-C]*\0x\0c\0A*\0PATH\0"
SEEDS: dict[str, list[bytes]] = {
    "plan": [b"".join(map(plan.encode, STEPS)), *(b"".join(map(plan.encode, steps)) for steps in SHORT)],
    "cache": [b"".join(CACHED), b"".join([*CACHED[:2], *map(plan.encode, STEPS)])],
    "config": [b"# comment\nimagePath=/images\nloopMount = /var/loop\\\n\nloopMountX=\nloopMount=relative\n"],
    "options": [
        b"shifter\0--image=id:a\0-V\0/a:/b\0--volume=/c:/d:ro\0-eA=1\0--env-file\0f\0--clearenv\0-vnE\0-w/x\0cmd\0--x\0",
        b"shifter\0--gp=0,1\0--entrypoint\0--unset-env=A*\0-m\0mpi\0--keep-env\0B\0--userns\0--json\0--dry-run\0--\0c\0",
    ],
    "caller": [b"PMI_FD=12\0SHIFTER_IMAGE=id:a\0SLURM_SPANK_SHIFTER_VOLUME=/a:/b\0MUNGE_SOCKET=/run/m\0A=1\0", b"PMI_FD=3\0"],
    "environment": [ENVIRONMENT, b"A" * 4096 + b"=1\0" + b"A" * 4095 + b"=1\0" + ENVIRONMENT],
}  # fmt: skip
WORDS = sorted(
    {*plan.VERBS, "root", "user", "host", "image", "new", "rec", "ro", "nodev", "noexec", "slave", "private", "shared", "keep",
     "share", "ramfs", "append", "none", "squashfs", "erofs", "xfs", "loopMount", "PMI_FD=", "SHIFTER", "needs", "/", ",", ":"}
)  # fmt: skip


def build(directory: Path, sanitizers: str) -> Path:
    """The fuzzer with these sanitizers."""
    program = directory / f"fuzz-{sanitizers.partition(',')[0]}"
    argv = ["clang", "-g", "-O1", "-D_GNU_SOURCE", f"-fsanitize=fuzzer,{sanitizers}", "-fno-sanitize-recover=all"]
    done = subprocess.run(
        [*argv, "-o", str(program), str(HERE / "fuzz_launcher.c")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return program


def prepare(directory: Path) -> None:
    """The seeds of each target below a directory, and the words of the dictionary."""
    directory.chmod(0o755)
    for target, seeds in SEEDS.items():
        place = directory / target
        place.mkdir(exist_ok=True)
        for number, seed in enumerate(seeds):
            for switches in range(4):
                tape = Random(switches).randbytes(64) if switches & 2 else b""
                (place / f"seed-{number}-{switches}").write_bytes(bytes((switches, len(tape))) + tape + seed)
        if os.geteuid() == 0:
            os.chown(place, NOBODY, NOBODY)
    (directory / "words").write_text("".join(f'"{word}"\n' for word in WORDS))


def run(program: Path, target: str, directory: Path, *options: str) -> "subprocess.CompletedProcess[str]":
    """Fuzz one target, as nobody: what the fuzzer's kernel forgot to answer for has no power. New inputs go to the directory."""
    place = directory / target
    who: dict[str, Any] = {"user": NOBODY, "group": NOBODY, "extra_groups": []} if os.geteuid() == 0 else {}
    argv = [
        str(program),
        f"-dict={directory}/words",
        f"-artifact_prefix={place}/",
        "-max_len=12000",
        *options,
        str(place),
    ]
    environment = {
        "FUZZ_TARGET": target,
        "PATH": "/usr/bin:/bin",
        "ASAN_OPTIONS": "quarantine_size_mb=16:detect_leaks=0",
    }
    done = subprocess.run(argv, **who, cwd=directory, env=environment, capture_output=True, check=False)
    out, err = (stream.decode(errors="replace") for stream in (done.stdout, done.stderr))
    return subprocess.CompletedProcess(argv, done.returncode, out, err)


def broken(directory: Path, target: str, done: "subprocess.CompletedProcess[str]") -> str:
    """What a run found, with the input that shows it; "" when nothing."""
    if done.returncode == 0:
        return ""
    inputs = [
        path.read_bytes()
        for path in (directory / target).iterdir()
        if path.name.startswith(("crash-", "leak-", "timeout-", "oom-"))
    ]
    return f"{target}: {done.stderr[-6000:]}\ninput: {inputs!r}"


def main(words: Sequence[str]) -> int:
    """For so many seconds, all targets and sanitizers in turn."""
    need("clang")
    seconds = int(words[0]) if words else 60
    directory = Path(words[1] if len(words) > 1 else "/tmp/shifter-fuzz")
    directory.mkdir(parents=True, exist_ok=True)
    prepare(directory)
    each, status = max(1, seconds // (len(SEEDS) * len(SANITIZERS))), 0
    for sanitizers in SANITIZERS:
        program = build(directory, sanitizers)
        for target in SEEDS:
            done = run(program, target, directory, f"-max_total_time={each}", "-print_final_stats=1")
            last = [line for line in done.stderr.splitlines() if " cov: " in line][-1:]
            print(sanitizers, target, *last, broken(directory, target, done), flush=True)
            status |= done.returncode
    return min(status, 1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
