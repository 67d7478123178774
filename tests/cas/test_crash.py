"""The store after a death, a full disk or a broken disk at every single system call that changes it.

A layer over the calls of `os` counts those that change the file system, and at the n-th one kills the process (a forked
child) or fails. This is repeated for each n until the work comes to its end.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cas.check import fsck
from cas.errors import StoreError, StoreFull
from cas.gc import collect
from cas.leases import leased
from cas.store import Store

CHANGING = [
    "write",
    "fsync",
    "fchmod",
    "chmod",
    "link",
    "symlink",
    "rename",
    "replace",
    "unlink",
    "mkdir",
    "utime",
]
OLD, NEW, FILE = b"acknowledged before", b"on its way", b"a file outside"
KILLED = 9


@contextlib.contextmanager
def counting(at: int, strike: Callable[[str], None]) -> Iterator[list[str]]:
    """Calls strike(name) in the place of the at-th changing call; yields the names of the calls seen."""
    seen: list[str] = []
    real = {name: getattr(os, name) for name in CHANGING}

    def layer(name: str) -> Callable[..., object]:
        def call(*arguments: object, **keywords: object) -> object:
            seen.append(name)
            if len(seen) == at:
                strike(name)
            return real[name](*arguments, **keywords)

        return call

    for name in CHANGING:
        setattr(os, name, layer(name))
    try:
        yield seen
    finally:
        for name in CHANGING:
            setattr(os, name, real[name])


def put_stream(store: Store, source: Path) -> None:
    store.put_stream(io.BytesIO(NEW))


def put_again(store: Store, source: Path) -> None:
    store.put_stream(io.BytesIO(OLD))


def put_file(store: Store, source: Path) -> None:
    store.put_file(source)


def put_large_file(store: Store, source: Path) -> None:
    """One that is copied piece by piece while other threads hash it and start the disk."""
    with source.open("ab") as file:
        os.truncate(file.fileno(), 10 << 20)
    store.put_file(source)


def adopt(store: Store, source: Path) -> None:
    path = store.temporary()
    path.write_bytes(NEW)
    store.adopt(path)


def delete(store: Store, source: Path) -> None:
    store.delete(next(name for name in store.names() if store.open_unverified(name).read() == b"unwanted"))


def gc(store: Store, source: Path) -> None:
    with leased(store, [keep(store)]):
        collect(store, lambda: {keep(store)}, grace=-1, stale=-1)


def create(store: Store, source: Path) -> None:
    Store(store.root.with_name("another"))


WORKS = [put_stream, put_again, put_file, put_large_file, adopt, delete, gc, create]


def keep(store: Store) -> str:
    """The object that was acknowledged."""
    import blake3

    return blake3.blake3(OLD).hexdigest()


def prepared(directory: Path) -> tuple[Store, Path]:
    directory.mkdir()
    store = Store(directory / "store")
    for content in (OLD, b"unwanted"):
        store.put_stream(io.BytesIO(content))
    source = directory / "source"
    source.write_bytes(FILE)
    return store, source


def sound(store: Store) -> None:
    """Nothing acknowledged is lost, fsck has no findings, whatever is named is whole, and gc leaves no litter."""
    assert store.open_verified(keep(store)).read() == OLD
    sha256 = {name: link for link, name in store.sha256_links()}
    assert keep(store) in sha256
    assert fsck(store) == []
    for name in store.names():
        store.open_verified(name).close()
    collect(store, lambda: {keep(store)}, grace=-1, stale=-1)
    assert list(store.names()) == [keep(store)]
    for place in ("tmp", "condemned"):
        assert os.listdir(store.root / place) == []


@pytest.mark.parametrize("work", WORKS)
def test_killed_at_every_call(tmp_path: Path, work: Callable[[Store, Path], None]) -> None:
    at = 0
    while True:
        at += 1
        store, source = prepared(tmp_path / str(at))
        child = os.fork()
        if child == 0:
            with counting(at, lambda name: os._exit(KILLED)):
                work(store, source)
            os._exit(0)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        sound(store)
        if status == 0:
            break
        assert status == KILLED
    assert at > 3


@pytest.mark.parametrize(("number", "error"), [(errno.ENOSPC, StoreFull), (errno.EIO, StoreError)])
@pytest.mark.parametrize("work", WORKS)
def test_failing_at_every_call(
    tmp_path: Path, work: Callable[[Store, Path], None], number: int, error: type[StoreError]
) -> None:
    def strike(name: str) -> None:
        raise OSError(number, os.strerror(number))

    at = 0
    while True:
        at += 1
        store, source = prepared(tmp_path / str(at))
        with counting(at, strike) as seen:
            try:
                work(store, source)
            except StoreError as caught:
                assert isinstance(caught, error)
                assert str(tmp_path) in str(caught)
                assert "\n" not in str(caught)
        sound(store)
        if len(seen) < at:
            break


def test_bytes_and_names_reach_the_disk_before_a_put_returns(tmp_path: Path) -> None:
    """The order that makes a put survive a power cut: contents, then the name, then the directories that hold it."""
    store = Store(tmp_path / "store")
    calls: list[tuple[str, str]] = []
    real = {name: getattr(os, name) for name in ("fsync", "link", "symlink")}

    def record(name: str) -> Callable[..., object]:
        def call(first: object, *rest: object, **keywords: object) -> object:
            path = os.readlink(f"/proc/self/fd/{first}") if isinstance(first, int) else str(rest[0])
            calls.append((name, str(Path(path).relative_to(store.root))))
            return real[name](first, *rest, **keywords)

        return call

    try:
        for name in real:
            setattr(os, name, record(name))
        put = store.put_stream(io.BytesIO(NEW))
    finally:
        for name, function in real.items():
            setattr(os, name, function)
    object_directory, link_directory = f"objects/{put.name[:2]}", f"by-sha256/{put.sha256[:2]}"
    assert calls[0][0] == "fsync"
    assert calls[0][1].startswith("tmp/")
    rest = calls[1:]
    assert rest == [
        ("fsync", "objects"),
        ("link", f"{object_directory}/{put.name[2:]}"),
        ("fsync", object_directory),
        ("fsync", "by-sha256"),
        ("symlink", f"{link_directory}/{put.sha256[2:]}"),
        ("fsync", link_directory),
    ]
