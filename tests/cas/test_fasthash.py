"""fasthash prints the name that the store gives."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import pytest

from cas.fasthash import fasthash, main
from cas.store import Store

COMMAND = [sys.executable, "-m", "cas.fasthash"]


@pytest.mark.parametrize("size", [0, 1, 1 << 20, (1 << 20) + 1, 5_000_000])
def test_the_hash_is_the_objects_name(tmp_path: Path, size: int) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"s" * size)
    assert fasthash(file) == Store(tmp_path / "store").put_file(file).name


def test_one_file_prints_the_hash_alone_and_several_print_names(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    for name in "ab":
        (tmp_path / name).write_text(name)
    assert main([str(tmp_path / "a")]) == 0
    assert capsys.readouterr().out == fasthash(tmp_path / "a") + "\n"
    assert main([str(tmp_path / "a"), str(tmp_path / "b")]) == 0
    assert capsys.readouterr().out.splitlines()[1] == f"{fasthash(tmp_path / 'b')}  {tmp_path / 'b'}"


def test_a_missing_file_is_named_and_the_others_are_still_read(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "here").write_text("x")
    assert main([str(tmp_path / "gone"), str(tmp_path / "here")]) == 1
    captured = capsys.readouterr()
    assert captured.err == f"fasthash: {tmp_path / 'gone'}: No such file or directory\n"
    assert fasthash(tmp_path / "here") in captured.out


def test_a_dash_is_standard_input(tmp_path: Path) -> None:
    done = subprocess.run([*COMMAND, "-"], input=b"hello", capture_output=True, check=True)
    assert done.stdout.decode().strip() == Store(tmp_path / "s").put_stream(io.BytesIO(b"hello")).name


def test_a_directory_is_refused_with_one_line(tmp_path: Path) -> None:
    done = subprocess.run([*COMMAND, str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr == f"fasthash: {tmp_path}: Is a directory\n"
