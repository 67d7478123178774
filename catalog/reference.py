"""Image references: what users type, what the image list calls it, and where in which registry it lies.

`parse` gives one canonical name for the many spellings of one thing (`ubuntu`, `library/ubuntu:latest`,
`docker.io/library/ubuntu`), `locate` says which configured registry and repository that is.
Grammar: https://github.com/distribution/reference (repository, tag, digest). Asks no registry.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from uuid import UUID, uuid5

# One registry, many names: the host that answers the API, and what people and old configurations call it.
DOCKER_HUB = frozenset({"docker.io", "index.docker.io", "registry-1.docker.io", "registry.hub.docker.com"})

_NAMESPACE = UUID("3f0c1a4e-7c0a-5d62-9a57-6a2f3f2f0b51")  # of references; never changes, ids in logs depend on it
_SYSTEM = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}", re.ASCII)
_REPOSITORY = re.compile(
    r"[a-z0-9]+(?:(?:\.|_{1,2}|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:\.|_{1,2}|-+)[a-z0-9]+)*)*", re.ASCII
)
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}", re.ASCII)
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}", re.ASCII)
_FREE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+/@-]{0,254}(?::[A-Za-z0-9_][A-Za-z0-9_.-]{0,127})?", re.ASCII)
_IMAGE_ID = re.compile(r"[0-9a-f]{64}", re.ASCII)


class ReferenceInvalid(ValueError):
    """A reference that cannot name an image, or a registry that is not configured; the message says what to write."""


@dataclass(frozen=True, order=True)
class Reference:
    """One image reference: the unit of the catalog, with a history of its own.

    system: the platform's name. itype: `docker`, `custom` ... tag: the canonical name, such as `ubuntu:22.04`,
    `quay.io/a/b:1`, `ubuntu@sha256:…`.
    """

    system: str
    itype: str
    tag: str

    @property
    def uuid(self) -> UUID:
        """The identity of the reference's event stream."""
        return uuid5(_NAMESPACE, f"{self.system}/{self.itype}/{self.tag}")

    def __str__(self) -> str:
        return f"{self.itype}:{self.tag}"


@dataclass(frozen=True)
class RegistryReference:
    """What to ask a registry for: `digest` (sha256:<64 hex>) wins over `tag`; at least one is given."""

    repository: str
    tag: str | None
    digest: str | None

    def __str__(self) -> str:
        return self.repository + (f":{self.tag}" if self.tag else "") + (f"@{self.digest}" if self.digest else "")


@dataclass(frozen=True)
class Located:
    """A registry reference together with the configured location (its name) that holds it."""

    location: str
    source: RegistryReference


def parse(system: str, itype: str, text: str, *, default_location: str, locations: Collection[str]) -> Reference:
    """The canonical reference for what a client asked for.

    For the type `docker`: without a tag `:latest`; a prefix that names the default location is dropped (so are
    `docker.io/` and `library/` when the default is Docker Hub). Other types keep the name, with `:latest` when no tag
    is given. Raises ReferenceInvalid.
    """
    if not _SYSTEM.fullmatch(system):
        raise ReferenceInvalid(f"system {system!r} is not a name; use letters, digits, '.', '_' and '-'")
    if not _SYSTEM.fullmatch(itype):
        raise ReferenceInvalid(f"image type {itype!r} is not a name; use docker, or custom for imported images")
    if itype == "id":
        return Reference(system, itype, identifier(text))
    if itype != "docker":
        if not _FREE_NAME.fullmatch(text) or any(part in {"", ".", ".."} for part in text.split("/")):
            raise ReferenceInvalid(f"image name {text!r} is not valid; write name or name:version")
        return Reference(system, itype, text if ":" in text else f"{text}:latest")
    located = locate(text, default_location=default_location, locations=locations)
    source = located.source
    name = source.repository
    if _same_registry(located.location, default_location):
        if default_location in DOCKER_HUB:
            name = name.removeprefix("library/")
    elif located.location in DOCKER_HUB:
        name = f"docker.io/{name.removeprefix('library/')}"
    else:
        name = f"{located.location}/{name}"
    return Reference(system, itype, str(RegistryReference(name, source.tag, source.digest)))


def locate(text: str, *, default_location: str, locations: Collection[str]) -> Located:
    """Where an image of type `docker` lies; `text` as typed or canonical.

    The first path component names a registry when it is a configured location, a name of Docker Hub, or looks like a
    host (has a dot or a port, or is localhost); else the default location is meant. Raises ReferenceInvalid when the
    registry is not configured or a part is malformed.
    """
    name, _, digest = text.partition("@")
    if "@" in text and not _DIGEST.fullmatch(digest):
        raise ReferenceInvalid(f"digest {digest!r} in {text!r} is not sha256: and 64 lower-case hex digits")
    first, slash, rest = name.partition("/")
    location = default_location
    if slash and first in locations:
        location, name = first, rest
    elif slash and first in DOCKER_HUB:
        hub = next((one for one in locations if one in DOCKER_HUB), None)
        if hub is None:
            raise ReferenceInvalid(_unknown_registry(first, locations))
        location, name = hub, rest
    elif slash and ("." in first or ":" in first or first == "localhost"):
        raise ReferenceInvalid(_unknown_registry(first, locations))
    repository, colon, tag = name.rpartition(":")
    if not colon:
        repository, tag = name, ""
    if colon and not _TAG.fullmatch(tag):
        raise ReferenceInvalid(f"tag {tag!r} in {text!r} is not valid; use letters, digits, '.', '_' and '-'")
    if not _REPOSITORY.fullmatch(repository) or len(repository) > 255:
        raise ReferenceInvalid(
            f"image name {text!r} is not valid: {repository!r} must be lower-case words joined by '/', '.', '_' or '-'"
        )
    if location in DOCKER_HUB and "/" not in repository:
        repository = f"library/{repository}"
    if not tag and not digest:
        tag = "latest"
    return Located(location, RegistryReference(repository, tag or None, digest or None))


def identifier(text: str) -> str:
    """`text` when it is an image id (64 lower-case hex digits); raises ReferenceInvalid."""
    if not _IMAGE_ID.fullmatch(text):
        raise ReferenceInvalid(f"image id {text!r} is not 64 lower-case hex digits")
    return text


def _same_registry(one: str, other: str) -> bool:
    return one == other or (one in DOCKER_HUB and other in DOCKER_HUB)


def _unknown_registry(name: str, locations: Collection[str]) -> str:
    known = ", ".join(sorted(locations)) or "none"
    return f"registry {name!r} is not configured here; configured: {known} (an administrator can add it to Locations)"
