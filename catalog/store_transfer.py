"""Images on their way between sites that no network joins: out as an OCI layout with the image file in it, and in
again.

What is written is an OCI layout that any tool reads (index.json, blobs/), with two files more: `shifter.json`, the
image's record, and the image file as nodes mount it. On the way in each blob is checked against its digest, and the
image file is made anew from the layers: nothing else shows that it is theirs, and whoever pulls the same layers later
gets what is remembered for them. From a medium that is trusted, the file is taken as it is when it has the record's
BLAKE3 and this site would convert in the same way.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from cas.errors import DigestMismatch, StoreError
from cas.store import Store
from catalog.assemble import PulledImage
from catalog.conversion_options import ConversionOptions
from catalog.conversions import conversion_key, recall, remember
from catalog.failure import PullFailed
from catalog.layout import pull_layout
from catalog.manifest import DOCKER_MANIFEST, OCI_MANIFEST
from catalog.record import Image

if TYPE_CHECKING:
    from catalog.config import Platform


class TransferFailed(Exception):
    """The image cannot be written out or taken in. The text is one sentence."""


def export(target: Path, name: str, image: Image, layers: Store, images: Store, options: ConversionOptions) -> int:
    """Writes an image to a new directory; returns its bytes. name: what it will be called in the layout.

    Raises TransferFailed when the directory exists or a layer is not in the cache any more. Leaves nothing then.
    """
    if target.exists():
        raise TransferFailed(f"{target} exists already: name a new directory")
    partial = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        (partial / "blobs" / "sha256").mkdir(parents=True)
        manifest = _copy(layers, image.id, partial)
        document = json.loads(manifest.read_bytes())
        for entry in (document["config"], *document["layers"]):
            _copy(layers, str(entry["digest"]).removeprefix("sha256:"), partial)
        with images.open_verified(image.object) as source, (partial / f"image.{image.format}").open("wb") as out:
            shutil.copyfileobj(source, out, 1 << 20)
        described = {
            "mediaType": document.get("mediaType", OCI_MANIFEST),
            "digest": f"sha256:{image.id}",
            "size": manifest.stat().st_size,
            "annotations": {"org.opencontainers.image.ref.name": name},
        }
        assert described["mediaType"] in (OCI_MANIFEST, DOCKER_MANIFEST)
        _write(partial / "index.json", {"schemaVersion": 2, "manifests": [described]})
        _write(partial / "oci-layout", {"imageLayoutVersion": "1.0.0"})
        key = conversion_key(image.layers, options)
        _write(partial / "shifter.json", {"version": 1, "name": name, "key": key, "image": image.to_json()})
        partial.rename(target)
    except StoreError as error:
        raise TransferFailed(str(error)) from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise TransferFailed(f"{target} cannot be written: {error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return sum(path.stat().st_size for path in target.rglob("*") if path.is_file())


def take_in(
    source: Path, platform: Platform, layers: Store, images: Store, options: ConversionOptions, *, trusted: bool = False
) -> tuple[str, PulledImage]:
    """Brings an exported image into the stores; returns the name it was exported under, and the image, which is as
    public as it was there.

    trusted: takes the image file as it is, when this site would make it with the same programs and options. Else it is
    made anew. Raises TransferFailed.
    """
    try:
        described = json.loads((source / "shifter.json").read_bytes())
        name, key = str(described["name"]), str(described["key"])
        image = Image.from_json(described["image"])
    except OSError as error:
        raise TransferFailed(f"{source} is no exported image: shifter.json in it: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise TransferFailed(f"{source} is no exported image: its shifter.json makes no sense ({error})") from error
    try:
        file = source / f"image.{image.format}"
        fits = key == conversion_key(image.layers, options) and recall(images, key) is None
        if trusted and fits and file.is_file():
            try:
                remember(images, key, images.put_file(file, name=image.object))
            except DigestMismatch as error:
                raise TransferFailed(f"{file} is damaged: {error}") from error
        pulled = pull_layout(source, platform, layers, images, _Silent(), options)
        return name, replace(pulled, anonymous=image.anonymous)
    except (PullFailed, StoreError) as error:
        raise TransferFailed(str(error)) from error


def _copy(layers: Store, digest: str, target: Path) -> Path:
    """Copies a blob by its SHA-256 into a layout; returns where it is."""
    name = layers.find_sha256(digest)
    if name is None:
        raise TransferFailed(
            f"the layer or manifest sha256:{digest} is not in the cache any more: pull the image again"
        )
    path = target / "blobs" / "sha256" / digest
    if not path.exists():
        with layers.open_verified(name) as source, path.open("wb") as out:
            shutil.copyfileobj(source, out, 1 << 20)
    return path


def _write(path: Path, document: object) -> None:
    path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


class _Silent:
    """An Observer to whom nobody listens: the command waits, and nobody else works at the same image."""

    def stage(self, stage: object) -> None:
        pass

    def progress(self, *, done: int, total: int, layers_done: int, layers: int) -> None:
        pass

    def note(self, text: str) -> None:
        pass

    def check(self) -> None:
        pass

    def claim(self, name: str) -> AbstractContextManager[None]:
        return _nobody_else()


@contextlib.contextmanager
def _nobody_else() -> Iterator[None]:
    yield
