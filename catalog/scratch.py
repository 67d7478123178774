"""Directories below ExpandDirectory for trees that are needed for a moment: an image unpacked for a writer or an examiner.

A directory belongs to the process that holds its lock. What a killed gateway left holds none, and `sweep` removes it; several
gateways may share the place.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

PREFIX = "shifter-scratch-"  # nobody else calls a directory so: a sweep removes it


@contextmanager
def scratch(place: Path) -> Iterator[Path]:
    """A fresh directory below `place`, which is made; removed with all that is in it at the end. Raises OSError."""
    place.mkdir(parents=True, exist_ok=True)
    while True:
        made = Path(tempfile.mkdtemp(prefix=PREFIX, dir=place))
        held = _hold(made, sure=False)
        if held is not None:
            break  # else a sweep came between
    try:
        yield made
    finally:
        remove(made)
        os.close(held)


def sweep(place: Path) -> int:
    """Removes what killed processes left below `place`; returns how many directories."""
    found = 0
    for path in place.glob(f"{PREFIX}*") if place.is_dir() else ():
        held = _hold(path, sure=True)
        if held is not None:
            remove(path)
            os.close(held)
            found += 1
    return found


def remove(tree: Path) -> None:
    """Removes a tree, also with directories that their owner may not enter; what cannot be removed stays."""
    shutil.rmtree(tree, onerror=_make_removable)


def _hold(directory: Path, *, sure: bool) -> int | None:
    """A descriptor that holds the directory's lock; None when another has it, or the directory is gone. A file system
    without locks has none to hold: then None when it is to be `sure`, else the descriptor alone.
    """
    try:
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        held = directory.stat().st_ino == os.fstat(descriptor).st_ino
    except (BlockingIOError, FileNotFoundError):
        held = False
    except OSError:
        held = not sure
    if held:
        return descriptor
    os.close(descriptor)
    return None


def _make_removable(function: Callable[..., object], path: str, error: object) -> None:
    """For rmtree: directories of the image may forbid their owner to empty them."""
    with suppress(OSError):
        for directory in (Path(path).parent, Path(path)):
            if stat.S_ISDIR(directory.lstat().st_mode):
                directory.chmod(0o700)
        function(path)
