"""Image names as users type them: ``[type:]name[:tag][@sha256:digest]``.

``parse`` gives the two values that every look-up uses: the type and the tag, the latter complete (``:latest`` added
where neither tag nor digest stands). What a registry's prefix such as ``docker.io/`` means is the gateway's business:
names are passed on as written.
"""

from __future__ import annotations

KINDS = ("docker", "custom", "id", "local")
_HEX = frozenset("0123456789abcdef")
_LONGEST = 1024  # bytes; a registry's own limit for a repository is 255


class ReferenceInvalid(ValueError):
    """The text is no image name; the message says which part is wrong."""


class Reference(tuple[str, str]):
    """``kind``: one of KINDS; ``tag``: ``name:tag``, ``name@sha256:…``, an id or a path. Its text is ``kind:tag``.

    A named tuple, made by hand: the library that makes them costs 2 ms of every start.
    """

    __slots__ = ()

    def __new__(cls, kind: str, tag: str) -> Reference:
        return super().__new__(cls, (kind, tag))

    @property
    def kind(self) -> str:
        return self[0]

    @property
    def tag(self) -> str:
        return self[1]

    def __str__(self) -> str:
        return f"{self.kind}:{self.tag}"


def parse(text: str, default_kind: str = "docker") -> Reference:
    """The reference that ``text`` names. Raises ReferenceInvalid.

    A first part before a colon that is one of KINDS is the type; otherwise ``default_kind`` is, so ``ubuntu:24.04``
    is an image called ubuntu.
    """
    first, colon, rest = text.partition(":")
    kind, name = (first, rest) if colon and first in KINDS else (default_kind, text)
    if kind not in KINDS:
        raise ReferenceInvalid(f"unknown image type {kind!r}; known are {', '.join(KINDS)}")
    if not name:
        raise ReferenceInvalid(f"{text!r} is no image name: nothing stands after the type")
    if len(name) > _LONGEST:
        raise ReferenceInvalid(f"{text[:40]!r}... is no image name: it is longer than {_LONGEST} characters")
    if any(character.isspace() or not character.isprintable() for character in name):
        raise ReferenceInvalid(f"{text!r} is no image name: it contains white space or a control character")
    if kind in ("docker", "custom"):
        name = _complete(name, text)
    return Reference(kind, name)


def _complete(name: str, text: str) -> str:
    repository, at, digest = name.partition("@")
    if at:
        algorithm, _, value = digest.partition(":")
        if algorithm != "sha256" or len(value) != 64 or not _HEX.issuperset(value):
            raise ReferenceInvalid(f"{text!r} is no image name: a digest is @sha256: and 64 digits 0-9a-f")
    path, slash, last = repository.rpartition("/")
    last_name, colon, tag = last.partition(":")
    if not last_name or (colon and not tag) or (slash and not path) or "//" in repository:
        raise ReferenceInvalid(f"{text!r} is no image name: a part of it is empty")
    return name if colon or at else name + ":latest"
