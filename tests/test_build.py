"""What `make build` says on a machine that lacks something, and that it is quiet where nothing is missing."""

import shutil
import subprocess
from pathlib import Path

from tests.requires import requires_root

ETC = Path(__file__).parent.parent / "etc"
NOBODY = 65534


def install_packages(directory: Path, *lines: str, user: int | None = None) -> subprocess.CompletedProcess[str]:
    shutil.copy(ETC / "install-packages", directory)
    (directory / "packages").write_text("".join(line + "\n" for line in lines))
    (directory / "packages").chmod(0o644)
    argv = [str(directory / "install-packages")]
    return subprocess.run(argv, capture_output=True, text=True, user=user, cwd="/", check=False)


@requires_root
def test_without_root_every_missing_package_is_named_and_the_build_stops(public_directory: Path) -> None:
    done = install_packages(
        public_directory,
        "# a comment",
        "coreutils   ls                    there",
        "one         no-such-program       missing",
        "two         /no/such/*/header.h   missing too",
        "libthree    libno-such.so.9       missing as well",
        user=NOBODY,
    )
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.splitlines() == [
        "missing (names of Debian packages): one two libthree ",
        "as root: apt-get install one two libthree ",
    ]


def test_where_nothing_is_missing_it_is_quiet(tmp_path: Path) -> None:
    done = install_packages(tmp_path, "coreutils ls there", "passwd /etc/pass*d a file by a pattern")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_every_line_of_the_list_says_package_sign_and_purpose() -> None:
    lines = [line.split(maxsplit=2) for line in (ETC / "packages").read_text().splitlines() if not line.startswith("#")]
    assert all(len(line) == 3 for line in lines)
    assert len({line[0] for line in lines}) == len(lines)


def test_the_python_that_is_found_is_new_enough_and_no_shim() -> None:
    found = subprocess.run([ETC / "find-python"], capture_output=True, text=True, check=True).stdout.strip()
    code = "import sys; print(sys.version_info >= (3, 11), sys.executable)"
    assert subprocess.run([found, "-c", code], capture_output=True, text=True, check=True).stdout == f"True {found}\n"
