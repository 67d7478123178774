"""What one pull may ask of the gateway, so that a hostile or broken image ends in a sentence and not in a full disk."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """Bytes unless a field says otherwise. Each is far above what honest images need; an administrator may change it."""

    manifest: int = 4 << 20
    """A manifest, an index or an image configuration."""
    layers: int = 500
    """Layers in one image (count)."""
    layer: int = 200 << 30
    """One layer as it is downloaded."""
    unpacked: int = 1 << 40
    """All file contents of all layers together, holes of sparse files counted as if they were there."""
    ratio: int = 1200
    """Unpacked bytes for each downloaded byte of a layer, asked only of what unpacks to more than 1 GiB (gzip cannot
    exceed 1032).
    """
    members: int = 5_000_000
    """Tar members in all layers together (count)."""
    name: int = 4095
    """A path, as the kernel's PATH_MAX less its end."""
    part: int = 255
    """One component of a path, as NAME_MAX."""
    depth: int = 500
    """Components of a path (count)."""
    header: int = 1 << 20
    """One extended tar header (pax or GNU)."""
    xattrs: int = 64 << 10
    """All extended attributes of one file that are kept."""
    attempts: int = 5
    """Tries of one request to a registry (count)."""
    backoff: float = 0.5
    """Seconds before the second try; doubled for each further one."""
    longest_wait: float = 120.0
    """Seconds that a registry may make us wait at a time (Retry-After)."""
    timeout: float = 30.0
    """Seconds without a byte from the registry that count as a broken connection."""
    slowest: int = 1024
    """Bytes a second that a registry must send, counted over `timeout` seconds of waiting for it; else the connection
    counts as broken.
    """
    longest: float = 24 * 3600.0
    """Seconds that the download of all layers of one image may take."""
    conversion: float = 4 * 3600.0
    """Seconds that merging the layers and writing the image file may take. The squashfs writer needs the square of the
    files in one directory: 25,000 cost it 6 s, 100,000 100 s.
    """
