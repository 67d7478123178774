"""From an image's layers in the layer store to its file in the image store: once for each content, whoever asks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

from cas.leases import leased
from cas.store import Object, Store
from catalog.conversion_options import ConversionOptions
from catalog.conversions import recall, remember
from catalog.flatten import flatten
from catalog.resolve import Resolved
from catalog.states import Stage


class Observer(Protocol):
    """Who watches a pull. All calls come from the thread that called `pull`, but for `note` and `claim`."""

    def stage(self, stage: Stage) -> None:
        """The pull has reached this stage."""

    def progress(self, *, done: int, total: int, layers_done: int, layers: int) -> None:
        """Bytes and layers that are here, of how many; several times a second."""

    def note(self, text: str) -> None:
        """A sentence worth showing meanwhile: a wait, a retry. From any thread."""

    def check(self) -> None:
        """Raises PullAborted when the pull is to end (its lease is lost). Called at least once a second."""

    def claim(self, name: str) -> AbstractContextManager[None]:
        """Waits until this pull alone holds the name, among all that share the stores. From any thread; may raise
        PullAborted.
        """


@dataclass(frozen=True)
class PulledImage:
    """An image that is in the store.

    id: digest of the manifest of the platform's architecture, 64 hexadecimal digits. object: BLAKE3 of the image
    file. size: its bytes. layers: SHA-256 of each, lowest first. anonymous: the registry gives it to anybody.
    """

    id: str
    object: str
    size: int
    format: str
    env: tuple[str, ...]
    entrypoint: tuple[str, ...] | None
    cmd: tuple[str, ...] | None
    workdir: str | None
    labels: Mapping[str, str]
    arch: str
    anonymous: bool
    layers: tuple[str, ...]


def assemble(
    key: str,
    names: Sequence[str],
    layers: Store,
    images: Store,
    observer: Observer,
    options: ConversionOptions,
    *,
    what: str,
) -> Object:
    """The image file of these layers (object names, lowest first), made unless somebody else has just made the very
    same.

    key: catalog.conversions.conversion_key. Raises PullFailed, PullAborted, StoreError.
    """
    with leased(layers, names), observer.claim(f"image:{key}"):
        stored = recall(images, key)
        if stored is not None:
            return stored
        observer.stage(Stage.CONVERSION)
        temporary = flatten(layers, names, images, options, what=what, check=observer.check)
        try:
            observer.stage(Stage.TRANSFER)
            stored = images.adopt(temporary)
        finally:
            temporary.unlink(missing_ok=True)
        remember(images, key, stored)
        return stored


def pulled_image(
    resolved: Resolved, stored: Object, options: ConversionOptions, arch: str, *, anonymous: bool
) -> PulledImage:
    """All that is known of an image whose file is in the store."""
    config = resolved.config
    return PulledImage(
        id=resolved.id,
        object=stored.name,
        size=stored.size,
        format=options.format,
        env=config.env,
        entrypoint=config.entrypoint,
        cmd=config.cmd,
        workdir=config.workdir,
        labels=config.labels,
        arch=arch,
        anonymous=anonymous,
        layers=tuple(layer.sha256 for layer in resolved.manifest.layers),
    )
