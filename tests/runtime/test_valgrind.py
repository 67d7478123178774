"""Whole starts of the launcher under memcheck: private and joined, planned and from the cache, refused, and set up by root.

valgrind cannot run a setuid program: here root starts it as one is started, with a user's real and root's effective id. Up to
3.19 valgrind answers the new calls for mounts itself, with ENOSYS: valgrind_calls.c has a program that it does not follow make
them, so all of a start's own code runs, and real mounts are made.

This stands for LeakSanitizer too, which looks where a program returns from main or calls exit: the launcher ends by exec or
_exit. What is lost is looked for where a start ends in _exit; where the command takes its place, all memory goes with it.
"""

import os
import re
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from runtime import keep
from runtime.install import LAUNCHER, real_interpreter
from runtime.udiroot import read
from tests.requires import requires, requires_root
from tests.runtime import node as nodes
from tests.runtime.node import NOBODY, Node

pytestmark = [requires_root, requires("gcc", "valgrind", "mksquashfs", "busybox")]
CALLS = Path(__file__).parent / "valgrind_calls.c"
VALGRIND = "/usr/bin/valgrind.bin"
"""The program behind Debian's script: a shell gives up an effective id that is not the real one."""
SETTINGS = ("-e", "A=1", "--env=A=2", "--unset-env=X*")
LOOK = "cat /etc/os-release; echo $A; echo /proc/self/fd/*"
HELD = {  # blocks that nothing points to at the end, and why they are not given back: exec or exit does, moments later
    "planner_request": "the texts of the caller's ids, needed until the request is made, once",
    "planner_start": "the record that names the cached plan, sent once",
    "cache_open": "the text of udiRoot.conf, read once; the fields of the last record that was judged",
    "put": "a variable's old text, where two operations set it",
    "command_run": "the command's words, the command's own until it is run",
}

ERROR = r"\S.*(uninitialised|Invalid|overlap|Mismatched|unaddressable|lost in loss|fishy|terminating|cannot create log)"
NO_TYPE = (
    "{\nmount(2) takes no type where it changes a mount\nMemcheck:Param\nmount(type)\nfun:mount\nfun:root_begin\n}\n"
)


@pytest.fixture(scope="module")
def node() -> Iterator[Node]:
    with nodes.node() as made:
        made.image("tiny")
        paths = {"CONFIG_PATH": f"{made.directory}/udiRoot.conf", "LIBEXEC_PATH": f"{made.directory}/libexec/shifter"}
        words = {**paths, "PYTHON_PATH": str(real_interpreter()), "VERSION": "26.11.0"}
        defines = [f'-D{name}="{value}"' for name, value in words.items()]
        sources = [str(path) for path in sorted(LAUNCHER.rglob("*.c"))]
        caller, argv = str(made.directory / "bin/caller"), ["gcc", "-g", "-O1", "-D_GNU_SOURCE", "-o"]
        subprocess.run([*argv, caller, "-static", "-DCALLER", str(CALLS)], check=True)
        defines += [f'-DCALLER_PATH="{caller}"', "-Wl,--wrap=syscall,--wrap=ioctl"]
        subprocess.run([*argv, str(made.directory / "bin/checked"), *defines, str(CALLS), *sources], check=True)
        (made.directory / "logs").mkdir()
        (made.directory / "logs").chmod(0o777)  # a child that acts as the user has a log too
        held = (
            f"{{\n{name}\nMemcheck:Leak\nmatch-leak-kinds: definite,indirect\n...\nfun:{name}\n}}\n" for name in HELD
        )
        (made.directory / "held").write_text("".join(held) + NO_TYPE)
        (made.directory / "held").chmod(0o644)
        yield made
        made.drop_holds()
        assert made.left() == []


def checked(node: Node, *words: str, steps: socket.socket | None = None) -> "subprocess.CompletedProcess[str]":
    """A start under memcheck, which finds nothing in the launcher or what it forks; by a user, or, where steps come, by root."""

    def as_setuid() -> None:
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, 0, 0)

    done = subprocess.run(
        [VALGRIND, "--leak-check=full", "--show-leak-kinds=definite,possible", f"--suppressions={node.directory}/held",
         "--vgdb=no", f"--log-file={node.directory}/logs/valgrind.%p",
         str(node.directory / "bin/checked"), *words],
        preexec_fn=None if steps else as_setuid, stdin=steps, env={"PATH": "/bin"}, cwd="/",
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    logs = {path: path.read_text() for path in (node.directory / "logs").iterdir()}
    assert logs
    for path, log in logs.items():
        path.unlink()
        lines = [re.sub(r"^[=-]{2}\d+[=-]{2} ?", "", line) for line in log.splitlines()]
        told = [line for line in lines if re.match(ERROR, line)]
        assert told == [], log
    return done


def looked_at(done: "subprocess.CompletedProcess[str]") -> None:
    """What LOOK printed is right: the image's file, the variable, and no descriptor but the three and the shell's own to look."""
    assert (done.returncode, done.stderr) == (0, ""), done
    name, value, descriptors = done.stdout.splitlines()
    assert (name, value, descriptors) == (
        "NAME=tiny",
        "2",
        "/proc/self/fd/0 /proc/self/fd/1 /proc/self/fd/2 /proc/self/fd/3",
    )


def test_a_refused_start_has_no_memory_error_and_loses_no_block(node: Node) -> None:
    for words, said in (
        (["--image=id:none", "true"], "no image"),
        (["--nonsense"], "not known"),
        (["--image"], "needs a value"),
        (["--image=id:tiny", "-V", "relative:/mnt", "true"], "relative"),
        (["--image=id:tiny", "--env", "=", "true"], "env"),
    ):
        done = checked(node, *words)
        assert done.returncode == 1, done
        assert said in done.stderr, done


def test_a_private_start_has_no_memory_error_and_hands_no_descriptor_to_the_command(node: Node) -> None:
    words = ["--image=id:tiny", "-V", "/usr:/new/place", "-V", "/tmp:/mnt/a:ro", *SETTINGS]
    for _ in range(2):  # planned, with the image to mount; from the cache, with the image held
        looked_at(checked(node, *words, "sh", "-c", LOOK))
    done = checked(node, *words, "none")
    assert (done.returncode, done.stdout) == (127, ""), done


def test_a_joined_start_has_no_memory_error_and_hands_no_descriptor_to_the_command(node: Node) -> None:
    programs = node.directory / "bin"
    subprocess.run([programs / "setupRoot", "-U", str(NOBODY), "-G", str(NOBODY), "id", "tiny"], check=True)
    try:
        for _ in range(2):  # planned, then from the cache
            looked_at(checked(node, "--image=id:tiny", *SETTINGS, "sh", "-c", LOOK))
        done = checked(node, "--image=id:tiny", *SETTINGS, "none")
        assert (done.returncode, done.stdout) == (127, ""), done
    finally:
        subprocess.run([programs / "unsetupRoot"], check=True)


def test_a_set_up_has_no_memory_error(node: Node) -> None:
    words, programs = ("-U", str(NOBODY), "-G", str(NOBODY), "-v", "/usr:/data", "id", "tiny"), node.directory / "bin"
    subprocess.run([programs / "setupRoot", *words], check=True)
    subprocess.run([programs / "unsetupRoot"], check=True)
    kept = keep.read_setup(read(str(node.directory / "udiRoot.conf")), ["setup", *words])
    assert kept is not None
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.sendall(kept[2])  # a few KiB: the socket holds them until they are read
        ours.shutdown(socket.SHUT_WR)
        done = checked(node, "--steps", *kept[1], steps=theirs)
    assert (done.returncode, done.stderr) == (0, "")
    assert (node.directory / "udiMount/data/bin").is_dir()
    subprocess.run([programs / "unsetupRoot"], check=True)
