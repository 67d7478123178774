"""What has been converted already: from what decides an image file's bytes to the object that came out.

Lies beside the objects (`conversions/<key>` in the image store, docs/format.md), so that every gateway that shares
the store shares it. An entry whose object is gone counts for nothing; losing all of them costs conversions, nothing
else.
"""

from __future__ import annotations

import functools
import hashlib
import json
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from cas.errors import NameInvalid
from cas.files import make_directory, replace_with
from cas.store import Object, Store, check_name
from catalog.conversion_options import ConversionOptions

PIPELINE = 1
"""Counted up whenever this program would make other bytes of the same layers."""


def conversion_key(layers: Sequence[str], options: ConversionOptions) -> str:
    """What decides the bytes of an image file, as one digest: layers (SHA-256 each), options, programs and versions."""
    facts = {
        "pipeline": PIPELINE,
        "layers": list(layers),
        "format": options.format,
        "arguments": list(options.arguments),
        "xattrs": options.keep_user_xattrs,
        "setuid": options.keep_setuid,
        "writer": version(options.writer),
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def recall(images: Store, key: str) -> Object | None:
    """The object that this conversion gave before, renewed so that gc leaves it for the grace time; None when there
    is none.
    """
    try:
        entry = json.loads((images.root / "conversions" / check_name(key)).read_bytes())
        found = Object(check_name(entry["object"]), check_name(entry["sha256"]), int(entry["size"]))
    except (OSError, ValueError, KeyError, TypeError, NameInvalid):
        return None
    return found if images.renew(found.name) and images.size(found.name) == found.size else None


def remember(images: Store, key: str, made: Object) -> None:
    """Notes what a conversion gave. Atomic, idempotent. Raises StoreError."""
    make_directory(images.root / "conversions", mode=0o755, sync=images.sync)
    entry = json.dumps({"object": made.name, "sha256": made.sha256, "size": made.size}).encode()
    replace_with(images.root / "conversions" / check_name(key), entry, sync=images.sync)


def forget_missing(images: Store) -> int:
    """Removes the entries whose objects are gone; returns how many."""
    removed = 0
    directory = images.root / "conversions"
    for path in list(directory.iterdir()) if directory.is_dir() else []:
        try:
            gone = not images.contains(json.loads(path.read_bytes())["object"])
        except (OSError, ValueError, KeyError, TypeError, NameInvalid):
            gone = True
        if gone:
            path.unlink(missing_ok=True)
            removed += 1
    return removed


def version(program: str) -> str:
    """What a program says about its version; its path's last change stands for it when it says nothing."""
    path = shutil.which(program)
    return _version(path, Path(path).stat().st_mtime_ns) if path else program


@functools.lru_cache
def _version(path: str, changed: int) -> str:
    try:
        done = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=10, stdin=subprocess.DEVNULL)
        said = (done.stdout + done.stderr).strip().splitlines()
    except (OSError, subprocess.SubprocessError):
        said = []
    return f"{Path(path).name} {said[0][:100] if said else changed}"
