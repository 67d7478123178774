"""`shifter-sim calibrate | validate` as an administrator meets them: mistakes, interrupts, a machine that lacks something."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sim import calibrate, cli, emulation, leftovers, scenario, validate
from sim.calibrate import Calibration, Figure
from tests.requires import requires, requires_root


@pytest.fixture
def never(monkeypatch: pytest.MonkeyPatch) -> None:
    """No site may be brought up."""
    monkeypatch.setattr("sim.emulation.workbench", lambda *_: pytest.fail("a site was brought up"))


@pytest.mark.usefixtures("never")
@pytest.mark.parametrize("command", ["calibrate", "validate"])
@pytest.mark.parametrize("option", ["--nodes=0", "--nodes=-1", "--nodes=x", "--repeats=0", "--repeats=1.5"])
def test_a_number_that_is_none_is_refused(command: str, option: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main([command, option])
    assert ended.value.code == 2
    assert f"{option.partition('=')[2]!r}: write a whole number above 0" in capsys.readouterr().err


@pytest.mark.usefixtures("never")
@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["calibrate", "--nodes", "300"], "--nodes 300: a cluster has 1 to 256 emulated nodes"),
        (
            ["calibrate", "--output", "/nowhere/x.toml"],
            "/nowhere/x.toml: No such file or directory: choose another file",
        ),
        (["calibrate", "--output", "/"], "/: Is a directory: choose another file"),
        (["validate", "--json", "/nowhere/x.json"], "/nowhere/x.json: No such file or directory: choose another file"),
        (["validate", "--nodes", "4", "--sizes", "1,8"], "--sizes 8, but the cluster has 4 nodes: --nodes 8"),
        (
            ["validate", "--markdown", "/tmp/x.md"],
            "--markdown writes a page that shows the plot of --svg: name that file too",
        ),
    ],
)
def test_a_mistake_is_told_before_anything_is_measured(
    arguments: list[str], line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(arguments) == 1
    assert capsys.readouterr().err == f"shifter-sim: {line}\n"


@pytest.mark.usefixtures("never")
@pytest.mark.parametrize("option", ["--html", "--svg"])
def test_a_plot_that_could_not_be_drawn_is_told_before_anything_is_measured(
    option: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert cli.main(["validate", option, str(tmp_path / "file")]) == 1
    assert capsys.readouterr().err == "shifter-sim: plots need matplotlib: install shifter[plots]\n"
    assert not list(tmp_path.iterdir())


def test_a_machine_without_slurm_is_told_what_it_lacks(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert cli.main(["calibrate", "--nodes", "2", "--dir", str(tmp_path / "site")]) == 1
    lacks = ", ".join(emulation.TOOLS)
    assert capsys.readouterr().err == f"shifter-sim: this machine has no {lacks}: run `make build`\n"
    assert not list(tmp_path.iterdir())


@requires("slurmctld", "slurmd", "gcc", "skopeo")
@pytest.mark.parametrize(
    ("made", "reason"),
    [("", "is there already: name a new directory"), ("a/b", "No such file or directory: name a new")],
)
def test_a_directory_that_is_not_new_is_left_alone(
    made: str, reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine").touch()
    assert cli.main(["validate", "--nodes", "2", "--dir", str(tmp_path / made)]) == 1
    assert reason in capsys.readouterr().err
    assert [entry.name for entry in tmp_path.iterdir()] == ["mine"]


@requires_root
@requires("munged", "docker-registry", "slurmctld", "slurmd", "skopeo", "mksquashfs")
@pytest.mark.slurm
@pytest.mark.slow
def test_a_compiler_that_fails_is_told_in_one_line_and_nothing_is_left(
    public_directory: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(emulation, "STAMP", "int main(void) { return 0 }")
    assert cli.main(["calibrate", "--nodes", "1", "--dir", str(public_directory / "bench")]) == 1
    line = capsys.readouterr().err
    assert line.startswith("shifter-sim: gcc ended with 1: <stdin>:1:")
    assert line.count("\n") == 1
    assert leftovers.after(public_directory) == []
    assert not list(public_directory.iterdir())


FEW = (
    "shifter-sim: what Slurm costs a node is a guess with 2 of them on 1 cores: it shows where many queue for these"
    " (--nodes 64)\n"
)


@contextmanager
def imagined(*_: object) -> Iterator[None]:
    """A workbench without a site."""
    yield None


def test_figures_that_a_full_disk_does_not_take_are_printed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made = Calibration(
        "a machine", "2026-01-31", (Figure("node.mount_seconds", 0.0004, 0.0003, 0.0005, 30, "mount(2)"),)
    )
    monkeypatch.setattr("sim.emulation.workbench", imagined)
    monkeypatch.setattr("sim.calibrate.cores", lambda: 1)
    monkeypatch.setattr("sim.calibrate.calibrate", lambda *_, **__: made)
    assert cli.main(["calibrate", "--nodes", "2", "--output", "/dev/full"]) == 1
    out, err = capsys.readouterr()
    assert out == made.toml()
    assert err == FEW + "shifter-sim: /dev/full: No space left on device: choose another file\n"


def test_points_are_printed_though_a_file_of_them_cannot_be_written(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    points = (validate.Point("cold", 1, "inside", 1.0, 1.3),)
    monkeypatch.setattr("sim.emulation.workbench", imagined)
    monkeypatch.setattr("sim.calibrate.cores", lambda: 1)
    monkeypatch.setattr("sim.validate.validate", lambda *_: validate.Validation(Calibration("m", "d", ()), points))
    assert cli.main(["validate", "--nodes", "2"]) == 2, "worse than the goal"
    assert cli.main(["validate", "--nodes", "2", "--json", "/dev/full"]) == 1
    out, err = capsys.readouterr()
    assert out.count("+30%") == 2
    assert err == 2 * FEW + "shifter-sim: /dev/full: No space left on device: choose another file\n"


@requires_root
@requires("munged", "docker-registry", "slurmctld", "slurmd", "gcc", "skopeo", "mksquashfs")
@pytest.mark.slurm
@pytest.mark.slow
@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("begun", ["run/site.json", "slurm/run/n1.process", "images/*.squashfs"])
def test_an_interrupted_calibration_leaves_nothing(ending: signal.Signals, begun: str, public_directory: Path) -> None:
    site, output = public_directory / "bench" / "site", public_directory / "this-machine.toml"
    argv = ["calibrate", "--nodes", "2", "--dir", str(site.parent), "--output", str(output)]
    running = subprocess.Popen(
        [sys.executable, "-m", "sim.cli", *argv], stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    wait_for(lambda: any(site.glob(begun)) or running.poll() is not None)
    os.killpg(running.pid, ending)  # as a terminal does: to the programs that it waits for, too
    os.killpg(running.pid, ending)
    _, errors = running.communicate()
    assert errors.splitlines()[-1:] == ["shifter-sim: interrupted"]
    assert "Traceback" not in errors
    assert running.returncode == 130
    assert leftovers.after(public_directory) == []
    assert not list(public_directory.iterdir())


def wait_for(condition: Callable[[], bool]) -> None:
    """For another process's file there is no event."""
    tick = threading.Event()
    while not condition():
        tick.wait(0.01)


def test_a_figure_that_was_set_and_not_measured_says_so(tmp_path: Path) -> None:
    figures = (
        Figure("slurm.send_seconds", 0.0, 0.0, 0.0, 0, "not measured: for a reason"),
        Figure("node.mount_seconds", 0.0004, 0.0003, 0.0005, 30, "mount(2)"),
    )
    text = Calibration('a "machine" \\ [x]', "2026-01-31", figures).toml()
    assert "send_seconds = 0                    # source: not measured: for a reason\n" in text
    assert "# source: mount(2), 0.0003 .. 0.0005, 30 measurements\n" in text
    (tmp_path / "machine.toml").write_text(text)
    assert scenario.load(str(tmp_path / "machine.toml")).description == 'a "machine" \\ [x]'


def test_what_calibration_sets_without_measuring_is_not_called_measured() -> None:
    one = emulation.Instants(1, first=0.140, last=0.140, inside=0.0, over=0.150)
    many = emulation.Instants(64, first=1.10, last=1.30, inside=0.0, over=1.40)
    figures = {figure.key: figure for figure in calibrate.slurm(one, many, [0.036], [(0.009, 0.010)], repeats=1)}
    for key in ("send_seconds", "fork_seconds", "controller_message_seconds", "poll_seconds", "tree_width"):
        assert figures[f"slurm.{key}"].count == 0, key
    assert figures["slurm.hop_seconds"].count > 0
