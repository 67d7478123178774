"""Brings the image directories of the platforms in step with the catalog: which files nodes find, and for whom.

Who may run an image *file* is the union over the references that point to it. `Publication` computes that union in one
place and one at a time for each image (a lease), so that two pulls that end together cannot each forget the other.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import shutil
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from cas.errors import StoreError
from cas.files import sync_directory
from cas.store import Store
from catalog import remote
from catalog.acl import NOBODY, PUBLIC, Access
from catalog.config import Configuration, Platform
from catalog.failure import PullFailed
from catalog.image_list import ImageList
from catalog.record import Image
from catalog.states import NotAllowed

log = logging.getLogger("shifter.publication")

_OWED = ".unsettled"
_PATIENCE = 60.0  # seconds in which a change that is at work settles itself


class Publisher(Protocol):
    """What catalog.publish offers."""

    def publish(self, image_dir: Path, images: Store, image: Image, access: Access) -> None: ...

    def withdraw(self, image_dir: Path, image_id: str) -> None: ...


@dataclass(frozen=True)
class Place:
    """Where one platform's image files are made: its directory and the store in it."""

    directory: Path
    store: Store


class Publication:
    """Publishes and withdraws images. `alone` gives a context in which this thread alone holds a name, everywhere."""

    def __init__(
        self,
        configuration: Configuration,
        images: ImageList,
        publisher: Publisher,
        alone: Callable[[str], AbstractContextManager[None]],
    ) -> None:
        self._configuration = configuration
        self._images = images
        self._publisher = publisher
        self._alone = alone
        self._places: dict[str, Place] = {}

    def place(self, platform: Platform) -> Place:
        if platform.name not in self._places:
            directory = platform.image_dir
            if platform.accesstype == "remote":
                # The files are made here, then copied: catalog.remote.
                directory = self._configuration.state_directory / "platforms" / platform.name
            directory.mkdir(parents=True, exist_ok=True)
            store = Store(directory / "cas")
            if platform.accesstype == "local":
                stripe(store.root / "tmp", self._configuration.lustre_stripes)
            self._places[platform.name] = Place(directory, store)
        return self._places[platform.name]

    @contextmanager
    def changing(self, platform: Platform, image_id: str) -> Iterator[None]:
        """While it lasts, nobody else changes who may run this image."""
        with self._alone(f"publish:{platform.name}:{image_id}"):
            yield

    def access(self, platform: Platform, image_id: str, extra: Access | None = None) -> Access | None:
        """Who may run the image file: the union over usable references (and `extra`); None when nobody points to it."""
        union: Access | None = extra
        for record in self._images.with_image(image_id):
            if not self._shares(platform, record.reference.system) or record.image is None or record.access is None:
                continue
            union = (union or NOBODY) | record.access
            if record.image.anonymous:
                # The registry gives this content to anybody, so the file needs no guard, whatever its tags need.
                union = PUBLIC
        return union

    def publish(self, platform: Platform, image: Image, extra: Access | None = None) -> None:
        """Lets nodes find `image`; call it inside `changing`."""
        union = self.access(platform, image.id, PUBLIC if image.anonymous else extra)
        if union is not None:
            place = self.place(platform)
            self._publisher.publish(place.directory, place.store, image, union)
            if platform.ssh is not None:
                remote.deliver(platform, place.directory, image, place.store.path(image.object))

    def settle(self, platform: Platform, image_id: str) -> None:
        """After a reference to the image changed: publishes the union anew, or withdraws what nobody points to or leases."""
        with self.changing(platform, image_id):
            if self.access(platform, image_id) is not None:
                newest = next(r.image for r in self._images.with_image(image_id) if r.image is not None)
                self.publish(platform, newest)
            elif not self._leased(platform, image_id):
                self._withdraw(platform, image_id)
        self._end_leases(platform)

    @contextmanager
    def owing(self, platform: Platform, image_id: str, *, later: bool = False) -> Iterator[None]:
        """Around a change to who may run the image and its settling: what a kill, or a far side that is away, leaves undone
        `pay` does later; with `later` all of it is left to `pay`. A change that is refused (NotAllowed) owes nothing.
        """
        note = self._note(platform, image_id)
        try:
            yield
        except NotAllowed:
            note.unlink(missing_ok=True)
            raise
        if later:
            _is_due(note)
        else:
            note.unlink(missing_ok=True)

    def owe(self, platform: Platform, image_id: str) -> None:
        """Leaves it to `pay` to bring nodes in step with a change that was made."""
        _is_due(self._note(platform, image_id))

    def owes(self, platform: Platform, image_id: str) -> bool:
        """Whether there is a change to who may run the image of which nodes do not know yet, as far as this gateway can tell."""
        return next(self.place(platform).directory.glob(f".{image_id}.*{_OWED}"), None) is not None

    def pay(self, platforms: Iterable[Platform] | None = None, patience: float = _PATIENCE) -> int:
        """Brings the nodes of `platforms` (all) in step with the changes that are left to it, or were not settled `patience`
        seconds after they began, whichever gateway made them. Returns how many could not be settled now either; why is
        logged.
        """
        return sum(self._pay(one, patience) for one in platforms or self._configuration.platforms.values())

    def _pay(self, platform: Platform, patience: float) -> int:
        due: dict[str, list[Path]] = {}
        for note in self._notes(platform):
            with contextlib.suppress(FileNotFoundError):  # settled since it was listed
                if abs(time.time() - note.stat().st_mtime) >= patience:
                    due.setdefault(note.name.split(".")[1], []).append(note)
        left = sum(map(len, due.values()))
        for image_id, notes in due.items():
            try:
                self.settle(platform, image_id)
                for note in notes:
                    note.unlink(missing_ok=True)  # another gateway may have been faster
                left -= len(notes)
            except remote.Away as error:
                log.warning("%d changes have not reached the nodes: %s", left, error)
                break  # each further image would cost the time limits of a connection again
            except (PullFailed, StoreError, OSError) as error:
                log.warning("%s: nodes do not know yet who may run it: %s", image_id, error)
        return left

    def _note(self, platform: Platform, image_id: str) -> Path:
        place = self.place(platform)
        note = place.directory / f".{image_id}.{secrets.token_hex(8)}{_OWED}"
        note.touch()
        if place.store.sync:
            sync_directory(place.directory)
        return note

    def _notes(self, platform: Platform) -> list[Path]:
        return sorted(self.place(platform).directory.glob(f".*{_OWED}"))

    def lease(self, platform: Platform, image_id: str) -> None:
        """A job was submitted that knows the image by its id alone: its file stays for ImageLeaseTime from now.

        The lease is the age of `<id>.lease` beside the image, so that every gateway of the platform sees it.
        """
        self._lease_file(platform, image_id).touch()

    def _lease_file(self, platform: Platform, image_id: str) -> Path:
        return self.place(platform).directory / f"{image_id}.lease"

    def _leased(self, platform: Platform, image_id: str) -> bool:
        try:
            begun = self._lease_file(platform, image_id).stat().st_mtime
        except FileNotFoundError:
            return False
        return time.time() - begun < self._configuration.image_lease.total_seconds()

    def _end_leases(self, platform: Platform) -> None:
        """Forgets leases that have run out, and withdraws their images where nobody points to them any more."""
        for file in self.place(platform).directory.glob("*.lease"):
            if self._leased(platform, file.stem):
                continue
            with self.changing(platform, file.stem):
                if self.access(platform, file.stem) is None:
                    self._withdraw(platform, file.stem)
                file.unlink(missing_ok=True)

    def _withdraw(self, platform: Platform, image_id: str) -> None:
        self._publisher.withdraw(self.place(platform).directory, image_id)
        if platform.ssh is not None:
            remote.withdraw(platform, image_id)

    def _shares(self, platform: Platform, system: str) -> bool:
        other = self._configuration.platforms.get(system)
        return other is not None and other.image_dir == platform.image_dir and other.accesstype == platform.accesstype


def _is_due(note: Path) -> None:
    """Nobody works at it any more: `pay` need not wait."""
    note.touch()  # if somebody paid while the change was being made, he may have seen what was before it
    os.utime(note, (0, 0))


def stripe(directory: Path, stripes: int | None) -> None:
    """Lets new files in `directory` be spread over so many Lustre targets (DefaultOstCount), where there is Lustre.

    Objects are written there and keep their layout when they get their names. See lfs-setstripe(1).
    """
    if stripes is None or shutil.which("lfs") is None:
        return
    done = subprocess.run(["lfs", "setstripe", "-c", str(stripes), str(directory)], capture_output=True, text=True)
    if done.returncode != 0:
        log.warning("%s is not striped: %s", directory, (done.stderr or done.stdout).strip())
