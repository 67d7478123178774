"""EROFS images hold what squashfs images hold, and come out the same each time."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from catalog.conversion_options import ConversionOptions
from catalog.failure import PullFailed
from catalog.limits import Limits
from tests.catalog.lying_registry import lying
from tests.catalog.registry_fixture import Puller, build, directory, file, gz, hardlink, symlink, tar, whiteout
from tests.catalog.test_layers_umoci import tree
from tests.requires import requires, requires_root

pytestmark = [requires("mkfs.erofs", "fsck.erofs", "tar2sqfs", "unsquashfs"), requires_root]

BASE = tar(
    directory("d", mode=0o750, uid=5, gid=6, mtime=1_000_000_000),
    file("d/f", b"contents" * 5000, mode=0o4711, uid=1000, gid=3_000_000_000, mtime=1_234_567_890),
    hardlink("hard", "d/f"),
    symlink("soft", "../d/f", mtime=1_111_111_111),
    directory("closed", mode=0o500),
    file("closed/gone", b"x"),
    file("implied/here", b"y", mtime=5),
)
TOP = tar(whiteout("closed/gone"), file("d/second", b""))


def test_the_same_tree_as_in_squashfs(tmp_path: Path) -> None:
    trees = {}
    with lying(build(gz(BASE), gz(TOP))) as registry:
        for form in ("squashfs", "erofs"):
            puller = Puller(tmp_path / form, registry.url, ConversionOptions(format=form, scratch=tmp_path))
            pulled = puller.pull("a/b:1")
            assert pulled.format == form
            out = tmp_path / f"{form}.tree"
            tool = (
                ["unsquashfs", "-q", "-n", "-d", str(out)] if form == "squashfs" else ["fsck.erofs", f"--extract={out}"]
            )
            subprocess.run([*tool, str(puller.images.path(pulled.object))], check=True, stdout=subprocess.DEVNULL)
            # fsck.erofs unpacks hard links as files of their own; the inode count that the pull checks tells them.
            trees[form] = {name: facts[:-1] for name, facts in tree(out).items()}
    assert trees["erofs"] == trees["squashfs"]
    assert [path.name for path in tmp_path.glob("shifter-*")] == []


def test_the_same_bytes_each_time(tmp_path: Path) -> None:
    objects = set()
    with lying(build(gz(BASE))) as registry:
        for number in range(2):
            puller = Puller(tmp_path / str(number), registry.url, ConversionOptions(format="erofs", workers=number + 1))
            objects.add(puller.pull("a/b:1").object)
    assert len(objects) == 1


def test_an_option_that_is_none_is_named(tmp_path: Path) -> None:
    options = ConversionOptions(format="erofs", arguments=("--blobdev=/dev/sda",))
    with lying(build(gz(BASE))) as registry:
        with pytest.raises(PullFailed, match=r"'--blobdev=/dev/sda' is not understood; known are -zlz4"):
            Puller(tmp_path, registry.url, options).pull("a/b:1")


@pytest.mark.parametrize(
    ("script", "reason"),
    [("exit 1", "mkfs.erofs ended with exit status 1"), (': > "$8"', "is no EROFS image")],
)
def test_a_writer_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, reason: str) -> None:
    program = tmp_path / "mkfs.erofs"
    program.write_text(
        f"#!/bin/sh\n[ $1 = --version ] && exit\nfor a; do b=$c; c=$a; done; set -- 1 2 3 4 5 6 7 $b\n{script}\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    with lying(build(gz(BASE))) as registry:
        puller = Puller(tmp_path, registry.url, ConversionOptions(format="erofs", scratch=tmp_path))
        with pytest.raises(PullFailed, match=reason):
            puller.pull("a/b:1")
    assert puller.litter() == []
    assert [path.name for path in tmp_path.glob("shifter-*")] == []


def test_a_writer_that_hangs_is_ended_with_the_pull(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program, pid = tmp_path / "mkfs.erofs", tmp_path / "pid"
    program.write_text(f"#!/bin/sh\n[ $1 = --version ] && exit\necho $$ > {pid}\nexec sleep 600\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    with lying(build(gz(BASE))) as registry:
        limits = Limits(conversion=0.1)
        puller = Puller(
            tmp_path, registry.url, ConversionOptions(format="erofs", scratch=tmp_path / "scratch", limits=limits)
        )
        with pytest.raises(PullFailed, match="has not been converted within 0 s"):
            puller.pull("a/b:1")
    assert puller.litter() == []
    assert os.listdir(tmp_path / "scratch") == []
    assert not Path("/proc", pid.read_text().strip()).exists()
