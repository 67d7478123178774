"""The part of imagemanager.json that speaks of pulls and stores: limits, what is kept of images, mirrors, signatures."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from catalog.config_reader import Section
from catalog.limits import Limits

SignaturePolicy = Literal["none", "warn", "require"]
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?", re.IGNORECASE)

# The names of the limits in the configuration; their meaning is told in catalog.limits.
_WHOLE = {
    "ManifestBytes": "manifest",
    "Layers": "layers",
    "LayerBytes": "layer",
    "UnpackedBytes": "unpacked",
    "Ratio": "ratio",
    "Members": "members",
    "Depth": "depth",
    "HeaderBytes": "header",
    "XattrBytes": "xattrs",
    "Attempts": "attempts",
    "SlowestBytesPerSecond": "slowest",
}
_SECONDS = {
    "BackoffSeconds": "backoff",
    "LongestWaitSeconds": "longest_wait",
    "LongestDownloadSeconds": "longest",
    "LongestConversionSeconds": "conversion",
    "TimeoutSeconds": "timeout",
}


@dataclass(frozen=True)
class PullSettings:
    """The sections `Pull` and `CacheLimit`. cache_limit: bytes of layers to keep at most, None for no limit."""

    limits: Limits = field(default_factory=Limits)
    keep_user_xattrs: bool = False
    keep_setuid: bool = False
    cache_limit: int | None = None


@dataclass(frozen=True)
class LocationPull:
    """What a location says of pulls. mirrors: URLs asked for layers first. connections: downloads at a time."""

    mirrors: tuple[str, ...]
    connections: int
    signature_policy: SignaturePolicy
    signature_keys: tuple[Path, ...]


def pull_settings(top: Section, warnings: list[str]) -> PullSettings:
    """From the whole configuration. Raises ConfigError."""
    cache_limit = size(top, "CacheLimit")
    if not top.has("Pull"):
        return PullSettings(cache_limit=cache_limit)
    part, default = top.section("Pull"), Limits()
    given: dict[str, int | float] = {
        **{name: part.whole(key, getattr(default, name), low=1) for key, name in _WHOLE.items()},
        **{name: part.number(key, getattr(default, name), low=0.001) for key, name in _SECONDS.items()},
    }
    settings = PullSettings(
        limits=Limits(**given),  # type: ignore[arg-type]  # whole numbers for the fields that are whole
        keep_user_xattrs=part.flag("KeepUserXattrs", False),
        keep_setuid=part.flag("KeepSetuid", False),
        cache_limit=cache_limit,
    )
    warnings += part.unknown()
    return settings


def location_pull(part: Section) -> LocationPull:
    """From one location. Raises ConfigError."""
    mirrors = part.names("mirrors")
    for mirror in mirrors:
        split = urlsplit(mirror)
        if split.scheme not in {"http", "https"} or not split.hostname or split.path.strip("/"):
            raise part.bad("mirrors", "addresses such as https://mirror.example.org:5000, without a path")
    policy = part.choice("SignaturePolicy", ("none", "warn", "require"), "none")
    keys = tuple(Path(name) for name in part.names("SignatureKeys"))
    if not all(key.is_absolute() for key in keys):
        raise part.bad("SignatureKeys", "absolute paths of public keys (PEM)")
    if policy != "none" and not keys:
        raise part.bad("SignatureKeys", "at least one public key, as SignaturePolicy is " + policy)
    return LocationPull(
        mirrors=tuple(mirror.rstrip("/") for mirror in mirrors),
        connections=part.whole("Connections", 4, low=1, high=64),
        signature_policy="require" if policy == "require" else "warn" if policy == "warn" else "none",
        signature_keys=keys,
    )


def size(part: Section, key: str) -> int | None:
    """A number of bytes, or a text such as "500 GB" (powers of 1024); None when the key is not there."""
    value = part.get(key)
    if value is None:
        return None
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    match = _SIZE.fullmatch(value.strip()) if isinstance(value, str) else None
    if match is None:
        raise part.bad(key, 'bytes, or a size such as "500 GB"')
    return int(float(match[1]) * 1024 ** "_KMGT".index(match[2].upper() or "_"))
