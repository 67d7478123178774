"""Images for the benchmarks, made of this machine's own files: real content, real sizes, no network.

Nothing here measures. What is made lies in a directory that the caller gives and removes.
"""

from __future__ import annotations

import hashlib
import os
import stat
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

SOURCES = ("/usr/bin", "/usr/lib", "/usr/share")
_PLAIN = 4 << 20


def some_files(total: int, *, skip: int = 0) -> Iterator[Path]:
    """Regular files of this machine, always the same ones, about so many bytes in all, after the first `skip` bytes.

    Large files are left out: what is measured is a system's tree, not one archive in it.
    """
    seen = 0
    for source in SOURCES:
        for directory, directories, names in os.walk(source):
            directories.sort()
            for name in sorted(names):
                path = Path(directory, name)
                status = path.lstat()
                if not stat.S_ISREG(status.st_mode) or status.st_size > _PLAIN or not os.access(path, os.R_OK):
                    continue
                seen += status.st_size
                if seen > skip + total:
                    return
                if seen > skip:
                    yield path


def layer_tar(path: Path, files: Iterator[Path]) -> None:
    """A layer's tar of these files and their directories, as builders write it: parents first, GNU format."""
    written: set[Path] = set()
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as archive:
        for file in files:
            for parent in reversed(file.parents[:-1]):
                if parent not in written:
                    written.add(parent)
                    archive.add(parent, recursive=False)
            archive.add(file, recursive=False)


def oci_image(directory: Path, *, size: int, layers: int) -> Path:
    """An OCI layout with one image (tag `image`) of `size` bytes in so many gzip layers; returns the layout's path."""
    trees = []
    for number in range(layers):
        path = directory / f"layer{number}.tar"
        layer_tar(path, some_files(size // layers, skip=number * (size // layers)))
        trees.append(path)
    layout = directory / "oci"
    subprocess.run(["umoci", "init", "--layout", str(layout)], check=True)
    subprocess.run(["umoci", "new", "--image", f"{layout}:image"], check=True)
    for path in trees:
        subprocess.run(["umoci", "raw", "add-layer", "--image", f"{layout}:image", str(path)], check=True)
    subprocess.run(["umoci", "gc", "--layout", str(layout)], check=True)
    for path in trees:
        path.unlink()
    return layout


def sha256_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
