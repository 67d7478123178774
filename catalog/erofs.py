"""The EROFS writer: an image that newer kernels (6.12) mount straight from the file, with no loop device.

mkfs.erofs reads a directory only, so this is the one format for which the merged tree is unpacked: into a private
directory that is removed whatever happens. Names are walked by open directories and no link is followed. Only root
can keep the owners of files; for another user's gateway every file is root's in the image. Bytes are the same for the
same content. Format: https://erofs.docs.kernel.org/.
"""

from __future__ import annotations

import contextlib
import os
import re
import struct
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from catalog.child import wait_for
from catalog.conversion_options import OptionsInvalid
from catalog.failure import PullFailed
from catalog.layers import Merged, normal
from catalog.limits import Limits
from catalog.scratch import scratch as directory_below
from catalog.tar import DIRECTORY, FIFO, LINK, REGULAR, SYMLINK, Member, TarReader

WRITER = "mkfs.erofs"
CHECKER = "fsck.erofs"
_MAGIC = 0xE0F5E1E2
_SUPERBLOCK = struct.Struct("<IIIBBHQ")
_NO_UUID = "00000000-0000-0000-0000-000000000000"
_OPTION = re.compile(r"-z(lz4|lz4hc)(,\d{1,2})?|-C\d{4,7}|-E[a-z0-9^,=-]{1,60}")
# The latest date there is: mkfs.erofs dates the image so, and cuts files' dates to it.
_EPOCH = str(2**32 - 1)


def arguments(words: tuple[str, ...]) -> list[str]:
    """The writer's settings, lz4 unless configured. Raises OptionsInvalid for a word that is none of its settings."""
    for word in words:
        if not _OPTION.fullmatch(word):
            raise OptionsInvalid(
                f"ConverterOptions: {word!r} is not understood; known are -zlz4, -zlz4hc,N, -CBYTES, -E…"
            )
    return list(words) or ["-zlz4"]


def write_erofs(
    path: Path,
    words: tuple[str, ...],
    limits: Limits,
    merge: Callable[[Callable[[bytes], object]], Merged],
    scratch: Path,
    check: Callable[[], None] = lambda: None,
) -> Merged:
    """Writes an image file. merge(write) passes the merged tar on; scratch: a directory for the unpacked tree; check: may
    raise to end it, called about twice a second while the writer is waited for.

    Raises PullFailed, OptionsInvalid, and what merge and check raise. Leaves no file and no process then.
    """
    command = [WRITER, "--quiet", *arguments(words), "--preserve-mtime", "-U", _NO_UUID]
    if os.geteuid() != 0:
        command += ["--force-uid=0", "--force-gid=0"]
    try:
        with directory_below(scratch) as tree:
            root = tree / "root"
            root.mkdir(0o755)
            merged = _unpack(root, limits, merge)
            _run([*command, str(path), str(root)], path, check)
            _verify(path, merged, check)
            return merged
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def _unpack(root: Path, limits: Limits, merge: Callable[[Callable[[bytes], object]], Merged]) -> Merged:
    """Unpacks what merge passes on, as it comes: merge runs in this thread, the unpacking in another."""
    reading, writing = os.pipe()
    failure: list[BaseException] = []

    def unpack() -> None:
        try:
            with _Unpacker(root) as unpacker:
                reader = TarReader(lambda: os.read(reading, 1 << 20), limits)
                while (member := reader.next()) is not None:
                    unpacker.add(normal(member.name, limits), member, reader)
        except OSError as error:
            failure.append(PullFailed(f"unpacking for {WRITER} in {root.parent} failed: {error.strerror}"))
        finally:
            os.close(reading)

    thread = threading.Thread(target=unpack, name="unpack")
    thread.start()
    try:
        with os.fdopen(writing, "wb", buffering=0) as pipe:
            merged = merge(lambda data: _write_all(pipe.fileno(), data))
    except BrokenPipeError:
        thread.join()
        raise failure[0] from None
    finally:
        thread.join()
    if failure:
        raise failure[0]
    return merged


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


class _Unpacker:
    """Makes files below a root, by open directories, never through a link."""

    def __init__(self, root: Path) -> None:
        self._root = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._at: tuple[bytes, int] = (b"", os.dup(self._root))
        # The root may have no entry of its own; its date must not be that of the moment.
        self._directories = {b"": Member(b"", DIRECTORY, 0o755, 0, 0, 0, 0, b"", 0, None, {}, None)}
        self._owners = os.geteuid() == 0

    def __enter__(self) -> _Unpacker:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if kind is None:
            for path in sorted(self._directories, reverse=True):
                self._dress(path, self._directories[path])
        os.close(self._at[1])
        os.close(self._root)

    def add(self, path: bytes, member: Member, reader: TarReader) -> None:
        if not path:
            self._directories[b""] = member
            return
        parent, _, base = path.rpartition(b"/")
        directory = self._parent(parent)
        if member.kind == DIRECTORY:
            with contextlib.suppress(FileExistsError):
                os.mkdir(base, 0o700, dir_fd=directory)
            self._directories[path] = member
            return
        if member.kind == LINK:
            target, _, name = normal(member.link, Limits()).rpartition(b"/")
            with self._opened(target) as source:
                os.link(name, base, src_dir_fd=source, dst_dir_fd=directory, follow_symlinks=False)
            return
        if member.kind == REGULAR:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            fd = os.open(base, flags, 0o600, dir_fd=directory)
            try:
                left = member.size
                for piece in reader.pieces():
                    _write_all(fd, piece[:left])
                    left -= min(left, len(piece))
            finally:
                os.close(fd)
        elif member.kind == SYMLINK:
            os.symlink(member.link, base, dir_fd=directory)
        elif member.kind == FIFO:
            os.mkfifo(base, 0o600, dir_fd=directory)
        self._dress(path, member)

    def _dress(self, path: bytes, member: Member) -> None:
        """Owner, mode and date of what was just made."""
        parent, _, base = path.rpartition(b"/")
        directory, name = self._parent(parent), base or b"."
        if self._owners:
            os.chown(name, member.uid, member.gid, dir_fd=directory, follow_symlinks=False)
        if member.kind != SYMLINK:
            os.chmod(name, member.mode, dir_fd=directory)
        for key, value in member.xattrs.items():
            fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory)
            try:
                os.setxattr(fd, key, value)
            finally:
                os.close(fd)
        os.utime(name, (member.mtime, member.mtime), dir_fd=directory, follow_symlinks=False)

    def _parent(self, path: bytes) -> int:
        """The open directory of a path; the last one asked for stays open."""
        if self._at[0] != path:
            with contextlib.ExitStack() as stack:
                fd = os.dup(self._root)
                stack.callback(lambda: os.close(fd))
                for part in path.split(b"/") if path else ():
                    with contextlib.suppress(FileExistsError):
                        os.mkdir(part, 0o755, dir_fd=fd)
                    inner = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=fd)
                    os.close(fd)
                    fd = inner
                stack.pop_all()
            os.close(self._at[1])
            self._at = (path, fd)
        return self._at[1]

    @contextlib.contextmanager
    def _opened(self, path: bytes) -> Iterator[int]:
        """A directory beside the one that `_parent` keeps open."""
        kept, self._at = self._at, (b"", os.dup(self._root))
        try:
            yield self._parent(path)
        finally:
            os.close(self._at[1])
            self._at = kept


def _run(command: list[str], path: Path, check: Callable[[], None]) -> None:
    environment = {"PATH": os.environ.get("PATH", os.defpath), "SOURCE_DATE_EPOCH": _EPOCH}
    with tempfile.TemporaryFile() as output:
        try:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, env=environment
            )
        except OSError as error:
            raise PullFailed(f"{command[0]} cannot be started ({error.strerror}): install erofs-utils") from error
        try:
            status = wait_for(process, check)
        finally:
            process.kill()
            process.wait()
        output.seek(0)
        lines = output.read(1 << 20).decode("utf-8", "replace").strip().splitlines()
    if status:
        said = f": {' '.join(lines[-1].split())[:200]}" if lines else ""
        if any("No space left" in line for line in lines):
            raise PullFailed(f"no space left in {path.parent} while the image was converted: free some")
        raise PullFailed(f"{command[0]} ended with exit status {status}{said}")


def _verify(path: Path, merged: Merged, check: Callable[[], None]) -> None:
    """The file is an EROFS with so many inodes, all of whose contents can be read. Raises PullFailed."""
    found = read_inode_count(path)
    if found != merged.inodes:
        raise PullFailed(f"{WRITER} wrote an image with {found} files where the layers have {merged.inodes}")
    _run([CHECKER, "--extract", str(path)], path, check)


def read_inode_count(path: Path) -> int:
    """Inodes of an EROFS image as its superblock has them. Raises PullFailed when it is none."""
    with path.open("rb") as file:
        file.seek(1024)
        head = file.read(_SUPERBLOCK.size)
    if len(head) < _SUPERBLOCK.size or _SUPERBLOCK.unpack(head)[0] != _MAGIC:
        raise PullFailed(f"{path.name} is no EROFS image")
    return int(_SUPERBLOCK.unpack(head)[6])
