"""Finding what is wrong with a store: `fsck` looks at its shape, `scrub` reads every byte.

Neither removes an object: what is damaged goes to quarantine/, where an administrator can look at it.
"""

from __future__ import annotations

import contextlib
import json
import stat
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from cas.errors import NameInvalid, ObjectCorrupt, ObjectMissing
from cas.files import make_directory, naming, replace_with, sync_directory
from cas.store import Store, check_name

_BITE = 1 << 20


@dataclass(frozen=True)
class Finding:
    """One thing that is not as it should be. text: one line. repaired: it has been put right."""

    path: Path
    text: str
    repaired: bool


def fsck(store: Store, *, repair: bool = False) -> list[Finding]:
    """Checks that everything in the store is where and what docs/format.md says; reads no contents.

    Temporary and condemned files are no finding: a power cut leaves them and gc takes them. repair: set modes right,
    remove links that lead nowhere, move what is no object into quarantine. Raises StoreError.
    """
    findings: list[Finding] = []

    def find(path: Path, text: str, mend: Callable[[], object]) -> None:
        if repair:
            with naming(path, "repairing"):
                mend()
        findings.append(Finding(path, text, repair))

    objects = store.root / "objects"
    for directory in sorted(objects.iterdir()):
        if not directory.is_dir() or len(directory.name) != 2:
            find(directory, "is no directory of objects", partial(_quarantine, store, directory))
            continue
        for path in sorted(directory.iterdir()):
            status = path.lstat()
            if not _is_name(directory.name + path.name) or not stat.S_ISREG(status.st_mode):
                find(path, "is no object", partial(_quarantine, store, path))
            elif stat.S_IMODE(status.st_mode) != 0o444:
                find(path, f"has the mode {stat.S_IMODE(status.st_mode):o}, not 444", partial(path.chmod, 0o444))
    for link, name in list(store.sha256_links()):
        digest = link.parent.name + link.name
        if not _is_name(digest) or not _is_name(name) or str(link.readlink()) != f"../../objects/{name[:2]}/{name[2:]}":
            find(link, "is no link by SHA-256", partial(link.unlink, missing_ok=True))
        elif not store.contains(name):
            find(link, "leads to an object that is not there", partial(link.unlink, missing_ok=True))
    return findings


@dataclass(frozen=True)
class Scrubbed:
    """What a scrub found. damaged: object name -> its SHA-256 if that is known. complete: it came to the end."""

    objects: int
    bytes: int
    damaged: dict[str, str | None]
    complete: bool


def scrub(
    store: Store,
    *,
    rate: float | None = None,
    seconds: float | None = None,
    progress: Callable[[int, int], None] | None = None,
    pause: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> Scrubbed:
    """Reads every object and compares it with its name; what differs is moved to quarantine/ with its links removed.

    rate: bytes a second at most. seconds: stop after so long; the next call goes on from there (`scrub.json`).
    progress(done, total): bytes, after each object. Raises StoreError.
    """
    state = store.root / "scrub.json"
    begin = _cursor(state)
    names = sorted(store.names())
    sizes = {name: _size(store, name) for name in names}
    total, done, checked, started = sum(sizes.values()), 0, 0, clock()
    digests: dict[str, str] = {name: link.parent.name + link.name for link, name in store.sha256_links()}
    damaged: dict[str, str | None] = {}
    complete = True
    for name in names:
        done += sizes[name]
        if name <= begin:
            continue
        if seconds is not None and clock() - started >= seconds:
            complete = False
            break
        try:
            store.open_verified(name).close()
        except ObjectMissing:
            continue
        except ObjectCorrupt:
            damaged[name] = digests.get(name)
            _set_aside(store, name)
        checked += sizes[name]
        replace_with(state, json.dumps({"after": name}).encode(), sync=False)
        if rate:
            ahead = checked / rate - (clock() - started)
            if ahead > 0:
                pause(ahead)
        if progress is not None:
            progress(done, total)
    if complete:
        state.unlink(missing_ok=True)
    return Scrubbed(sum(1 for name in names if name > begin), checked, damaged, complete)


def _set_aside(store: Store, name: str) -> None:
    """Moves a damaged object to quarantine/ and removes its links, so that nobody gets it and a new put can come."""
    for link, target in list(store.sha256_links()):
        if target == name:
            with naming(link, "removing"):
                link.unlink(missing_ok=True)
    path = store.root / "objects" / name[:2] / name[2:]
    with naming(path, "quarantining"):
        _quarantine(store, path, name)
        if store.sync:
            sync_directory(path.parent)


def _quarantine(store: Store, path: Path, name: str | None = None) -> None:
    make_directory(store.root / "quarantine", mode=0o755, sync=False)
    with contextlib.suppress(FileNotFoundError):
        path.rename(store.root / "quarantine" / (name or path.name))


def _cursor(state: Path) -> str:
    """The object after which the last scrub was stopped; "" to begin at the beginning."""
    try:
        return check_name(json.loads(state.read_bytes())["after"])
    except (OSError, ValueError, KeyError, TypeError, NameInvalid):
        return ""


def _size(store: Store, name: str) -> int:
    try:
        return store.size(name)
    except ObjectMissing:
        return 0


def _is_name(text: str) -> bool:
    try:
        check_name(text)
    except NameInvalid:
        return False
    return True
