"""fsck finds what is out of shape; scrub finds what has rotted, at a bounded rate, and goes on where it was stopped."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import pytest

from cas.check import fsck, scrub
from cas.errors import SourceChanged
from cas.hashing import Names
from cas.store import Store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def put(store: Store, content: bytes) -> str:
    return store.put_stream(io.BytesIO(content)).name


def rot(store: Store, name: str) -> None:
    store.path(name).chmod(0o644)
    store.path(name).write_bytes(b"rotten")
    store.path(name).chmod(0o444)


def test_a_sound_store_has_no_findings(store: Store) -> None:
    put(store, b"x")
    store.temporary().write_bytes(b"half a download")
    assert fsck(store) == []


def test_fsck_finds_and_repairs(store: Store) -> None:
    name = put(store, b"x")
    gone = store.put_stream(io.BytesIO(b"gone"))
    os.unlink(store.path(gone.name))
    store.path(name).chmod(0o644)
    (store.path(name).parent / "README").write_text("what is this")
    (store.root / "by-sha256" / "ab").mkdir()
    (store.root / "by-sha256" / "ab" / "short").symlink_to("../../objects/xx")
    texts = {finding.text for finding in fsck(store)}
    assert texts == {
        "has the mode 644, not 444",
        "is no object",
        "leads to an object that is not there",
        "is no link by SHA-256",
    }
    assert all(finding.repaired for finding in fsck(store, repair=True))
    assert fsck(store) == []
    assert store.open_verified(name).read() == b"x"
    assert (store.root / "quarantine" / "README").exists()


def test_scrub_moves_what_has_rotted_to_quarantine_and_names_it(store: Store) -> None:
    good, bad = put(store, b"good"), store.put_stream(io.BytesIO(b"bad"))
    rot(store, bad.name)
    found = scrub(store)
    assert found.damaged == {bad.name: bad.sha256}
    assert (found.objects, found.complete) == (2, True)
    assert not store.contains(bad.name)
    assert store.find_sha256(bad.sha256) is None
    assert (store.root / "quarantine" / bad.name).read_bytes() == b"rotten"
    assert store.contains(good)
    assert fsck(store) == []
    assert put(store, b"bad") == bad.name
    assert store.open_verified(bad.name).read() == b"bad"


def test_scrub_goes_on_where_it_was_stopped(store: Store) -> None:
    for number in range(6):
        put(store, b"%d" % number)
    ticks = iter(range(100))
    first = scrub(store, seconds=3, clock=lambda: float(next(ticks)))
    assert not first.complete
    second = scrub(store)
    assert second.complete
    assert first.bytes + second.bytes == 6
    assert scrub(store).bytes == 6


def test_scrub_keeps_to_its_rate(store: Store) -> None:
    for number in range(4):
        put(store, b"%d" % number * 1000)
    now = [0.0]

    def pause(seconds: float) -> None:
        now[0] += seconds

    scrub(store, rate=1000, pause=pause, clock=lambda: now[0])
    assert now[0] == pytest.approx(4.0)


def test_scrub_tells_how_far_it_is(store: Store) -> None:
    for number in range(3):
        put(store, b"%d" % number)
    seen: list[tuple[int, int]] = []
    scrub(store, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 3), (2, 3), (3, 3)]


@pytest.mark.parametrize("size", [100, 20_000_000])
def test_a_source_that_changes_while_it_is_copied_is_noticed(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    from cas import copying

    source = tmp_path / "source"
    source.write_bytes(b"x" * size)
    real = copying._copy

    def meanwhile(*arguments: Any, **keywords: Any) -> Names:
        names = real(*arguments, **keywords)
        with source.open("ab") as file:
            file.write(b"more")
        return names

    monkeypatch.setattr(copying, "_copy", meanwhile)
    with pytest.raises(SourceChanged, match="source was written to while it was copied"):
        store.put_file(source)
    assert list(store.names()) == []
    assert os.listdir(store.root / "tmp") == []
