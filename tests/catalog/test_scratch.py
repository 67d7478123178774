"""Directories for a moment: gone at the end whatever is in them, and swept when their process was killed."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from catalog.scratch import scratch, sweep


def test_a_directory_goes_with_what_is_in_it_also_when_its_owner_may_not_enter(tmp_path: Path) -> None:
    with scratch(tmp_path / "expand") as made:
        (made / "deep" / "er").mkdir(parents=True)
        (made / "deep" / "er" / "file").touch()
        (made / "deep" / "er").chmod(0)
        (made / "deep").chmod(0)
    assert list((tmp_path / "expand").iterdir()) == []


def test_a_sweep_takes_what_a_killed_process_left_and_nothing_else(tmp_path: Path) -> None:
    kept = tmp_path / "shifter-images"
    kept.mkdir()
    with scratch(tmp_path) as mine:
        child = subprocess.Popen(
            [
                sys.executable,
                "-c",
                "import sys, pathlib, catalog.scratch as s\n"
                "with s.scratch(pathlib.Path(sys.argv[1])) as made:\n"
                "    (made / 'tree').mkdir(); print(made, flush=True); sys.stdin.read()",
                str(tmp_path),
            ],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert child.stdout is not None
        left = Path(child.stdout.readline().strip())
        assert sweep(tmp_path) == 0
        os.kill(child.pid, signal.SIGKILL)
        child.communicate()
        assert left.is_dir()
        (tmp_path / "shifter-scratch-link").symlink_to(kept)
        assert sweep(tmp_path) == 1
        assert not left.exists()
        assert mine.is_dir()
    assert kept.is_dir()
    assert sweep(tmp_path / "nowhere") == 0


def test_where_there_are_no_locks_directories_are_used_all_the_same_and_never_swept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", none)
    with scratch(tmp_path) as made:
        assert made.is_dir()
        assert sweep(tmp_path) == 0
    assert list(tmp_path.iterdir()) == []
