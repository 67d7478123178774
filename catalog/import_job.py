"""Carries an import out: a file that a user prepared becomes an image.

What may be imported is what the asking user could read himself, judged by owners, modes and access control lists along
the path (catalog.rights), without following links; the gateway may run as root, and must not lend its rights. A squashfs
is copied into the store in one pass, and refused when it is damaged or carries extended attributes (they could hold file
capabilities, and there is no way to take them out but to write the image anew). OCI layouts and docker-archives go
through the same conversion as a pull. Kernels mount what comes in: who may import is the administrator's choice
(ImportUsers).
"""

from __future__ import annotations

import os
import resource
import stat
import struct
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from cas.errors import StoreError
from cas.store import Store
from catalog.callers import groups_of
from catalog.child import wait_for
from catalog.config import Configuration, Platform
from catalog.conversion_options import ConversionOptions
from catalog.failure import PullFailed
from catalog.layout import pull_layout
from catalog.publication import Publication
from catalog.record import Attempt, Image, Record
from catalog.rights import READ, SEARCH, rights
from catalog.scratch import scratch
from catalog.states import Stage
from catalog.workers import Watch

FORMATS = ("squashfs", "oci-layout", "docker-archive")
_ALIASES = {"oci": "oci-layout", "oci-archive": "oci-layout", "docker": "docker-archive"}

# Superblock of squashfs 4.0: https://dr-emann.github.io/squashfs/
_SUPERBLOCK = struct.Struct("<IIIIIHHHHHHQQQQQQQQ")
_MAGIC = 0x73717368
_NO_TABLE = 2**64 - 1

_READER_LIMITS = {
    resource.RLIMIT_AS: 2 << 30,  # bytes of memory: about 14 million paths
    resource.RLIMIT_CPU: 600,  # seconds
    resource.RLIMIT_FSIZE: 1 << 20,  # bytes of messages
    resource.RLIMIT_CORE: 0,
}


class ImportJob:
    """A workers' Job for imports. `layers` gives the store of layers that pulls use."""

    def __init__(
        self,
        configuration: Configuration,
        publication: Publication,
        layers: Callable[[], Store],
        options: Callable[[Configuration, Platform], ConversionOptions],
    ) -> None:
        self._configuration = configuration
        self._publication = publication
        self._layers = layers
        self._options = options

    def carry_out(self, record: Record, watch: Watch) -> Image:
        attempt = record.attempt
        assert attempt is not None
        platform = self._configuration.platforms.get(record.reference.system)
        if platform is None:
            raise PullFailed(f"system {record.reference.system} is not configured here any more")
        form = _ALIASES.get(attempt.format or "", attempt.format)
        if form not in FORMATS:
            raise PullFailed(f"format {attempt.format!r} cannot be imported; use {', '.join(FORMATS)}")
        path = Path(attempt.path or "")
        with _opened_for(path, attempt) as descriptor:
            if form == "squashfs":
                try:
                    return self._squashfs(path, descriptor, platform, watch)
                except StoreError as error:
                    raise PullFailed(str(error)) from error
            return self._converted(path, descriptor, platform, watch, attempt)

    def _squashfs(self, path: Path, descriptor: int, platform: Platform, watch: Watch) -> Image:
        store = self._publication.place(platform).store
        with os.fdopen(os.dup(descriptor), "rb") as source:
            size = check_squashfs(source, path)

        def copied(done: int) -> None:
            watch.check()
            watch.progress(done=done, total=size, layers_done=0, layers=1)

        stored = store.put_open(descriptor, path, progress=copied)
        # What counts is what was copied: the path's owner may have put other bytes there since the first look.
        with store.open_unverified(stored.name) as copy:
            check_squashfs(copy, path)
        watch.stage(Stage.TRANSFER)
        _check_readable(store.path(stored.name), path, watch.check)
        return Image(
            id=stored.name,
            object=stored.name,
            size=stored.size,
            format="squashfs",
            arch=platform.arch,
            anonymous=False,
        )

    def _converted(self, path: Path, descriptor: int, platform: Platform, watch: Watch, attempt: Attempt) -> Image:
        groups = groups_of(attempt.uid, attempt.gid)

        def allowed(descriptor: int, right: int) -> None:
            _need(descriptor, right, attempt.uid, groups, path)

        with scratch(self._configuration.expand_directory) as place:
            # By the descriptor: the path's owner could put another file in its place meanwhile.
            name = place / path.name
            name.symlink_to(f"/proc/self/fd/{descriptor}")
            store = self._publication.place(platform).store
            options = self._options(self._configuration, platform)
            return Image.of(pull_layout(name, platform, self._layers(), store, watch, options, allowed=allowed))


def check_squashfs(source: BinaryIO, path: Path) -> int:
    """Reads the superblock; returns the file's bytes. Raises PullFailed when it is none, cut off, or has attributes."""
    head = source.read(_SUPERBLOCK.size)
    length = source.seek(0, os.SEEK_END)
    if len(head) < _SUPERBLOCK.size:
        raise PullFailed(f"{path} is no squashfs image: it has {length} bytes")
    magic, _, _, _, _, _, _, _, _, major, minor, _, used, _, xattrs, *_ = _SUPERBLOCK.unpack(head)
    if magic != _MAGIC or (major, minor) != (4, 0):
        raise PullFailed(f"{path} is no squashfs image of version 4.0")
    if used > length:
        raise PullFailed(f"{path} is cut off: it has {length} of {used} bytes")
    if xattrs != _NO_TABLE:
        raise PullFailed(f"{path} holds extended attributes; make it anew with mksquashfs -no-xattrs")
    return length


def _check_readable(stored: Path, path: Path, check: Callable[[], None]) -> None:
    """Walks all directories of the image, outside the kernel. check: called meanwhile, ends it by raising."""
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(
            ["rdsquashfs", "-d", str(stored)], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=said
        )
        with process:
            try:
                # A few directories that name each other often make as many paths as the image's maker likes.
                for limit, most in _READER_LIMITS.items():
                    resource.prlimit(process.pid, limit, (most, most))
                status = wait_for(process, check)
            except BaseException:
                process.kill()
                raise
        if status == 0:
            return
        said.seek(0)
        lines = said.read(4096).decode(errors="replace").strip().splitlines()
    reason = lines[-1] if lines else f"rdsquashfs ended with {status}"
    if status < 0 or "out of memory" in reason:
        raise PullFailed(f"{path} unfolds to more paths than can be walked; make it anew with mksquashfs ({reason})")
    raise PullFailed(f"{path} is damaged: {reason}")


@contextmanager
def _opened_for(path: Path, attempt: Attempt) -> Iterator[int]:
    """A descriptor of the file or directory at `path`, which the user of `attempt` could open too. Raises PullFailed."""
    if not path.is_absolute() or ".." in path.parts:
        raise PullFailed(f"{path} is no absolute path")
    groups = groups_of(attempt.uid, attempt.gid)
    descriptor = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        walked = Path("/")
        for part in path.parts[1:]:
            _need(descriptor, SEARCH, attempt.uid, groups, walked)
            walked /= part
            deeper = _step(descriptor, part, walked)
            os.close(descriptor)
            descriptor = deeper
        found = os.fstat(descriptor)
        _need(descriptor, READ, attempt.uid, groups, walked)
        if stat.S_ISDIR(found.st_mode):
            _need(descriptor, SEARCH, attempt.uid, groups, walked)
        if not (stat.S_ISREG(found.st_mode) or stat.S_ISDIR(found.st_mode)):
            raise PullFailed(f"{path} is neither a file nor a directory")
        opened = os.open(f"/proc/self/fd/{descriptor}", os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise PullFailed(f"cannot read {path}: {error.strerror}") from error
    finally:
        os.close(descriptor)
    try:
        yield opened
    finally:
        os.close(opened)


def _step(directory: int, part: str, walked: Path) -> int:
    descriptor = os.open(part, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
    if stat.S_ISLNK(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise PullFailed(f"{walked} is a symbolic link; give the path of the file itself")
    return descriptor


def _need(descriptor: int, right: int, uid: int, groups: frozenset[int], walked: Path) -> None:
    """Raises PullFailed unless the user has `right` on the open file, as the kernel would decide."""
    if not rights(descriptor, uid, groups) & right:
        raise PullFailed(f"{walked} is not yours to read; an import takes only what its user may read")
