"""The content-addressed store: every object is a read-only file named by the BLAKE3 of its bytes.

On disk (docs/format.md has the whole of it):

    objects/ab/cdef…      the object whose BLAKE3 is abcdef…, mode 0444
    by-sha256/ab/cdef…    relative symbolic link to the object whose SHA-256 is abcdef…
    tmp/                  what is being written; gc removes what is stale
    condemned/            objects on their way out; a put or a look-up of one brings it back

The contract, which the tests hold on every file system they can get:

- A put that returned has put: the bytes, the name and the link by SHA-256 survive a power cut (fsync of file and
  directories).
- A put is idempotent, and it renews the object: gc counts its grace from the last put or `renew`.
- A name is never given to other bytes: an expected SHA-256 or size that does not match leaves nothing behind.
- A reader gets verified bytes (`open_verified`) unless it asks for others by that name (`open_unverified`, `path`).
- Writers never wait for each other or for gc: each writes under a temporary name and then links, which only one can
  win; no file locks are used, so a store may lie on NFS or Lustre.

It does not know what the objects are, nor which are needed: `cas.gc` is told by its caller.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from cas.copying import Syncing, copy_in, copy_open
from cas.errors import NameInvalid, ObjectCorrupt, ObjectMissing, StoreError
from cas.files import make_directory, naming, sync_directory
from cas.hashing import CHUNK, Names, hash_blake3, hash_file
from cas.writer import Writer

__all__ = ["Object", "Store", "Writer", "check_name"]

_NAME = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Object:
    """What a put returns. Its bytes are durable and verified.

    name: BLAKE3, 64 lower-case hexadecimal digits. sha256: the same form, no "sha256:" before it. size: bytes.
    """

    name: str
    sha256: str
    size: int


def check_name(name: str) -> str:
    """Returns the name when it is one; raises NameInvalid. Whatever builds a path from a name comes through here."""
    if not _NAME.fullmatch(name):
        raise NameInvalid(f"{name[:80]!r} is not an object name: 64 lower-case hexadecimal digits are")
    return name


_FLIPS = 3  # looks at both places before an object is said to be in neither: collections move it to and fro


class Store:
    """A store in one directory. Instances are cheap, hold no open files, and may be shared by threads and processes."""

    def __init__(self, root: Path, *, sync: bool = True, private: bool = False) -> None:
        """Opens the store and creates its layout when absent.

        sync: wait for the disk (False gives up durability, nothing else). private: a store that is created now is
        readable by its owner only. Raises StoreError.
        """
        self.root = root
        self.sync = sync
        if not (root / "condemned").is_dir():
            with naming(root, "creating store"):
                root.parent.mkdir(parents=True, exist_ok=True)
            make_directory(root, mode=0o700 if private else 0o755, sync=sync)
            for part in ("objects", "by-sha256", "tmp", "quarantine", "leases", "condemned"):
                make_directory(root / part, mode=0o755, sync=sync)

    # -- writing ---------------------------------------------------------------------------------------------

    def writer(self, *, sha256: str | None = None, size: int | None = None, resume: bool = False) -> Writer:
        """A writer for bytes that come piece by piece. sha256, size: what `commit` must find, else it refuses.

        resume: begin with what another writer of the same sha256 left behind (one that was killed, or that was told to
        `keep`); `written` says how much that is. Two at once do not share: the second begins anew.
        """
        return Writer(self, sha256=sha256, size=size, resume=resume)

    def put_stream(self, stream: BinaryIO, *, sha256: str | None = None, size: int | None = None) -> Object:
        """Puts what the stream holds from its position to its end.

        Raises DigestMismatch, SizeMismatch, StoreFull, StoreError, and whatever reading the stream raises.
        """
        with self.writer(sha256=sha256, size=size) as writer:
            while chunk := stream.read(CHUNK):
                writer.write(chunk)
            return writer.commit()

    def put_file(self, source: Path, *, name: str | None = None) -> Object:
        """Puts a copy of a file. name: the object that it must be, else nothing is put.

        Raises SourceChanged when the file was written to meanwhile, DigestMismatch, StoreFull, StoreError.
        """
        return copy_in(self, source, name=name)

    def put_open(self, fd: int, source: Path, *, progress: Callable[[int], object] | None = None) -> Object:
        """Puts a copy of a file that is open as fd, from its start; source: how messages call it. progress: gets the
        bytes copied so far (not where blocks are shared), and may raise to end it.

        Raises as put_file, and what progress raises.
        """
        return copy_open(self, fd, source, progress=progress)

    def adopt(self, temporary: Path) -> Object:
        """Makes an object of a file that some tool wrote under a name from `temporary()`; the name is gone
        afterwards.

        The file is hashed, synced, made read-only and moved in, not copied. Raises StoreError when it lies elsewhere
        or is no regular file.
        """
        if temporary.parent != self.root / "tmp":
            raise StoreError(f"{temporary} cannot be adopted: it is not directly below {self.root / 'tmp'}")
        with naming(temporary, "adopting"):
            file = os.fdopen(os.open(temporary, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC), "rb", buffering=0)
            with file:
                if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                    raise StoreError(f"{temporary} cannot be adopted: it is not a regular file")
                return self.settle(file.fileno(), temporary)

    def temporary(self, suffix: str = "") -> Path:
        """A fresh name below tmp/ on the store's file system. No file is made. What is left there, gc sweeps once
        stale.
        """
        return self.root / "tmp" / f"{os.getpid()}-{os.urandom(8).hex()}{suffix}"

    def settle(self, fd: int, temporary: Path, names: Names | None = None) -> Object:
        """Syncs and names a complete temporary file that is open as fd; the temporary name is gone afterwards.

        names: of its bytes, when they are known; else the file is hashed while the disk works. For the ways into the
        store; everybody else uses a put or `adopt`.
        """
        with naming(temporary, "finishing"):
            os.fchmod(fd, 0o444)
            syncing = Syncing(fd, sync=self.sync)
            try:
                names = names or hash_file(fd)
            finally:
                syncing.wait()
        return self.name_file(fd, temporary, names, synced=True)

    def name_file(self, fd: int, temporary: Path, names: Names, *, synced: bool = False) -> Object:
        """Gives a complete temporary file its name, durably, and removes the temporary name."""
        path = self._object_path(names.blake3)
        if not synced:
            with naming(temporary, "finishing"):
                os.fchmod(fd, 0o444)
                if self.sync:
                    os.fsync(fd)
        make_directory(path.parent, mode=0o755, sync=self.sync)
        while True:
            with naming(path, "naming"):
                try:
                    os.link(temporary, path)
                except FileExistsError:
                    # The same bytes are here already. Renew them, so that a gc that has just judged them old lets them
                    # live; when it took them away between the two calls, link again.
                    if not self.renew(names.blake3):
                        continue
            break
        if self.sync:
            sync_directory(path.parent)
        self._link_sha256(names)
        with naming(temporary, "removing"):
            temporary.unlink(missing_ok=True)
        return Object(names.blake3, names.sha256, names.size)

    def _link_sha256(self, names: Names) -> None:
        link = self._sha256_path(names.sha256)
        make_directory(link.parent, mode=0o755, sync=self.sync)
        target = f"../../objects/{names.blake3[:2]}/{names.blake3[2:]}"
        with naming(link, "linking"):
            while not self._linked(link, target):
                pass  # a gc took it between the two looks
        if self.sync:
            sync_directory(link.parent)

    def _linked(self, link: Path, target: str) -> bool:
        try:
            link.symlink_to(target)
        except FileExistsError:
            try:
                if str(link.readlink()) == target:
                    return True
            except FileNotFoundError:
                return False
            # Left by a damaged store: replace it in one step, readers see the one or the other.
            fresh = self.temporary(".link")
            fresh.symlink_to(target)
            fresh.replace(link)
        return True

    # -- reading ---------------------------------------------------------------------------------------------

    def path(self, name: str) -> Path:
        """The object's file, for mounting: its bytes are as they were put, but are not verified again. Raises
        ObjectMissing.
        """
        path = self._object_path(check_name(name))
        if not path.exists() and not self._pardon(name):
            raise ObjectMissing(f"object {name} is not in the store {self.root}")
        return path

    def open_verified(self, name: str) -> BinaryIO:
        """The object, opened for reading, each byte verified before the first is handed out (so this reads all of it
        once).

        Raises ObjectMissing, ObjectCorrupt.
        """
        file = self.open_unverified(name)
        try:
            with naming(self._object_path(name), "reading"):
                found = hash_blake3(file.fileno())
            if found != name:
                raise ObjectCorrupt(
                    f"object {name} in {self.root} is damaged (hash {found}): run `shifter-admin store scrub`"
                )
            file.seek(0)
        except BaseException:
            file.close()
            raise
        return file

    def open_unverified(self, name: str) -> BinaryIO:
        """The object, opened for reading, as the disk gives it. Raises ObjectMissing."""
        while True:
            path = self.path(name)
            try:
                return path.open("rb")
            except FileNotFoundError:
                continue  # a gc has just moved it aside: `path` brings it back, or says that it is gone
            except OSError as error:
                raise StoreError(f"reading {path} failed: {error.strerror}") from error

    def find_sha256(self, digest: str) -> str | None:
        """The name of the object with this SHA-256 (64 hexadecimal digits), or None when it is not here."""
        link = self._sha256_path(check_name(digest))
        try:
            target = link.readlink()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StoreError(f"reading {link} failed: {error.strerror}") from error
        name = target.parent.name + target.name
        return name if _NAME.fullmatch(name) and self.contains(name) else None

    def contains(self, name: str) -> bool:
        path = self._object_path(check_name(name))
        return path.exists() or self._pardon(name)

    def size(self, name: str) -> int:
        """Bytes of an object. Raises ObjectMissing."""
        with naming(self._object_path(check_name(name)), "looking at"):
            while True:
                with contextlib.suppress(FileNotFoundError):  # as in open_unverified
                    return self.path(name).stat().st_size

    def names(self) -> Iterator[str]:
        """Every object's name, in no order. Objects put or deleted meanwhile may or may not be among them."""
        for prefix in _entries(self.root / "objects"):
            if len(prefix) != 2:
                continue
            for rest in _entries(self.root / "objects" / prefix):
                name = prefix + rest
                if _NAME.fullmatch(name):
                    yield name

    # -- ageing ----------------------------------------------------------------------------------------------

    def renew(self, name: str) -> bool:
        """Says that the object is needed now, which starts gc's grace again. False when it is not here."""
        path = self._object_path(check_name(name))
        for attempt in range(2):
            with naming(path, "renewing"):
                try:
                    os.utime(path)
                    return True
                except FileNotFoundError:
                    if attempt or not self._pardon(name):
                        return False
        return False

    def delete(self, name: str) -> bool:
        """Removes an object and its link by SHA-256, whoever may want it (gc is the careful way). False when it is
        not here.
        """
        path = self._object_path(check_name(name))
        links = [link for link, target in self.sha256_links() if target == name]
        removed = False
        with naming(path, "deleting"):
            # Links first: what a link by SHA-256 names must be there, also when the power is cut between the two.
            for link in links:
                link.unlink(missing_ok=True)
            for place in (path, *self._condemned(name)):
                with contextlib.suppress(FileNotFoundError):
                    place.unlink()
                    removed = True
        if removed and self.sync:
            for directory in {path.parent, *(link.parent for link in links)}:
                sync_directory(directory)
        return removed

    def sha256_links(self) -> Iterator[tuple[Path, str]]:
        """Each link by SHA-256 with the object name in its target (which may be gone, or no name at all in a damaged
        store).
        """
        top = self.root / "by-sha256"
        for prefix in _entries(top):
            for rest in _entries(top / prefix):
                link = top / prefix / rest
                with contextlib.suppress(OSError):
                    target = link.readlink()
                    yield link, target.parent.name + target.name

    def _pardon(self, name: str) -> bool:
        """Brings an object back that a gc is about to remove (it judges again before it does). False when there is
        none.
        """
        path = self._object_path(name)
        for _ in range(_FLIPS):
            for aside in self._condemned(name):
                try:
                    os.link(aside, path)
                except FileExistsError:
                    return True
                except FileNotFoundError:
                    continue  # brought back or taken over, by another name, since it was listed
                except OSError as error:
                    raise StoreError(f"bringing {name} back from {aside} failed: {error.strerror}") from error
                return True
            if path.exists():
                return True
        return False

    def _condemned(self, name: str) -> list[Path]:
        """The files that collections have set aside of an object (cas.gc)."""
        aside = self.root / "condemned"
        return [aside / entry for entry in _entries(aside) if entry.partition("~")[0] == name]

    def _object_path(self, name: str) -> Path:
        return self.root / "objects" / name[:2] / name[2:]

    def _sha256_path(self, digest: str) -> Path:
        return self.root / "by-sha256" / digest[:2] / digest[2:]


def _entries(directory: Path) -> list[str]:
    try:
        return [entry.name for entry in directory.iterdir()]
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise StoreError(f"listing {directory} failed: {error.strerror}") from error
