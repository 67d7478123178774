"""Completion in real shells: bash by its own function, zsh typed at on a terminal."""

import os
import pty
import re
import select
import subprocess
from pathlib import Path

import pytest

from runtime.shifterimg_usage import COMMON, OPTIONS, VERBS
from tests.requires import requires

COMPLETION = Path(__file__).parents[2] / "etc" / "completion"
IMAGES = ["ubuntu:24.04", "ubuntu:22.04", "team/tool:1"]


@pytest.fixture
def path(tmp_path: Path) -> str:
    """A PATH in which shifterimg lists IMAGES."""
    program = tmp_path / "bin" / "shifterimg"
    program.parent.mkdir()
    lines = "".join(f"mycluster  docker     READY    0123456789   2026-11-23T18:00:00 {name:30}\n" for name in IMAGES)
    program.write_text(f"#!/bin/sh\ncat <<'EOF'\n{lines}EOF\n")
    program.chmod(0o755)
    return f"{program.parent}:/usr/bin:/bin"


def bash(line: str, path: str) -> list[str]:
    """What bash offers at the end of `line`."""
    script = """
        source "$1"; COMP_LINE=$2; COMP_POINT=${#2}; read -ra COMP_WORDS <<<"$2"
        _shifterimg; printf '%s\\n' "${COMPREPLY[@]}"
    """
    command = ["bash", "--norc", "-c", script, "bash", COMPLETION / "shifterimg.bash", line]
    done = subprocess.run(command, capture_output=True, text=True, env={"PATH": path})
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.split()


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("shifterimg pu", ["pull", "pullnb"]),
        ("shifterimg -v look", ["lookup"]),
        ("shifterimg --user nobody p", ["pull", "pullnb"]),
        ("shifterimg lookup ub", ["ubuntu:24.04", "ubuntu:22.04"]),
        ("shifterimg lookup ubuntu:2", ["24.04", "22.04"]),  # bash takes what stands before the colon for a word
        ("shifterimg lookup ubuntu:24.04 ", []),
        ("shifterimg rm ubuntu:24.04 te", ["team/tool:1"]),
        ("shifterimg pull -u nob", ["nobody"]),
        ("shifterimg pull --user nobody,gam", ["nobody,games"]),
        ("shifterimg pull --group=gam", ["games"]),
        ("shifterimg import /etc/host.con", ["/etc/host.conf"]),
        ("shifterimg import x --format o", ["oci-layout"]),
        ("shifterimg images ", []),
    ],
)
def test_bash_offers(path: str, line: str, offered: list[str]) -> None:
    assert bash(line, path) == offered


def test_bash_offers_every_verb_and_every_option_of_each(path: str) -> None:
    assert set(bash("shifterimg ", path)) == set(VERBS)
    for verb in VERBS.values():
        offered = {word for word in bash(f"shifterimg {verb.name} -", path) if word.startswith("--")}
        assert offered == {f"--{name}" for name in (*verb.options, *COMMON)}, verb.name


@requires("zsh")
def test_zsh_completes_verbs_images_and_users(path: str, tmp_path: Path) -> None:
    with ZshTerminal(path, tmp_path) as zsh:
        assert zsh.completed("shifterimg pulln") == "shifterimg pullnb"
        assert zsh.completed("shifterimg lookup ub") == "shifterimg lookup ubuntu:2"
        assert zsh.completed("shifterimg rm te") == "shifterimg rm team/tool:1"
        assert zsh.completed("shifterimg pull --user=nobo") == "shifterimg pull --user=nobody,"  # ready for another
        assert zsh.completed("shifterimg import x --format=do") == "shifterimg import x --format=docker-archive"


@requires("zsh")
def test_zshs_file_has_every_verb_and_every_option_with_no_other() -> None:
    text = (COMPLETION / "_shifterimg").read_text()
    assert set(re.findall(r"^        '([a-z]+):", text, re.MULTILINE)) == set(VERBS)
    assert set(re.findall(r"--([a-z-]+)=?[}\[,]", text)) == set(OPTIONS)


class ZshTerminal:
    """An interactive zsh on a terminal. A key of its line editor hands over the line as it stands, through a fifo."""

    def __init__(self, path: str, directory: Path) -> None:
        self.fifo = directory / "line"
        os.mkfifo(self.fifo)
        (directory / ".zshrc").write_text(
            f"fpath=({COMPLETION} $fpath); autoload -U compinit; compinit -u -D; PS1='$ '; setopt no_beep\n"
            f"hand-over() {{ print -r -- $BUFFER >{self.fifo}; BUFFER= }}\n"
            "zle -N hand-over; bindkey '^X' hand-over; bindkey '^I' complete-word\n"
        )
        self.pid, self.terminal = pty.fork()
        if self.pid == 0:
            environment = {"PATH": path, "TERM": "vt100", "HOME": str(directory), "ZDOTDIR": str(directory)}
            os.execve("/usr/bin/zsh", ["zsh", "-d", "-i"], environment)

    def __enter__(self) -> "ZshTerminal":
        self.handed = os.open(self.fifo, os.O_RDWR)  # so that it never ends, see fifo(7)
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.terminal)  # it hangs up
        os.waitpid(self.pid, 0)
        os.close(self.handed)

    def completed(self, line: str) -> str:
        """Type `line` and a tab; the line that zsh makes of it."""
        os.write(self.terminal, line.encode() + b"\t\x18")
        got, screen = b"", b""
        while not got.endswith(b"\n"):
            ready, _, _ = select.select([self.terminal, self.handed], [], [], 10)
            assert ready, f"zsh does not answer; it shows {screen!r}"
            if self.terminal in ready:
                screen += os.read(self.terminal, 4096)
            if self.handed in ready:
                got += os.read(self.handed, 4096)
        return got.decode().rstrip()
