import os
import re
import subprocess
from pathlib import Path

import pytest

from runtime.elf import ElfInvalid, read
from tests.requires import requires
from tests.runtime.shared_objects import library, program


@requires("gcc")
def test_a_librarys_names_symbols_and_search_path_are_read(tmp_path: Path) -> None:
    below = library(tmp_path / "libbelow.so.1", ["below"], version="BELOW_1.0")
    above = library(
        tmp_path / "libabove.so.2.1", ["above", "MPI_Init"], soname="libabove.so.2", needs=[below], calls=["below"],
        rpath="$ORIGIN/dep:/opt/lib",
    )  # fmt: skip
    found = read(str(above))
    assert found.soname == "libabove.so.2"
    assert "libbelow.so.1" in found.needed
    assert found.search == ("$ORIGIN/dep", "/opt/lib")
    assert {"above", "MPI_Init"} <= found.defined
    assert "below" in found.undefined
    assert ("libbelow.so.1", "BELOW_1.0") in found.needs_versions
    assert "BELOW_1.0" in read(str(below)).gives_versions


@requires("readelf", "gcc")
def test_versions_of_the_c_library_agree_with_readelf(tmp_path: Path) -> None:
    made = program(tmp_path / "program", [], [])
    libc = next(line.split()[2] for line in _lines(["ldd", made]) if line.split()[0] == "libc.so.6")
    found = read(libc)
    text = "\n".join(_lines(["readelf", "-VW", libc]))
    definitions = text[text.index(".gnu.version_d") : text.index(".gnu.version_r")]
    assert found.gives_versions == set(re.findall(r"Name: (\S+)", definitions))
    symbols = _lines(["readelf", "--dyn-syms", "-W", libc])
    rows = [line.split() for line in symbols if re.match(r"\s*\d+: ", line)]
    names = {row[7].partition("@")[0] for row in rows if len(row) > 7 and row[6] != "UND" and row[4] != "LOCAL"}
    assert found.defined == names


@requires("gcc")
def test_what_is_no_dynamic_object_is_refused_by_name(tmp_path: Path) -> None:
    text, empty, static = tmp_path / "text", tmp_path / "empty", tmp_path / "static"
    text.write_text("INPUT(libmpi.so.12)\n")
    empty.touch()
    subprocess.run(["gcc", "-static", "-o", static, "-x", "c", "-"], input="int main(){}", text=True, check=True)
    for path, why in [(text, "no 64-bit ELF file"), (empty, "is empty"), (static, "is linked statically")]:
        with pytest.raises(ElfInvalid, match=rf"{path}: .*{why}"):
            read(str(path))


def test_a_fifo_in_a_librarys_place_is_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "libmpi.so.12")
    with pytest.raises(ElfInvalid, match="is no file"):
        read(str(tmp_path / "libmpi.so.12"))


@requires("gcc")
def test_a_file_cut_or_changed_anywhere_is_read_or_refused_but_nothing_else_happens(tmp_path: Path) -> None:
    whole = library(tmp_path / "lib.so.1", ["one", "two"], version="V_1").read_bytes()
    broken = tmp_path / "broken.so"
    step = max(1, len(whole) // 400)
    for at in range(0, len(whole), step):
        for data in (whole[:at], whole[:at] + b"\xff" * 8 + whole[at + 8 :]):
            broken.write_bytes(data)
            try:
                read(str(broken))
            except ElfInvalid:
                continue


def _lines(command: list[object]) -> list[str]:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
