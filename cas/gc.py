"""Removing what nobody needs, while others put, read and collect in the same store.

Mark and sweep with three nets, each of which alone keeps a needed object: the caller's list of what is needed,
leases, and the grace time, which starts again at each put or `renew`. An object is condemned first (moved aside,
where a put, a look-up or the next gc brings it back), then everything is asked once more, and only what is still
needed by nobody is removed. Two collections at once do each other no harm.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

from cas.errors import NameInvalid
from cas.files import naming, sync_directory
from cas.leases import leased_names
from cas.store import Store, check_name

GRACE = 24 * 3600.0
"""Seconds after its last put or renewal in which an object is not taken."""
STALE = 24 * 3600.0
"""Seconds without a write after which a temporary file belongs to nobody."""


@dataclass(frozen=True)
class Collected:
    """What a collection did, or would do. removed: object names. bytes: of the removed. temporary: stale files swept."""

    removed: tuple[str, ...]
    bytes: int
    kept: int
    kept_bytes: int
    temporary: int


def collect(
    store: Store,
    needed: Callable[[], Collection[str]],
    *,
    grace: float = GRACE,
    stale: float = STALE,
    budget: int | None = None,
    dry_run: bool = False,
    clock: Callable[[], float] = time.time,
) -> Collected:
    """Removes every object that `needed` does not name, no lease covers and the grace time has left.

    needed: names of objects; asked twice. budget: when given, only so many of the longest unused go as bring the
    store down to so many bytes. clock: for leases; ages are measured by the file system's own clock. Raises
    StoreError.
    """
    cutoff = _file_system_time(store) - grace
    wanted = set(needed()) | leased_names(store, clock=clock)
    candidates: list[tuple[float, int, str]] = []
    kept = kept_bytes = 0
    for name in store.names():
        status = _status(store.root / "objects" / name[:2] / name[2:])
        if status is None:
            continue
        kept += 1
        kept_bytes += status.st_size
        if name not in wanted and status.st_mtime < cutoff:
            candidates.append((status.st_mtime, status.st_size, name))
    candidates.sort()
    chosen: list[tuple[int, str]] = []
    total = kept_bytes
    for _, size, name in candidates:
        if budget is not None and total <= budget:
            break
        chosen.append((size, name))
        total -= size
    if not dry_run:
        condemned = _left(store)
        for size, name in chosen:
            own = _condemn(store, store.root / "objects" / name[:2] / name[2:], name)
            if own is not None:
                condemned.append((size, name, own))
        chosen = _execute(store, condemned, needed, cutoff, clock)
    temporary = _sweep_temporary(store, stale, dry_run=dry_run)
    freed = sum(size for size, _ in chosen)
    return Collected(tuple(name for _, name in chosen), freed, kept - len(chosen), kept_bytes - freed, temporary)


def _condemn(store: Store, path: Path, name: str) -> Path | None:
    """Moves a file that holds `name` to a name that this collection alone has; None when another collection was faster."""
    own = store.root / "condemned" / f"{name}~{os.urandom(8).hex()}"
    with naming(path, "condemning"):
        try:
            path.rename(own)
        except FileNotFoundError:
            return None
    return own


def _execute(
    store: Store,
    condemned: list[tuple[int, str, Path]],
    needed: Callable[[], Collection[str]],
    cutoff: float,
    clock: Callable[[], float],
) -> list[tuple[int, str]]:
    """Asks again for each condemned object, and removes it or brings it back; returns what was removed.

    The question comes after the files got names of our own: who leased an object before it is heard, who leases one after
    finds a file that is no longer ours to remove.
    """
    if not condemned:
        return []
    wanted = set(needed()) | leased_names(store, clock=clock)
    links: dict[str, list[Path]] = {}
    for link, name in store.sha256_links():
        links.setdefault(name, []).append(link)
    removed = []
    for size, name, own in condemned:
        status = _status(own)
        if status is None:
            continue  # another collection has taken it for what a dead one left, and judges it
        path = store.root / "objects" / name[:2] / name[2:]
        if name in wanted or status.st_mtime >= cutoff:
            with naming(path, "bringing back"), contextlib.suppress(FileNotFoundError):
                with contextlib.suppress(FileExistsError):
                    os.link(own, path)
                own.unlink()
            continue
        with naming(path, "removing"):
            targets = {}
            for link in links.get(name, []):
                with contextlib.suppress(FileNotFoundError):  # another collection is at it too
                    targets[link] = link.readlink()
                    link.unlink(missing_ok=True)
            own.unlink(missing_ok=True)
            if path.exists():
                # Put or wanted again meanwhile. A put may have found the links which are gone now: they were its promise too.
                for link, target in targets.items():
                    with contextlib.suppress(FileExistsError):
                        link.symlink_to(target)
                continue
        removed.append((size, name))
    if store.sync:
        sync_directory(store.root / "condemned")
    return removed


def _sweep_temporary(store: Store, stale: float, *, dry_run: bool) -> int:
    cutoff = _file_system_time(store) - stale
    swept = 0
    for path in list((store.root / "tmp").iterdir()):
        status = _status(path)
        if status is not None and status.st_mtime < cutoff:
            swept += 1
            if not dry_run:
                with naming(path, "removing"):
                    path.unlink(missing_ok=True)
    return swept


def _left(store: Store) -> list[tuple[int, str, Path]]:
    """What is condemned already, by a collection that runs or one that died, taken over: size, name, file."""
    found = []
    for path in list((store.root / "condemned").iterdir()):
        status = _status(path)
        with contextlib.suppress(NameInvalid):
            name = check_name(path.name.partition("~")[0])
            own = None if status is None else _condemn(store, path, name)
            if status is not None and own is not None:
                found.append((status.st_size, name, own))
    return found


def _file_system_time(store: Store) -> float:
    """Now, by the clock that dates the store's files: a file server's may differ from ours."""
    probe = store.temporary(".clock")
    with naming(probe, "dating"):
        probe.touch()
        try:
            return probe.stat().st_mtime
        finally:
            probe.unlink(missing_ok=True)


def _status(path: Path) -> os.stat_result | None:
    with naming(path, "looking at"):
        try:
            return path.lstat()
        except FileNotFoundError:
            return None
