import json
import os
import subprocess
from pathlib import Path

import pytest

from runtime.elf import read
from runtime.mpi_collect import CollectFailed, collect
from runtime.prepare_mpi import main
from tests.requires import requires
from tests.runtime.shared_objects import library, program

pytestmark = requires("gcc", "patchelf")


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A site's MPI in a directory of its own: libmpi needs libfast by RPATH, libfast needs libdeep likewise."""
    deep = library(tmp_path / "site" / "net" / "libdeep.so.0", ["deep"])
    fast = library(tmp_path / "site" / "net" / "libfast.so.1", ["fast"], needs=[deep], calls=["deep"], rpath="$ORIGIN")
    library(
        tmp_path / "site" / "libmpi.so.12.3.1", ["MPI_Init"], soname="libmpi.so.12", needs=[fast],
        calls=["fast", "getpid"], rpath="$ORIGIN/net",
    )  # fmt: skip
    (tmp_path / "site" / "libmpi.so.12").symlink_to("libmpi.so.12.3.1")
    return tmp_path / "site"


def test_the_module_holds_the_library_its_dependencies_apart_and_the_names_of_its_abi(
    site: Path, tmp_path: Path
) -> None:
    made = collect([site / "libmpi.so.12"], tmp_path / "module", "/opt/udiImage/modules/mpich")
    assert {str(path.relative_to(tmp_path / "module")) for path in (tmp_path / "module").rglob("*.so*")} == {
        "lib64/libmpi.so.12.3.1", "lib64/libmpi.so.12", "lib64/libmpich.so.12",
        "lib64/dep/libfast.so.1", "lib64/dep/libdeep.so.0",
    }  # fmt: skip
    assert os.readlink(tmp_path / "module/lib64/libmpi.so.12") == "libmpi.so.12.3.1"
    assert [each.soname for each in made.dependencies] == ["libfast.so.1", "libdeep.so.0"]


@pytest.mark.parametrize("there", [False, True])
def test_a_module_that_cannot_be_made_whole_leaves_the_place_as_it_was(site: Path, tmp_path: Path, there: bool) -> None:
    target = tmp_path / "module"
    if there:
        target.mkdir()
    with pytest.raises(CollectFailed, match="--also /no/plugins: No such file or directory"):
        collect([site / "libmpi.so.12"], target, "/m", also=[Path("/no/plugins")])
    assert target.exists() == there
    assert collect([site / "libmpi.so.12"], target, "/m").libraries


def test_every_rpath_points_to_the_modules_place_in_the_container(site: Path, tmp_path: Path) -> None:
    collect([site / "libmpi.so.12"], tmp_path / "module", "/opt/udiImage/modules/mpich")
    dep = "/opt/udiImage/modules/mpich/lib64/dep"
    assert read(f"{tmp_path}/module/lib64/libmpi.so.12").search == ("/opt/udiImage/modules/mpich/lib64", dep)
    assert read(f"{tmp_path}/module/lib64/dep/libfast.so.1").search == (dep,)


def test_the_c_library_is_left_to_the_image_and_its_versions_are_reported(site: Path, tmp_path: Path) -> None:
    made = collect([site / "libmpi.so.12"], tmp_path / "module", "/m")
    assert not list((tmp_path / "module").rglob("libc.so*"))
    assert dict(made.from_image)["libc.so.6"][0].startswith("GLIBC_2.")


def test_a_program_runs_with_the_module_alone_when_the_sites_directory_is_gone(site: Path, tmp_path: Path) -> None:
    hello = program(tmp_path / "hello", ["MPI_Init"], [site / "libmpi.so.12.3.1"])
    collect([site / "libmpi.so.12"], tmp_path / "module", str(tmp_path / "module"))
    site.rename(tmp_path / "gone")
    environment = {"LD_LIBRARY_PATH": str(tmp_path / "module" / "lib64")}
    done = subprocess.run([hello], env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.strip().isdigit()


def test_a_dependency_of_the_users_libraries_path_does_not_take_the_modules_place(site: Path, tmp_path: Path) -> None:
    hello = program(tmp_path / "hello", ["MPI_Init"], [site / "libmpi.so.12.3.1"])
    collect([site / "libmpi.so.12"], tmp_path / "module", str(tmp_path / "module"))
    library(tmp_path / "users" / "libfast.so.1", ["wrong"])
    environment = {"LD_LIBRARY_PATH": f"{tmp_path}/users:{tmp_path}/module/lib64"}
    assert subprocess.run([hello], env=environment, capture_output=True, text=True).returncode == 0


def test_missing_dependencies_are_all_named_with_who_needs_them(tmp_path: Path) -> None:
    lost = library(tmp_path / "liblost.so.1", ["lost"])
    gone = library(tmp_path / "libgone.so.1", ["gone"])
    mpi = library(tmp_path / "libmpi.so.12", ["MPI_Init"], needs=[lost, gone], calls=["lost", "gone"])
    lost.unlink()
    gone.unlink()
    with pytest.raises(CollectFailed) as caught:
        collect([mpi], tmp_path / "module", "/m")
    for name in ("liblost.so.1", "libgone.so.1"):
        assert f"{name} (needed by {mpi})" in str(caught.value)
    assert not (tmp_path / "module").exists()


def test_a_library_path_finds_what_no_rpath_names(tmp_path: Path) -> None:
    fast = library(tmp_path / "net" / "libfast.so.1", ["fast"])
    mpi = library(tmp_path / "libmpi.so.12", ["MPI_Init"], needs=[fast], calls=["fast"])
    made = collect([mpi], tmp_path / "module", "/m", library_path=[str(tmp_path / "net")])
    assert [each.soname for each in made.dependencies] == ["libfast.so.1"]


def test_plugins_come_along_when_named(site: Path, tmp_path: Path) -> None:
    library(tmp_path / "libfabric" / "libefa-fi.so", ["efa"])
    made = collect([site / "libmpi.so.12"], tmp_path / "module", "/m", also=[tmp_path / "libfabric"])
    assert made.extras == ("lib64/dep/libfabric",)
    assert (tmp_path / "module/lib64/dep/libfabric/libefa-fi.so").is_file()


def test_a_directory_in_use_is_not_touched(site: Path, tmp_path: Path) -> None:
    (tmp_path / "module").mkdir()
    (tmp_path / "module" / "mine").touch()
    with pytest.raises(CollectFailed, match="is not an empty directory: name another, or remove it"):
        collect([site / "libmpi.so.12"], tmp_path / "module", "/m")
    assert os.listdir(tmp_path / "module") == ["mine"]


def test_the_command_reports_what_it_took_and_prints_the_lines_for_udiroot_conf(
    site: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["collect", "--name", "cray", "-o", str(tmp_path / "module"), str(site / "libmpi.so.12")]) == 0
    out = capsys.readouterr().out
    assert f"libfast.so.1             from {site}/net/libfast.so.1" in out
    assert f"module_cray_copyPath = {tmp_path}/module\n" in out
    assert "module_cray_siteEnvPrepend = LD_LIBRARY_PATH=/opt/udiImage/modules/cray/lib64\n" in out
    assert "module_cray_userhook = /opt/udiImage/modules/cray/bin/check.sh\n" in out
    report = json.loads((tmp_path / "module" / "report.json").read_text())
    assert [row["soname"] for row in report["dependencies"]] == ["libfast.so.1", "libdeep.so.0"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["/nonexistent/libmpi.so.12"], "prepare-mpi: /nonexistent/libmpi.so.12: No such file or directory\n"),
        (["/etc/passwd"], "is no 64-bit ELF file: name a shared library such as libmpi.so.12\n"),
    ],
)
def test_errors_are_one_line_and_status_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert main(["collect", "-o", str(tmp_path / "module"), *arguments]) == 1
    assert capsys.readouterr().err.endswith(message)
