"""The squashfs writer: a tar stream goes in, a verified image file comes out.

Uses tar2sqfs of squashfs-tools-ng, which writes the same bytes for the same stream whatever the number of its
threads. Its exit status is looked at, and what it wrote is read back, before anybody gets to see the file. Format of
the superblock: https://dr-emann.github.io/squashfs/ (checked against mksquashfs).
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import struct
import subprocess
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import blake3

from catalog.child import await_ready, wait_for
from catalog.conversion_options import Squashfs
from catalog.failure import PullFailed
from catalog.layers import Merged
from catalog.tar_fields import shown

MAGIC = 0x73717368
_SUPERBLOCK = struct.Struct("<IIIIIHHHHHHQQQQQQQQ")
_COMPRESSORS = {1: "gzip", 2: "lzma", 3: "lzo", 4: "xz", 5: "lz4", 6: "zstd"}
_PIPE = 1 << 20
WRITER = "tar2sqfs"
READER = "rdsquashfs"


@dataclass(frozen=True)
class Superblock:
    """What a squashfs says about itself. used, block: bytes."""

    inodes: int
    block: int
    compressor: str
    used: int


def write_squashfs(
    path: Path,
    settings: Squashfs,
    workers: int,
    merge: Callable[[Callable[[bytes], object]], Merged],
    check: Callable[[], None] = lambda: None,
) -> Merged:
    """Writes an image file and reads it back. merge(write) passes the merged tar on. check: may raise to end it; called
    about twice a second while the writer is waited for.

    Raises PullFailed, and what merge and check raise. Leaves no file and no process then.
    """
    with SquashfsWriter(path, settings, workers, check) as writer:
        merged = merge(writer.write)
        writer.finish(merged.inodes)
        verify_sample(path, merged.sample)
        return merged


class SquashfsWriter:
    """A running writer. `write` the tar stream, then `finish`; leaving the context otherwise ends it and removes the
    file.
    """

    def __init__(self, path: Path, settings: Squashfs, workers: int, check: Callable[[], None] = lambda: None) -> None:
        """path: must not exist. check: see `write_squashfs`. Raises PullFailed when the program is missing."""
        self.path = path
        self._check = check
        self._kept: int | None = None
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  # closed in __exit__
        command = [WRITER, "-q", "-s", "-c", settings.compressor]
        if settings.level is not None and settings.compressor != "lz4":
            command += ["-X", f"level={settings.level}"]
        command += ["-b", str(settings.block), "-j", str(max(1, workers)), str(path)]
        try:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=self._errors, env=_environment()
            )
        except OSError as error:
            self._errors.close()
            raise PullFailed(f"{WRITER} cannot be started ({error.strerror}): install squashfs-tools-ng") from error
        assert self._process.stdin is not None
        self._stdin = self._process.stdin.fileno()
        os.set_blocking(self._stdin, False)  # a writer that hangs must not make us hang with it
        with contextlib.suppress(OSError):  # a larger pipe is fewer switches; the user's limit may forbid it
            fcntl.fcntl(self._stdin, fcntl.F_SETPIPE_SZ, _PIPE)

    def __enter__(self) -> SquashfsWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        with contextlib.suppress(OSError):
            assert self._process.stdin is not None
            self._process.stdin.close()
        self._errors.close()
        if self._kept is not None:
            os.close(self._kept)
            self._kept = None
        if kind is not None:
            self.path.unlink(missing_ok=True)

    def write(self, data: bytes) -> None:
        """Raises PullFailed when the writer has ended."""
        view = memoryview(data)
        try:
            while view:
                try:
                    view = view[os.write(self._stdin, view) :]
                except BlockingIOError:
                    await_ready(self._stdin, select.POLLOUT, self._check)
        except BrokenPipeError:
            self._process.wait()
            raise self._failure() from None
        self._keep()

    def finish(self, inodes: int) -> Superblock:
        """Waits for the writer and verifies the file: complete, readable, with so many inodes. Raises PullFailed."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        if wait_for(self._process, self._check) != 0:
            raise self._failure()
        if not self.path.is_file():
            raise PullFailed(f"the squashfs writer {WRITER} left no image file")
        found = read_superblock(self.path)
        if found.inodes != inodes:
            raise PullFailed(f"{WRITER} wrote an image with {found.inodes} files where the layers have {inodes}")
        return found

    def _keep(self) -> None:
        """Holds the file open: the writer removes it when it fails, and its blocks then tell whether the disk was
        full.
        """
        if self._kept is None:
            with contextlib.suppress(FileNotFoundError):
                self._kept = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)

    def _failure(self) -> PullFailed:
        if self._full():
            return PullFailed(
                f"no space left in {self.path.parent} while the image was converted: free some, or run "
                "`shifter-admin store gc`"
            )
        status = self._process.returncode
        ended = f"was ended by signal {-status}" if status < 0 else f"ended with exit status {status}"
        self._errors.seek(0)
        lines = self._errors.read(4096).decode("utf-8", "replace").strip().splitlines()
        said = f": {' '.join(lines[-1].split())[:200]}" if lines else ""
        return PullFailed(f"the squashfs writer {WRITER} {ended}{said}")

    def _full(self) -> bool:
        """Whether the file system has no room for as much as one more block."""
        probe = self.path.with_name(self.path.name + ".probe")
        try:
            with probe.open("xb") as file:
                os.posix_fallocate(file.fileno(), 0, 256 << 10)
        except OSError:
            return True
        finally:
            probe.unlink(missing_ok=True)
        return False


def verify_sample(path: Path, sample: Mapping[bytes, str]) -> None:
    """Reads some files back out of the image with another program of the writer's house. Raises PullFailed."""
    for name, expected in sample.items():
        done = subprocess.run([READER, "-c", name, str(path)], capture_output=True, stdin=subprocess.DEVNULL)
        if done.returncode:
            raise PullFailed(f"{WRITER} wrote an image from which {shown(name)} cannot be read")
        if blake3.blake3(done.stdout).hexdigest() != expected:
            raise PullFailed(f"{WRITER} wrote an image in which {shown(name)} holds other bytes than in its layer")


def read_superblock(path: Path) -> Superblock:
    """The superblock of a squashfs file, found to be one and to be complete. Raises PullFailed."""
    with path.open("rb") as file:
        head = file.read(_SUPERBLOCK.size)
        length = file.seek(0, os.SEEK_END)
    if len(head) < _SUPERBLOCK.size:
        raise PullFailed(f"{path.name} is no squashfs image: it has {length} bytes")
    magic, inodes, _, block, _, compressor, _, _, _, major, minor, _, used, *_ = _SUPERBLOCK.unpack(head)
    if magic != MAGIC or (major, minor) != (4, 0):
        raise PullFailed(f"{path.name} is no squashfs image of version 4.0")
    if used > length:
        raise PullFailed(f"{path.name} is cut off: {length} bytes of {used}")
    return Superblock(inodes, block, _COMPRESSORS.get(compressor, str(compressor)), used)


def _environment() -> dict[str, str]:
    """The writer's environment: SOURCE_DATE_EPOCH and the like must not reach into the bytes of an image."""
    return {key: value for key, value in os.environ.items() if key in {"PATH", "LANG", "LC_ALL", "TMPDIR"}}
