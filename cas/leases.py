"""Leases: who works with objects says so in a small file, and gc leaves them alone as long as it is fresh.

For work that may outlast gc's grace (a conversion reads layers that no image needs yet). A lease of a process that
died runs out by itself; no locks, so this holds over NFS and between machines whose clocks agree within minutes.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from cas.errors import StoreError
from cas.files import replace_with
from cas.store import Store, check_name

LIFETIME = 6 * 3600.0
"""Seconds for which a lease holds, unless it is given back before."""


@contextlib.contextmanager
def leased(
    store: Store, names: Iterable[str], *, lifetime: float = LIFETIME, clock: Callable[[], float] = time.time
) -> Iterator[None]:
    """While the block runs, gc takes none of these objects. Raises StoreError when the lease cannot be written."""
    entry = {"names": sorted({check_name(name) for name in names}), "until": clock() + lifetime}
    path = store.root / "leases" / f"{os.getpid()}-{os.urandom(8).hex()}"
    replace_with(
        path, json.dumps(entry).encode(), sync=False
    )  # a lease need not survive a power cut, nor does its holder
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)


def leased_names(store: Store, *, clock: Callable[[], float] = time.time) -> set[str]:
    """The objects that are leased now; leases that have run out are removed. Raises StoreError."""
    names: set[str] = set()
    try:
        paths = list((store.root / "leases").iterdir())
    except OSError as error:
        raise StoreError(f"listing {store.root / 'leases'} failed: {error.strerror}") from error
    for path in paths:
        if path.name.startswith("."):
            continue
        entry = _read(path)
        if entry is None:
            continue
        held, until = entry
        if until > clock():
            names |= held
        else:
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)
    return names


def _read(path: Path) -> tuple[set[str], float] | None:
    """What a lease says; None when it has just been given back."""
    try:
        entry = json.loads(path.read_bytes())
        return set(entry["names"]), float(entry["until"])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        # What cannot be read may protect anything: rather no gc than one that takes too much.
        raise StoreError(f"the lease {path} cannot be read: remove it when nobody works with the store") from error
