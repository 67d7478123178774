import json
import os
import subprocess
from pathlib import Path

import pytest

from runtime.mpi_abi import ERROR, OK, WARNING, Finding, check
from runtime.mpi_collect import CollectFailed, collect
from runtime.prepare_mpi import main
from tests.requires import find, requires, requires_root
from tests.runtime.shared_objects import library, program

pytestmark = requires("gcc", "patchelf")

FUNCTIONS = ["MPI_Init", "MPI_Send", "PMPI_Init"]


@pytest.fixture
def module(tmp_path: Path) -> Path:
    """The site's: libmpi.so.12 with FUNCTIONS, needing libshared's SHARED_2."""
    shared = library(tmp_path / "site" / "libshared.so.1", ["shared"], version="SHARED_2")
    mpi = library(
        tmp_path / "site" / "libmpi.so.12", FUNCTIONS, needs=[shared], calls=["shared", "getpid"], rpath="$ORIGIN"
    )
    collect([mpi], tmp_path / "module", "/opt/udiImage/modules/mpich")
    return tmp_path / "module"


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """An image's tree with a real C library; a test adds its MPI."""
    tree = tmp_path / "image"
    libc = program(tmp_path / "probe", [], [])
    for line in subprocess.run(["ldd", libc], capture_output=True, text=True, check=True).stdout.splitlines():
        for word in line.split():
            if word.startswith("/"):
                place = tree / "lib" / "x86_64-linux-gnu" / os.path.basename(word)
                place.parent.mkdir(parents=True, exist_ok=True)
                place.write_bytes(Path(word).read_bytes())
    return tree


def levels(findings: list[Finding], word: str) -> list[str]:
    return [finding.level for finding in findings if word in finding.text]


def test_an_image_whose_functions_are_all_there_is_fine(module: Path, image: Path) -> None:
    library(image / "usr/lib/x86_64-linux-gnu/libmpi.so.12", ["MPI_Init", "MPI_Send"])
    findings = check(module, image)
    assert Finding(
        OK, "/usr/lib/x86_64-linux-gnu/libmpi.so.12 is replaced by libmpi.so.12: all its 2 MPI functions are there"
    ) in findings  # fmt: skip
    assert {finding.level for finding in findings} == {OK}


def test_an_image_of_debian_that_calls_the_library_libmpich_is_the_same_abi(module: Path, image: Path) -> None:
    library(image / "usr/lib/x86_64-linux-gnu/libmpich.so.12.2.2", ["MPI_Init"], soname="libmpich.so.12")
    (image / "usr/lib/x86_64-linux-gnu/libmpich.so.12").symlink_to("libmpich.so.12.2.2")
    assert levels(check(module, image), "libmpich.so.12.2.2 is replaced by libmpi.so.12") == [OK]


def test_functions_that_the_site_lacks_are_named(module: Path, image: Path) -> None:
    library(image / "usr/lib/libmpi.so.12", ["MPI_Init", "MPIX_Special", "mpi_init_", "internal"])
    findings = check(module, image)
    assert levels(findings, "has 2 MPI functions that libmpi.so.12 lacks: MPIX_Special, mpi_init_") == [WARNING]


def test_a_program_that_calls_such_a_function_is_an_error(module: Path, image: Path) -> None:
    mpi = library(image / "usr/lib/libmpi.so.12", ["MPI_Init", "MPIX_Special"])
    program(image / "app/special", ["MPI_Init", "MPIX_Special"], [mpi])
    program(image / "app/plain", ["MPI_Init"], [mpi])
    program(image / "app/none", [], [])
    findings = check(module, image, ["/app/special", "/app/plain", "/app/none"])
    assert levels(findings, "/app/special calls MPI functions that the module lacks: MPIX_Special") == [ERROR]
    assert levels(findings, "/app/plain finds all its 1 MPI functions in the module") == [OK]
    assert levels(findings, "/app/none loads no MPI library of this ABI itself") == [WARNING]
    assert findings[0].level == ERROR  # worst first


def test_an_older_c_library_in_the_image_is_an_error_that_names_both_versions(module: Path, image: Path) -> None:
    old = image / "lib/x86_64-linux-gnu/libc.so.6"
    library(old, ["main_"], soname="libc.so.6", version="GLIBC_2.1")
    findings = check(module, image)
    assert levels(findings, "of libc.so.6, the image's /lib/x86_64-linux-gnu/libc.so.6 ends at GLIBC_2.1") == [ERROR]


def test_an_image_without_glibc_is_an_error_that_says_what_it_has(module: Path, tmp_path: Path) -> None:
    library(tmp_path / "alpine/lib/ld-musl-x86_64.so.1", ["x"])
    assert levels(check(module, tmp_path / "alpine"), "is not built on glibc (it has musl)") == [ERROR]


def test_open_mpi_in_the_image_is_said_to_stay(module: Path, image: Path) -> None:
    library(image / "usr/lib/x86_64-linux-gnu/libmpi.so.40", ["MPI_Init"])
    findings = check(module, image)
    assert levels(findings, "libmpi.so.40 is an MPI of another ABI; it is not replaced") == [WARNING]


def test_an_older_shared_dependency_in_the_image_is_a_warning(module: Path, image: Path) -> None:
    library(image / "usr/lib/libshared.so.1", ["shared"], version="SHARED_1")
    assert levels(check(module, image), "/usr/lib/libshared.so.1 lacks SHARED_2, which libmpi.so.12 needs") == [WARNING]


def test_links_of_the_image_are_followed_inside_the_image_only(module: Path, image: Path, tmp_path: Path) -> None:
    library(tmp_path / "outside" / "libmpi.so.12", ["MPI_Outside"])
    library(image / "opt/mpi/libmpi.so.12", ["MPI_Inside"])
    (image / "usr/lib").mkdir(parents=True)
    (image / "usr/lib/libmpi.so.12").symlink_to("/opt/mpi/libmpi.so.12")
    (image / "usr/lib/libmpich.so.12").symlink_to(f"{'../' * 12}{tmp_path}/outside/libmpi.so.12")
    (image / "usr/local").mkdir()
    (image / "usr/local/lib").symlink_to(tmp_path / "outside")
    (image / "lib64").symlink_to("lib64")
    findings = check(module, image)
    assert levels(findings, "/opt/mpi/libmpi.so.12 has 1 MPI functions that libmpi.so.12 lacks: MPI_Inside") == [
        WARNING
    ]
    assert levels(findings, "MPI_Outside") == []


def test_a_module_without_libraries_is_an_error(tmp_path: Path, image: Path) -> None:
    (tmp_path / "empty" / "lib64").mkdir(parents=True)
    with pytest.raises(CollectFailed, match="holds no libraries: make the module with prepare-mpi collect"):
        check(tmp_path / "empty", image)


def test_the_command_prints_findings_and_a_verdict_and_fails_on_errors(
    module: Path, image: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    library(image / "usr/lib/libmpi.so.12", ["MPI_Init"])
    assert main(["check", str(module), str(image)]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "usable"
    library(image / "lib/x86_64-linux-gnu/libc.so.6", ["x"], soname="libc.so.6", version="GLIBC_2.1")
    assert main(["check", str(module), str(image)]) == 1
    assert capsys.readouterr().out.splitlines()[-1].startswith("not usable: ")
    assert main(["check", "--json", str(module), str(image)]) == 1
    assert json.loads(capsys.readouterr().out)[0]["level"] == "error"
    assert main(["check", str(module), str(tmp_path / "image.squashfs")]) == 1
    assert "is no directory: give an image's tree, such as unsquashfs -d makes" in capsys.readouterr().err


# The hook that runs in a container


def run_hook(module: Path, tree: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """The module's userhook with `tree` as its root; busybox is the image's shell and grep."""
    for name in ("sh", "grep"):
        place = tree / "bin" / name
        place.parent.mkdir(exist_ok=True)
        place.write_bytes(Path("/bin/busybox").read_bytes())
        place.chmod(0o755)
    (tree / "dev").mkdir(exist_ok=True)
    (tree / "dev" / "null").touch()
    hook = (module / "bin" / "check.sh").read_text()
    return subprocess.run(
        [find("chroot") or "chroot", tree, "/bin/sh", "-s"], input=hook, capture_output=True, text=True,
        env={"PATH": "/bin", **environment},
    )  # fmt: skip


@pytest.fixture
def hooked(module: Path, tmp_path: Path) -> Path:
    """A module made by the command, so that it has its hook."""
    made = tmp_path / "hooked"
    assert main(["collect", "-o", str(made), str(tmp_path / "site" / "libmpi.so.12")]) == 0
    return made


@requires("busybox", "chroot")
@requires_root
def test_the_hook_is_silent_where_the_module_fits_and_warns_where_not(hooked: Path, image: Path) -> None:
    assert run_hook(hooked, image).stderr == ""  # no MPI in the image: nothing to say
    (image / "usr/lib").mkdir(parents=True)
    (image / "usr/lib/libmpi.so.40").touch()
    done = run_hook(hooked, image)
    assert done.returncode == 0
    assert done.stderr == (
        "shifter: module mpich: /usr/lib/libmpi.so.40 has another ABI than the site's MPI and is not replaced by it;"
        " run with --module=none, or set SHIFTER_MPI_CHECK=0\n"
    )
    assert run_hook(hooked, image, SHIFTER_MPI_CHECK="0").stderr == ""
    (image / "usr/lib/libmpi.so.12").touch()
    assert run_hook(hooked, image).stderr == ""  # the one that is replaced is there as well
    (image / "lib/x86_64-linux-gnu/libc.so.6").write_text("GLIBC_2.1")
    done = run_hook(hooked, image)
    assert "the site's MPI needs GLIBC_2." in done.stderr
    assert "which /lib/x86_64-linux-gnu/libc.so.6 lacks" in done.stderr


@requires("busybox", "chroot")
@requires_root
def test_a_strict_hook_ends_the_start(module: Path, image: Path, tmp_path: Path) -> None:
    assert main(["collect", "--strict", "-o", str(tmp_path / "strict"), str(tmp_path / "site/libmpi.so.12")]) == 0
    (image / "usr/lib").mkdir(parents=True)
    (image / "usr/lib/libmpi.so.40").touch()
    assert run_hook(tmp_path / "strict", image).returncode == 1
