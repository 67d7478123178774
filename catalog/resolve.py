"""From a reference to one image: through indexes to the manifest for the platform, and the image's configuration."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from cas.store import Store
from catalog.failure import PullFailed
from catalog.limits import Limits
from catalog.manifest import Descriptor, ImageConfig, Manifest, choose, parse_config, parse_manifest

if TYPE_CHECKING:
    from catalog.config import Platform

_INDEX_DEPTH = 3


class Source(Protocol):
    """Where manifests come from: a registry's repository, or a layout on disk. What it returns is verified."""

    def manifest(self, reference: str, what: str, size: int | None = None) -> tuple[bytes, str, str]:
        """Bytes, media type and digest of a manifest or index, by tag or digest. Raises PullFailed."""

    def small_blob(self, descriptor: Descriptor, what: str, name: str) -> bytes:
        """A blob that fits in memory. Raises PullFailed."""


@dataclass(frozen=True)
class Resolved:
    """What a reference stands for at this moment.

    id: digest of the manifest, 64 hexadecimal digits. digests: those passed on the way, each "sha256:…", the
    manifest's last. documents: the bytes of manifest and configuration.
    """

    id: str
    digests: tuple[str, ...]
    manifest: Manifest
    config: ImageConfig
    documents: tuple[bytes, bytes]

    def keep(self, layers: Store) -> None:
        """Puts manifest and configuration beside the layers, for a later export. Raises StoreError."""
        for document, digest in zip(self.documents, (self.id, self.manifest.config.sha256), strict=True):
            name = layers.find_sha256(digest)
            if name is None or not layers.renew(name):
                layers.put_stream(io.BytesIO(document), sha256=digest)


def resolve(source: Source, reference: str, platform: Platform, what: str, limits: Limits) -> Resolved:
    """reference: a tag or a digest. what: how messages call the image. Raises PullFailed."""
    size: int | None = None
    digests: list[str] = []
    for _ in range(_INDEX_DEPTH):
        content, media_type, digest = source.manifest(reference, what, size)
        digests.append(digest)
        found = parse_manifest(content, media_type, what, limits)
        if isinstance(found, Manifest):
            document = source.small_blob(found.config, what, f"the configuration of {what}")
            config = parse_config(document, what)
            if config.architecture and config.architecture != platform.arch:
                raise PullFailed(f"{what} is not made for {platform.arch}; available: {config.architecture[:40]}")
            identity = digest.removeprefix("sha256:")
            return Resolved(identity, tuple(digests), found, config, (content, document))
        chosen = choose(found, platform.arch, platform.variant, what)
        reference, size = chosen.digest, chosen.size
    raise PullFailed(f"the index of {what} leads to indexes only")
