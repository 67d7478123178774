"""The file systems on which the store's contract must hold; SHIFTER_TEST_STORE names a directory on one more, such as NFS
or Lustre.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.requires import need, need_root

MAKE = {"ext4": ["mkfs.ext4", "-q", "-F"], "xfs": ["mkfs.xfs", "-q", "-m", "reflink=1"]}


GIVEN = os.environ.get("SHIFTER_TEST_STORE")


@pytest.fixture(scope="session", params=["here", "tmpfs", "ext4", "xfs", *(["given"] if GIVEN else [])])
def mounted(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A directory on a file system of this kind: tmpfs, or in a sparse file on a loop device; unmounted in the end."""
    kind = request.param
    if kind == "given":
        with tempfile.TemporaryDirectory(dir=GIVEN, prefix="store-contract-") as name:
            yield Path(name)
        return
    directory = tmp_path_factory.mktemp(kind)
    if kind == "here":
        yield directory
        return
    need_root()
    if kind == "tmpfs":
        command = ["mount", "-t", "tmpfs", "-o", "size=256m", "tmpfs", str(directory)]
    else:
        need(MAKE[kind][0])
        image = tmp_path_factory.mktemp("images") / kind
        with image.open("wb") as file:
            os.truncate(file.fileno(), 320 << 20)
        subprocess.run([*MAKE[kind], str(image)], check=True, capture_output=True)
        command = ["mount", "-o", "loop", str(image), str(directory)]
    subprocess.run(command, check=True)
    try:
        yield directory
    finally:
        subprocess.run(["umount", str(directory)], check=True)


@pytest.fixture
def file_system(mounted: Path, request: pytest.FixtureRequest) -> Path:
    """A fresh directory on each of the file systems in turn."""
    directory = mounted / f"{abs(hash(request.node.nodeid)):x}"
    directory.mkdir()
    return directory
