"""Manifests, indexes and image configurations: parsed once from the registry's bytes into types, or refused with a
reason.

Understands the OCI image specification 1.1 (https://github.com/opencontainers/image-spec) and Docker's schema 2;
schema 1 and artifacts that are no images are refused by name. Nothing here talks to a registry.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from catalog.failure import PullFailed
from catalog.limits import Limits

OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
INDEXES = frozenset({OCI_INDEX, DOCKER_LIST})
MANIFESTS = frozenset({OCI_MANIFEST, DOCKER_MANIFEST})
ACCEPTED = (OCI_INDEX, OCI_MANIFEST, DOCKER_LIST, DOCKER_MANIFEST)

_CONFIGS = frozenset({"application/vnd.oci.image.config.v1+json", "application/vnd.docker.container.image.v1+json"})
_LAYERS = frozenset(
    {
        "application/vnd.oci.image.layer.v1.tar",
        "application/vnd.oci.image.layer.v1.tar+gzip",
        "application/vnd.oci.image.layer.v1.tar+zstd",
        "application/vnd.oci.image.layer.nondistributable.v1.tar",
        "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
        "application/vnd.oci.image.layer.nondistributable.v1.tar+zstd",
        "application/vnd.docker.image.rootfs.diff.tar",
        "application/vnd.docker.image.rootfs.diff.tar.gzip",
        "application/vnd.docker.image.rootfs.diff.tar.zstd",
        "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
    }
)
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}", re.ASCII)


@dataclass(frozen=True)
class Descriptor:
    """A pointer into the registry. sha256: 64 hexadecimal digits without prefix. size: bytes."""

    media_type: str
    sha256: str
    size: int

    @property
    def digest(self) -> str:
        return f"sha256:{self.sha256}"


@dataclass(frozen=True)
class Choice:
    """One entry of an index. architecture and variant as Go spells them ("amd64", "arm64", "v8")."""

    manifest: Descriptor
    os: str
    architecture: str
    variant: str | None

    @property
    def name(self) -> str:
        return self.architecture + (f"/{self.variant}" if self.variant else "")


@dataclass(frozen=True)
class Manifest:
    """One image: its configuration and its layers, lowest first."""

    config: Descriptor
    layers: tuple[Descriptor, ...]


@dataclass(frozen=True)
class ImageConfig:
    """What the image says about itself. env: "KEY=value" each. entrypoint, cmd: None when the image has none."""

    architecture: str
    variant: str | None
    env: tuple[str, ...]
    entrypoint: tuple[str, ...] | None
    cmd: tuple[str, ...] | None
    workdir: str | None
    labels: Mapping[str, str]


def parse_manifest(content: bytes, media_type: str, what: str, limits: Limits) -> Manifest | tuple[Choice, ...]:
    """An image's manifest, or the choices of an index. what: how messages call it. Raises PullFailed."""
    document = _object(content, f"the manifest of {what}")
    media_type = _text(document.get("mediaType")) or media_type.partition(";")[0].strip()
    if document.get("schemaVersion") == 1:
        raise PullFailed(f"{what} has a manifest of schema 1, which is obsolete: push it again with a current tool")
    if document.get("schemaVersion") != 2:
        raise PullFailed(
            f"the manifest of {what} has no schemaVersion 2: the registry sent something else than a manifest"
        )
    if media_type in INDEXES or (media_type not in MANIFESTS and "manifests" in document):
        return _choices(document, what, limits)
    if media_type not in MANIFESTS and not ("config" in document and "layers" in document):
        raise PullFailed(f"the manifest of {what} is of the unknown type {media_type[:100]!r}")
    artifact = _text(document.get("artifactType"))
    config = _descriptor(document.get("config"), f"the configuration of {what}")
    if config.media_type not in _CONFIGS:
        raise PullFailed(
            f"{what} is no container image but an artifact of type {(artifact or config.media_type)[:100]!r}"
        )
    if config.size > limits.manifest:
        raise PullFailed(f"the configuration of {what} is {config.size} bytes long, allowed are {limits.manifest}")
    entries = _list(document.get("layers"), f"the layers of {what}")
    if len(entries) > limits.layers:
        raise PullFailed(f"{what} has {len(entries)} layers, allowed are {limits.layers}")
    layers = tuple(_descriptor(entry, f"layer {number} of {what}") for number, entry in enumerate(entries, 1))
    for number, layer in enumerate(layers, 1):
        if layer.media_type not in _LAYERS:
            kind = "encrypted" if "encrypted" in layer.media_type else f"of the unknown type {layer.media_type[:100]!r}"
            raise PullFailed(f"layer {number} of {what} is {kind}")
        if layer.size > limits.layer:
            raise PullFailed(f"layer {number} of {what} is {layer.size} bytes long, allowed are {limits.layer}")
    return Manifest(config, layers)


def choose(choices: tuple[Choice, ...], arch: str, variant: str | None, what: str) -> Descriptor:
    """The manifest for a platform. Without an exact variant the entry that has none is taken, then the first of the
    architecture.

    Raises PullFailed, listing what there is.
    """
    linux = [choice for choice in choices if choice.os in {"linux", ""}]
    fitting = [choice for choice in linux if choice.architecture == arch]
    for accept in (
        lambda choice: choice.variant == variant,
        lambda choice: choice.variant is None,
        lambda choice: variant is None,
        # arm64 has one variant in practice, and images leave it out or not as they like.
        lambda choice: arch == "arm64",
    ):
        for choice in fitting:
            if accept(choice):
                return choice.manifest
    wanted = arch + (f"/{variant}" if variant else "")
    available = (
        ", ".join(sorted({choice.name for choice in linux if choice.architecture != "unknown"})) or "none for Linux"
    )
    raise PullFailed(f"{what} is not made for {wanted}; available: {available}")


def parse_config(content: bytes, what: str) -> ImageConfig:
    """The image's configuration. Raises PullFailed."""
    name = f"the configuration of {what}"
    document = _object(content, name)
    config = document.get("config") or {}
    if not isinstance(config, dict):
        raise PullFailed(f"{name} is malformed: config is not an object")
    labels = config.get("Labels") or {}
    if not isinstance(labels, dict) or not all(isinstance(value, str) for value in labels.values()):
        raise PullFailed(f"{name} is malformed: Labels are not texts")
    return ImageConfig(
        architecture=_text(document.get("architecture")) or "",
        variant=_text(document.get("variant")) or None,
        env=_texts(config.get("Env"), f"Env in {name}") or (),
        entrypoint=_texts(config.get("Entrypoint"), f"Entrypoint in {name}"),
        cmd=_texts(config.get("Cmd"), f"Cmd in {name}"),
        workdir=_text(config.get("WorkingDir")) or None,
        labels=dict(labels),
    )


def _choices(document: dict[str, Any], what: str, limits: Limits) -> tuple[Choice, ...]:
    choices = []
    for entry in _list(document.get("manifests"), f"the index of {what}"):
        descriptor = _descriptor(entry, f"an entry in the index of {what}")
        platform = entry.get("platform") or {}
        if not isinstance(platform, dict):
            raise PullFailed(f"the index of {what} is malformed: a platform is not an object")
        if descriptor.size > limits.manifest:
            raise PullFailed(f"a manifest of {what} is {descriptor.size} bytes long, allowed are {limits.manifest}")
        choices.append(
            Choice(
                descriptor,
                _text(platform.get("os")) or "",
                _text(platform.get("architecture")) or "",
                _text(platform.get("variant")) or None,
            )
        )
    return tuple(choices)


def _descriptor(entry: object, name: str) -> Descriptor:
    if not isinstance(entry, dict):
        raise PullFailed(f"{name} is malformed: it is not an object")
    digest, size = entry.get("digest"), entry.get("size")
    if not isinstance(digest, str) or not _DIGEST.fullmatch(digest):
        raise PullFailed(
            f"{name} has the digest {str(digest)[:100]!r}: only sha256 with 64 hexadecimal digits is understood"
        )
    if not isinstance(size, int) or isinstance(size, bool) or size < 0:
        raise PullFailed(f"{name} has the size {str(size)[:40]!r}, which is none")
    return Descriptor(_text(entry.get("mediaType")) or "", digest.removeprefix("sha256:"), size)


def _object(content: bytes, name: str) -> dict[str, Any]:
    try:
        document = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise PullFailed(f"{name} is not JSON: {str(error)[:100]}") from error
    if not isinstance(document, dict):
        raise PullFailed(f"{name} is not a JSON object")
    return document


def _list(value: object, name: str) -> list[Any]:
    if not isinstance(value, list):
        raise PullFailed(f"{name} are malformed: not a list")
    return value


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def _texts(value: object, name: str) -> tuple[str, ...] | None:
    if value is None:
        return None
    if isinstance(value, str):  # schema 2 images of old builders have a bare command
        return (value,)
    if not isinstance(value, list) or not all(isinstance(item, str) and "\0" not in item for item in value):
        raise PullFailed(f"{name} is malformed: not a list of texts")
    return tuple(value)
