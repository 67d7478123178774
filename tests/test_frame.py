"""The frame that tests and benchmarks stand in: a missing tool is never a silent hole, a failing row never hides the others."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import bench.__main__
from bench import ROWS, Measured, row

ROOT = Path(__file__).parent.parent

NEEDS_A_TOOL = """
from tests.requires import need, requires
from tests.conftest import _required_tools

@requires("no-such-tool-anywhere")
def test_marked(): pass

def test_inside(): need("no-such-tool-anywhere")

@requires("sh")
def test_there(): pass
"""


def run_with(tmp_path: Path, ci: str) -> str:
    (tmp_path / "test_needs.py").write_text(NEEDS_A_TOOL)
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers =\n    requires\n    requires_root\n")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "CI": ci}
    argv = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", str(tmp_path)]
    return subprocess.run(argv, capture_output=True, text=True, env=environment, cwd=tmp_path, check=False).stdout


def test_a_missing_tool_skips_for_a_person_and_fails_in_ci(tmp_path: Path) -> None:
    assert "1 passed, 2 skipped" in run_with(tmp_path, ci="")
    in_ci = run_with(tmp_path, ci="true")
    assert "1 passed" in in_ci
    assert "skipped" not in in_ci.splitlines()[-1]
    assert in_ci.count("this machine has no no-such-tool-anywhere: run `make build`") >= 2


@pytest.fixture
def rows(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """No rows but the test's own; bench.json goes to the returned path."""
    monkeypatch.setattr(bench, "__path__", [])
    monkeypatch.setattr(bench.__main__, "RESULT", tmp_path / "bench.json")
    kept = dict(ROWS)
    ROWS.clear()
    yield tmp_path / "bench.json"
    ROWS.clear()
    ROWS.update(kept)


def test_bench_prints_a_table_and_writes_exactly_the_documented_keys(
    rows: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    @row("a.fast", unit="MB/s", goal=2.0, against="the old way")
    def fast() -> Measured:
        return Measured(300.0, ratio=3.0)

    @row("a.start", unit="ms", goal=1.0, better="less")
    def start() -> tuple[float, None]:
        return 1.5, None

    @row("b.other", unit="s")
    def other() -> Measured:
        raise AssertionError("not selected")

    assert bench.__main__.main(["a."]) == 0
    assert json.loads(rows.read_text()) == [
        {
            "name": "a.fast",
            "value": 300.0,
            "unit": "MB/s",
            "ratio": 3.0,
            "against": "the old way",
            "goal": 2.0,
            "met": True,
        },
        {"name": "a.start", "value": 1.5, "unit": "ms", "ratio": None, "against": None, "goal": 1.0, "met": False},
    ]
    printed = capsys.readouterr().out
    assert "a.fast" in printed
    assert ">= 2 yes" in " ".join(printed.split())
    assert "<= 1 NO" in " ".join(printed.split())


def test_a_row_that_fails_is_shown_with_its_reason_and_the_others_run(
    rows: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    @row("c.broken", unit="s")
    def broken() -> Measured:
        raise OSError("no loop device free")

    @row("c.whole", unit="s")
    def whole() -> Measured:
        return Measured(1.0)

    assert bench.__main__.main([]) == 1
    assert [element["value"] for element in json.loads(rows.read_text())] == [None, 1.0]
    captured = capsys.readouterr()
    assert "FAILED" in captured.out
    assert "c.broken: OSError: no loop device free" in captured.err


def test_an_unknown_row_names_those_that_exist(rows: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert bench.__main__.main(["nothing."]) == 1
    assert capsys.readouterr().err == "no benchmark is called nothing.*; there are: none\n"


def test_two_rows_of_one_name_are_refused(rows: Path) -> None:
    @row("d.twice", unit="s")
    def once() -> Measured:
        return Measured(1.0)

    with pytest.raises(ValueError, match="two benchmark rows"):
        row("d.twice", unit="s")(once)
