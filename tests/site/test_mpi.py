"""An image's own MPICH, and the site's put in its place by a module: two real builds, told apart by what they say.

The image has Debian's MPICH 4; the site's is the build that the Python package `mpich` carries. prepare-mpi makes the
module of it, checks it against the image, and the same program, run by mpiexec, reports the other library.
"""

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from runtime.mpi_abi import ERROR, check
from runtime.prepare_mpi import main as prepare_mpi
from sim.site import Site
from tests.requires import lack, requires, requires_root
from tests.site import mpi_image
from tests.site.conftest import NOBODY

pytestmark = [requires_root, pytest.mark.site, requires("umoci", "patchelf", "mpicc.mpich", "mpiexec.mpich")]
INSIDE = "/opt/udiImage/modules/mpich"


def sites_own() -> Path:
    """The site's libmpi.so.12: of another version than Debian's."""
    library = Path(sys.prefix) / "lib" / "libmpi.so.12"
    if not library.exists():
        lack(f"there is no second MPICH at {library}: pip install mpich (`make build` does)")
    return library


def version(hello: str) -> str:
    found = re.search(r"MPICH Version:\s*(\S+)", hello)
    assert found, hello
    return found[1]


@pytest.fixture(scope="module")
def tree(shared_site: Site) -> Path:
    """The image's files, as prepare-mpi check wants them."""
    directory = shared_site.directory / "tree"
    mpi_image.tree(directory)
    return directory


@pytest.fixture(scope="module")
def site(shared_site: Site, tree: Path) -> Iterator[Site]:
    """A site with mpi:1 pulled, and a module mpich that prepare-mpi made, told to udiRoot.conf as it says."""
    mpi_image.layout(shared_site.directory / "oci" / "mpi", tree)
    shared_site.push(f"{shared_site.directory}/oci/mpi:latest", "mpi:1")
    pulled = shared_site.run_as(NOBODY, ["shifterimg", "pull", "mpi:1"])
    assert pulled.returncode == 0, pulled.stderr
    module = shared_site.directory / "modules" / "mpich"
    command = [shared_site.bin / "prepare-mpi", "collect", "--output", module, sites_own()]
    report = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    told = [line.strip() for line in report.splitlines() if line.startswith("  module_mpich_")]
    assert len(told) == 3
    configuration = shared_site.directory / "etc" / "udiRoot.conf"
    configuration.write_text(configuration.read_text() + "".join(line + "\n" for line in told))
    yield shared_site


def run(site: Site, *options: str, ranks: int = 0, program: str = "/app/hello") -> subprocess.CompletedProcess[str]:
    launcher = ["/usr/bin/mpiexec.mpich", "-n", str(ranks)] if ranks else []
    return site.run_as(NOBODY, [*launcher, "shifter", "--image=mpi:1", *options, program])


def test_the_images_program_uses_the_images_mpi(site: Site) -> None:
    done = run(site)
    assert done.returncode == 0, done.stderr
    assert version(done.stdout).startswith("4.")


def test_the_module_puts_the_sites_mpi_in_its_place_without_a_word(site: Site) -> None:
    done = run(site, "--module=mpich")
    assert (done.returncode, done.stderr) == (0, "")
    assert not version(done.stdout).startswith("4.")


@pytest.mark.parametrize("options", [(), ("--module=mpich",)])
def test_ranks_that_mpiexec_starts_in_containers_find_each_other(site: Site, options: tuple[str, ...]) -> None:
    done = run(site, *options, ranks=2)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = sorted(done.stdout.splitlines())
    assert [line.partition(", MPICH")[0] for line in lines] == [
        f"hello from {rank} of 2, ranks add up to 1" for rank in (0, 1)
    ]
    assert len({version(line) for line in lines}) == 1
    assert version(lines[0]).startswith("4.") == (not options)


def test_the_check_finds_the_module_fit_for_this_image(site: Site, tree: Path) -> None:
    findings = check(site.directory / "modules" / "mpich", tree, ["/app/hello"])
    assert [finding for finding in findings if finding.level == ERROR] == []
    assert any("/app/hello finds all its 6 MPI functions" in finding.text for finding in findings)


def test_what_the_check_predicts_for_a_lesser_image_is_what_happens(
    site: Site, tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(tree, tmp_path / "lesser")
    for path in (tmp_path / "lesser").rglob("libdl.so.2"):
        path.unlink()
    assert prepare_mpi(["check", str(site.directory / "modules" / "mpich"), str(tmp_path / "lesser")]) == 1
    assert "the image has no libdl.so.2, which the module needs" in capsys.readouterr().out
    mpi_image.layout(tmp_path / "oci", tmp_path / "lesser")
    site.push(f"{tmp_path}/oci:latest", "lesser:1")
    assert site.run_as(NOBODY, ["shifterimg", "pull", "lesser:1"]).returncode == 0
    own = site.run_as(NOBODY, ["shifter", "--image=lesser:1", "/app/hello"])
    assert own.returncode == 0, own.stderr  # with its own MPI it runs
    swapped = site.run_as(NOBODY, ["shifter", "--image=lesser:1", "--module=mpich", "/app/hello"])
    assert swapped.returncode == 127
    assert "libdl.so.2" in swapped.stderr
