"""What all commands share: help that one can act on, a version, and an exit status of 0 only on success."""

import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import entry_points, version
from pathlib import Path

import pytest

from runtime.install import install
from tests.requires import need

INSTALLED_ON_NODES = ("shifter", "shifterimg", "setupRoot", "unsetupRoot", "prepare-mpi")
OF_THE_DISTRIBUTION = tuple(
    script.name for script in entry_points(group="console_scripts") if script.dist.name == "shifter"
)
COMMANDS = INSTALLED_ON_NODES + tuple(name for name in OF_THE_DISTRIBUTION if name not in INSTALLED_ON_NODES)


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Path]]:
    """Where each command lies; those of a node are installed for a udiRoot.conf that is not there."""
    need("gcc")
    prefix = tmp_path_factory.mktemp("node")
    install(prefix=prefix, config=prefix / "udiRoot.conf", setuid=False)
    found = {name: prefix / "bin" / name for name in INSTALLED_ON_NODES}
    found |= {name: Path(sys.executable).parent / name for name in OF_THE_DISTRIBUTION}
    yield found


def test_the_distribution_brings_what_needs_no_launcher() -> None:
    assert sorted(OF_THE_DISTRIBUTION) == ["fasthash", "shifter-admin", "shifter-gateway", "shifter-sim", "shifterimg"]


def test_what_it_brings_runs_as_it_is_installed() -> None:
    for name in OF_THE_DISTRIBUTION:
        done = run(Path(sys.executable).parent / name, "--help")
        assert (done.returncode, done.stderr) == (0, ""), name


def run(*argv: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(list(map(str, argv)), capture_output=True, text=True, check=False, timeout=30)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_says_how_to_use_it_and_exits_0(programs: dict[str, Path], command: str) -> None:
    done = run(programs[command], "--help")
    assert done.returncode == 0, done.stderr
    assert "usage: " + command in done.stdout.replace("Usage:", "usage:")
    assert done.stderr == ""


@pytest.mark.parametrize("command", COMMANDS)
def test_version_names_the_command_and_the_release(programs: dict[str, Path], command: str) -> None:
    done = run(programs[command], "--version")
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[0] == command
    assert done.stdout.split()[-1] == version("shifter")


@pytest.mark.parametrize("command", COMMANDS)
def test_an_unknown_option_fails_with_a_line_that_names_the_command(programs: dict[str, Path], command: str) -> None:
    done = run(programs[command], "--no-such-option")
    assert done.returncode != 0
    assert f"{command}: " in done.stderr
    assert "Traceback" not in done.stderr
