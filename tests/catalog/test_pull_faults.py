"""What fails on the gateway's own side: full disks and a squashfs writer that gives up."""

from __future__ import annotations

import os
import random
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from catalog.conversion_options import ConversionOptions
from catalog.failure import PullAborted, PullFailed
from catalog.limits import Limits
from tests.catalog.lying_registry import LyingRegistry, lying
from tests.catalog.registry_fixture import Puller, build, file, gz, tar
from tests.requires import requires, requires_root

pytestmark = requires("tar2sqfs")

NOISE = random.Random(1).randbytes(3_000_000)


@pytest.fixture
def registry() -> Iterator[LyingRegistry]:
    with lying(build(gz(tar(file("noise", NOISE))))) as registry:
        yield registry


@contextmanager
def small(directory: Path, size: str) -> Iterator[None]:
    """A tmpfs of this size on the directory."""
    directory.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(directory)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", str(directory)], check=True)


@requires_root
def test_a_disk_full_during_download(tmp_path: Path, registry: LyingRegistry) -> None:
    with small(tmp_path / "cache", "1m"):
        puller = Puller(tmp_path, registry.url)
        with pytest.raises(
            PullFailed, match=r"^layer sha256:\S+ of a/b:1 cannot be stored: no space left while writing"
        ):
            puller.pull("a/b:1")
        assert puller.litter() == []


@requires_root
def test_a_disk_full_during_conversion(tmp_path: Path, registry: LyingRegistry) -> None:
    with small(tmp_path / "images", "1m"):
        puller = Puller(tmp_path, registry.url)
        with pytest.raises(PullFailed, match=r"^no space left in \S+ while the image was converted: free some"):
            puller.pull("a/b:1")
        assert puller.litter() == []
        assert list(puller.images.names()) == []


def fake_writer(directory: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Puts a shell script in the place of the squashfs writer; its last argument is the image file."""
    directory.mkdir(exist_ok=True)
    program = directory / "tar2sqfs"
    program.write_text(f'#!/bin/sh\n[ "$1" = --version ] && exit\nfor last; do :; done\n{script}\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{directory}:/usr/bin:/bin")


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        (
            'head -c 1000000 > "$last"; echo "something is wrong" >&2; exit 1',
            "ended with exit status 1: something is wrong",
        ),
        ('cat > "$last"; exit 3', "ended with exit status 3"),
        ('head -c 100 > "$last"; kill -9 $$', "was ended by signal 9"),
        ("cat > /dev/null", "left no image file"),
        ('cat > /dev/null; : > "$last"', "is no squashfs image: it has 0 bytes"),
        ('cat > "$last"', "is no squashfs image of version 4.0"),
    ],
)
def test_a_writer_that_fails(
    tmp_path: Path, registry: LyingRegistry, monkeypatch: pytest.MonkeyPatch, script: str, reason: str
) -> None:
    fake_writer(tmp_path / "bin", script, monkeypatch)
    puller = Puller(tmp_path, registry.url)
    with pytest.raises(PullFailed) as caught:
        puller.pull("a/b:1")
    assert reason in str(caught.value)
    assert puller.litter() == []
    assert list(puller.images.names()) == []


@pytest.mark.parametrize("script", ["exec sleep 600", "cat > /dev/null; exec sleep 600"], ids=["reading", "ending"])
def test_a_writer_that_hangs_is_ended_with_the_pull(
    tmp_path: Path, registry: LyingRegistry, monkeypatch: pytest.MonkeyPatch, script: str
) -> None:
    """By the pull's end (its lease is lost, the gateway shuts down), and by the limit of time."""
    pids = tmp_path / "pids"
    fake_writer(tmp_path / "bin", f"echo $$ >> {pids}; {script}", monkeypatch)
    registry.image = build(gz(tar(file("f", os.urandom(4 << 20)))))
    puller = Puller(tmp_path, registry.url)

    def lost() -> None:
        if pids.exists():
            raise PullAborted("the lease went to another worker")

    with monkeypatch.context() as patch:
        patch.setattr(puller.watcher, "check", lost)
        with pytest.raises(PullAborted, match="lease"):
            puller.pull("a/b:1")
    assert puller.litter() == []
    limited = Puller(tmp_path, registry.url, ConversionOptions(limits=Limits(conversion=0.1)))
    with pytest.raises(PullFailed, match=r"a/b:1 has not been converted within 0 s, which is the limit"):
        limited.pull("a/b:1")
    assert limited.litter() == []
    for pid in pids.read_text().split():
        assert not Path("/proc", pid).exists()


def test_an_image_that_is_cut_off_or_lacks_files_is_noticed(
    tmp_path: Path, registry: LyingRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = "/usr/bin/tar2sqfs"
    for script, reason in [
        (f'{real} "$@" && truncate -s 1000000 "$last"', "is cut off: 1000000 bytes of"),
        (
            f'cat > /dev/null; head -c 1024 /dev/zero | {real} "$@"',
            "wrote an image with 1 files where the layers have 2",
        ),
    ]:
        fake_writer(tmp_path / "bin", script, monkeypatch)
        with pytest.raises(PullFailed, match=reason):
            Puller(tmp_path, registry.url).pull("a/b:1")


def test_an_image_with_other_contents_than_the_layers_is_noticed(
    tmp_path: Path, registry: LyingRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry.image = build(gz(tar(*(file(f"f{number}", b"the same text") for number in range(20)))))
    fake_writer(tmp_path / "bin", 'sed "s/the same text/an other text/" | /usr/bin/tar2sqfs "$@"', monkeypatch)
    with pytest.raises(PullFailed, match=r"an image in which f\d+ holds other bytes than in its layer"):
        Puller(tmp_path, registry.url).pull("a/b:1")


def test_a_writer_that_is_not_installed(
    tmp_path: Path, registry: LyingRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(PullFailed, match=r"tar2sqfs cannot be started .* install squashfs-tools-ng"):
        Puller(tmp_path, registry.url).pull("a/b:1")


@pytest.mark.parametrize(
    ("arguments", "compressor"),
    [
        ((), "zstd"),
        (("-comp", "gzip"), "gzip"),
        (("-comp", "lz4", "-b", "64K"), "lz4"),
        (("-noappend", "-comp", "xz"), "xz"),
    ],
)
def test_converter_options_are_honoured(
    tmp_path: Path, registry: LyingRegistry, arguments: tuple[str, ...], compressor: str
) -> None:
    from catalog.squashfs import read_superblock

    puller = Puller(tmp_path, registry.url, ConversionOptions(arguments=arguments))
    found = read_superblock(puller.images.path(puller.pull("a/b:1").object))
    assert found.compressor == compressor
    assert found.block == (65536 if "-b" in arguments else 131072)


def test_a_converter_option_that_is_not_understood_is_named(tmp_path: Path, registry: LyingRegistry) -> None:
    with pytest.raises(PullFailed, match=r"'-all-root -comp' is not understood; known are -comp"):
        Puller(tmp_path, registry.url, ConversionOptions(arguments=("-all-root", "-comp"))).pull("a/b:1")
