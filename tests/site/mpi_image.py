"""An image with an MPI program in it, made of this machine's own Debian packages: MPICH, the C library, a shell."""

import shutil
import subprocess
from pathlib import Path

from sim import busybox_image

HELLO = r"""
#include <mpi.h>
#include <stdio.h>
int main(int argc, char **argv)
{
    int rank, size, sum = 0, length;
    char version[MPI_MAX_LIBRARY_VERSION_STRING];
    MPI_Init(&argc, &argv);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &size);
    MPI_Get_library_version(version, &length);
    MPI_Allreduce(&rank, &sum, 1, MPI_INT, MPI_SUM, MPI_COMM_WORLD);
    printf("hello from %d of %d, ranks add up to %d, %.*s\n", rank, size, sum, (int)strcspn(version, "\n"), version);
    MPI_Finalize();
    return 0;
}
"""

C_LIBRARY = ("libdl.so.2", "libpthread.so.0", "librt.so.1")  # parts of glibc that every image of Debian has


def tree(directory: Path) -> None:
    """Make the image's files below `directory`: /app/hello, built with Debian's mpicc, and every library it loads."""
    program = directory / "app" / "hello"
    program.parent.mkdir(parents=True)
    command = ["/usr/bin/mpicc.mpich", "-o", program, "-include", "string.h", "-x", "c", "-"]
    subprocess.run(command, input=HELLO, text=True, check=True)
    libraries = loaded(program)
    libc = next(library for library in libraries if library.name == "libc.so.6")
    for library in [*libraries, *(libc.with_name(name) for name in C_LIBRARY)]:
        place = directory / library.relative_to("/")
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(library, place)
        place.chmod(0o755)


def loaded(program: Path) -> list[Path]:
    """The libraries that a program loads here, as it names them, and its loader; see ldd(1)."""
    lines = subprocess.run(["ldd", program], capture_output=True, text=True, check=True).stdout.splitlines()
    return [Path(word) for line in lines for word in line.split() if word.startswith("/")]


def layout(directory: Path, files: Path) -> None:
    """Write an OCI layout with busybox and, over it, `files`."""
    busybox_image.write(directory)
    layer = directory.with_suffix(".tar")
    subprocess.run(["tar", "-C", files, "--owner=0", "--group=0", "--sort=name", "-cf", layer, "."], check=True)
    add = ["umoci", "raw", "add-layer", "--image", f"{directory}:latest", layer]
    subprocess.run(add, check=True, capture_output=True)
    layer.unlink()
