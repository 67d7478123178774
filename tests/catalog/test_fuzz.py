"""The fuzzer finds nothing in a moment, from the saved corpus; `python -m tests.catalog.fuzz` runs it for longer."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

from tests.requires import lack

SECONDS = round(5 * float(os.environ.get("SHIFTER_TEST_SCALE", "1")))


def test_the_readers_of_strangers_bytes_hold(tmp_path: Path) -> None:
    if importlib.util.find_spec("atheris") is None:
        lack("this Python has no atheris: run `make build`")
    done = subprocess.run(
        [sys.executable, "-m", "tests.catalog.fuzz", str(SECONDS), str(tmp_path / "corpus")],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Done" in done.stderr
