"""The fuzzer finds nothing in what the launcher parses in so many inputs; `python -m tests.runtime.fuzz` runs it for longer."""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.requires import requires
from tests.runtime import fuzz

pytestmark = [requires("clang")]
SCALE = float(os.environ.get("SHIFTER_TEST_SCALE", "1"))
RUNS = {"plan": 100_000, "cache": 100_000, "config": 50_000, "options": 50_000, "caller": 50_000, "environment": 20_000}


@pytest.fixture(scope="module", params=fuzz.SANITIZERS)
def built(request: pytest.FixtureRequest) -> Iterator[tuple[Path, Path]]:
    with tempfile.TemporaryDirectory(
        prefix="shifter-fuzz-", dir="/tmp"
    ) as name:  # nobody may enter it, unlike pytest's own
        directory = Path(name)
        fuzz.prepare(directory)
        yield directory, fuzz.build(directory, request.param)


@pytest.mark.parametrize("target", fuzz.SEEDS)
def test_no_input_breaks_what_the_launcher_parses(built: tuple[Path, Path], target: str) -> None:
    directory, program = built
    done = fuzz.run(program, target, directory, "-seed=1", f"-runs={int(RUNS[target] * SCALE)}")
    assert not fuzz.broken(directory, target, done)
    assert "DONE" in done.stderr
