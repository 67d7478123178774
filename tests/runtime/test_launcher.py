"""The launcher under sanitizers, and what it is built like; test_fuzz.py has its parsers, test_valgrind.py looks for leaks."""

import re
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from runtime import plan
from runtime.install import FLAGS, HOSTS, LAUNCHER, Libc, c_library, compile_launcher, real_interpreter
from tests.requires import requires, requires_root
from tests.runtime import node as nodes
from tests.runtime.node import Node

SANITIZE = ("-g", "-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-D_GNU_SOURCE")


@pytest.fixture(scope="module")
def node() -> Iterator[Node]:
    with nodes.node() as made:
        made.image("tiny")
        yield made
        made.drop_holds()


@requires_root
@requires("gcc", "mksquashfs", "busybox")
def test_starts_under_sanitizers(node: Node) -> None:
    options = node.directory / "options.c"
    signature = "const char *__asan_default_options(void)"
    options.write_text(signature + ";\n" + signature + ' { return "detect_leaks=0"; }\n')
    defines = [
        f'-DCONFIG_PATH="{node.directory}/udiRoot.conf"', f'-DLIBEXEC_PATH="{node.directory}/libexec/shifter"',
        f'-DPYTHON_PATH="{real_interpreter()}"', '-DVERSION="26.11.0"',
    ]  # fmt: skip
    node.shifter.unlink()
    sources = [str(path) for path in sorted(LAUNCHER.rglob("*.c"))]
    subprocess.run(
        ["gcc", *SANITIZE, *defines, "-static-libasan", "-o", str(node.shifter), *sources, str(options)], check=True
    )
    node.shifter.chmod(0o4755)
    for _ in range(2):
        done = node.start(
            "--image=id:tiny", "-V", "/usr:/new/place", "-e", "A=1", "--unset-env=X*", "cat", "/etc/os-release"
        )
        assert (done.returncode, done.stdout, done.stderr) == (0, "NAME=tiny\n", "")
    assert node.start("--image=id:none", "true").returncode == 1
    prepared = subprocess.run([node.directory / "bin/setupRoot", "-U", "65534", "id", "tiny"], check=False)
    assert prepared.returncode == 0
    assert node.start("--image=id:tiny", "cat", "/etc/os-release").stdout == "NAME=tiny\n"
    assert node.start("--image=id:tiny", "cat", "/etc/os-release").stdout == "NAME=tiny\n"
    subprocess.run([node.directory / "bin/unsetupRoot"], check=True)


@requires("gcc", "readelf", "musl-gcc")
@pytest.mark.parametrize("libc", [c_library(), HOSTS], ids=["musl", "the host's C library"])
def test_the_program_is_static_and_hardened(tmp_path: Path, libc: Libc) -> None:
    program = tmp_path / "shifter"
    compile_launcher(
        program, Path("/etc/shifter/udiRoot.conf"), Path("/opt/shifter/libexec/shifter"), real_interpreter(), libc=libc
    )
    headers = subprocess.run(["readelf", "-Wldh", str(program)], capture_output=True, text=True, check=True).stdout
    assert re.search(r"Type: +DYN", headers)  # it can lie anywhere in memory
    assert "INTERP" not in headers
    assert "GNU_RELRO" in headers
    stack = next(line for line in headers.splitlines() if "GNU_STACK" in line)
    assert "RWE" not in stack
    for flag in ("-Wall", "-Wextra", "-Werror", "-fstack-protector-strong", "-D_FORTIFY_SOURCE=2"):
        assert flag in FLAGS
    refused = subprocess.run([program], capture_output=True, text=True, check=False, user=0)
    assert (refused.returncode, refused.stdout) == (1, "")
    assert refused.stderr.startswith("shifter: running as root")


@requires("gcc", "strace", "musl-gcc")
def test_nothing_of_the_callers_is_read_before_main(tmp_path: Path) -> None:
    """What the host's C library does before main with GLIBC_TUNABLES and the like cannot happen: between exec and the first call
    of ours are three of musl's and entry.S, with any environment."""
    program = tmp_path / "shifter"
    compile_launcher(program, Path("/etc/shifter/udiRoot.conf"), Path("/l"), real_interpreter())
    seen = []
    for environment in ({}, {"GLIBC_TUNABLES": "glibc.malloc.check=3", "LD_DEBUG": "all", "MALLOC_CHECK_": "3"}):
        argv = ["strace", "-qq", "-e", "signal=none", str(program), "--no-such-option"]
        done = subprocess.run(argv, capture_output=True, text=True, check=False, env=environment)
        assert "option --no-such-option is not known" in done.stderr
        calls = re.findall(r"^(\w+)\(", done.stderr, re.MULTILINE)
        seen.append(calls)
        assert calls[: calls.index("getresuid")] == ["execve", "prlimit64", "arch_prctl", "set_tid_address"]
    assert seen[0] == seen[1]


def test_the_verbs_of_both_sides_are_the_same_with_the_same_fields() -> None:
    text = (LAUNCHER / "steps.c").read_text()
    table = re.findall(r'\{"(\w+)", "(root|user)", (\d+), (\w+), ', text)
    found = {(verb, whom): (int(least), most) for verb, whom, least, most in table}
    wanted = {}
    for step in plan.STEPS:
        names = [name for name in step.FIELDS if name != "owner"]
        spread = bool(names) and isinstance(getattr(step, names[-1], None), tuple)
        fields = (len(names) - spread, "FIELD_LIMIT" if spread else str(len(names)))
        for whom in ("root", "user") if "owner" in step.FIELDS else (step.whom,):
            wanted[step.verb, whom] = fields
    assert found == wanted


@requires("gcc")
def test_the_privileged_part_reads_in_one_sitting() -> None:
    """docs/security.md promises it: fewer than 1,200 lines of code that run with privilege, blank lines and comments aside."""
    lines = 0
    for source in LAUNCHER.glob("*.c"):
        argv = ["gcc", "-fpreprocessed", "-dD", "-E", "-P", str(source)]
        code = subprocess.run(argv, capture_output=True, text=True, check=True).stdout
        lines += sum(bool(line.strip()) for line in code.splitlines())
    assert 0 < lines < 1200


@requires_root
@requires("gcc")
def test_a_step_of_a_start_without_privilege_is_refused_with_privilege(node: Node) -> None:
    ours, theirs = socket.socketpair()
    argv = [str(node.directory / "bin/shifter"), "--steps", "65534", "65534", ""]
    with ours, theirs, subprocess.Popen(argv, stdin=theirs, stderr=subprocess.PIPE, text=True) as launcher:
        theirs.close()
        ours.sendall(plan.encode(plan.Fuse("/bin/true", "/images/a.squashfs", str(node.directory / "udiMount"))))
        ours.close()
        _, said = launcher.communicate(timeout=30)
    assert launcher.returncode == 1
    assert "unknown or misplaced step fuse" in said


def test_what_never_runs_with_privilege_makes_no_privileged_call() -> None:
    for source in (LAUNCHER / "user").glob("*.c"):
        assert not re.search(
            r"\b(setresuid|setfsuid|chroot|become_user|as_root|run_as_root|move_mount)\s*\(", source.read_text()
        ), source


def test_the_launcher_runs_no_shell_and_searches_no_path_with_privilege() -> None:
    sources = {path.name: path.read_text() for path in LAUNCHER.rglob("*.c")}
    for name, text in sources.items():
        assert not re.search(r"\b(system|popen|execlp|execvp|getenv|secure_getenv|strcpy|sprintf|gets)\s*\(", text), (
            name
        )
