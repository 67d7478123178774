"""The contract of cas.store.Store, as written in its docstring."""

from __future__ import annotations

import hashlib
import io
import os
import random
import stat
import threading
from pathlib import Path

import blake3
import pytest

from cas.errors import (
    DigestMismatch,
    NameInvalid,
    ObjectCorrupt,
    ObjectMissing,
    SizeMismatch,
    StoreError,
)
from cas.store import Object, Store


@pytest.fixture
def store(file_system: Path) -> Store:
    return Store(file_system / "store")


def litter(store: Store) -> list[str]:
    return os.listdir(store.root / "tmp")


def test_put_stream_returns_both_names_and_the_size(store: Store) -> None:
    assert store.put_stream(io.BytesIO(b"hello")) == Object(
        name=blake3.blake3(b"hello").hexdigest(), sha256=hashlib.sha256(b"hello").hexdigest(), size=5
    )
    assert litter(store) == []


def test_an_object_lies_where_the_format_says_and_is_read_only(store: Store) -> None:
    name = store.put_stream(io.BytesIO(b"hello")).name
    path = store.root / "objects" / name[:2] / name[2:]
    assert store.path(name) == path
    assert path.read_bytes() == b"hello"
    assert stat.S_IMODE(path.stat().st_mode) == 0o444


def test_the_link_by_sha256_is_relative_and_leads_to_the_object(store: Store) -> None:
    put = store.put_stream(io.BytesIO(b"hello"))
    link = store.root / "by-sha256" / put.sha256[:2] / put.sha256[2:]
    assert not os.readlink(link).startswith("/")
    assert store.find_sha256(put.sha256) == put.name
    moved = store.root.with_name("moved")
    store.root.rename(moved)
    assert Store(moved).find_sha256(put.sha256) == put.name


def test_put_is_idempotent(store: Store) -> None:
    first = store.put_stream(io.BytesIO(b"hello"))
    assert store.put_stream(io.BytesIO(b"hello")) == first
    assert list(store.names()) == [first.name]
    assert litter(store) == []


@pytest.mark.parametrize("size", [0, 5, 3_000_000, 20_000_001])
@pytest.mark.parametrize("beside", [True, False])
def test_put_file_copies_and_leaves_the_source(store: Store, tmp_path: Path, size: int, beside: bool) -> None:
    """From the store's own file system (where blocks may be shared), and from another one."""
    source = (store.root.parent if beside else tmp_path) / "source"
    content = random.Random(size).randbytes(size)
    source.write_bytes(content)
    put = store.put_file(source)
    assert put == store.put_stream(io.BytesIO(content))
    assert source.read_bytes() == store.open_verified(put.name).read() == content
    assert litter(store) == []


@pytest.mark.parametrize("size", [5, 9 << 20])
def test_put_file_of_other_bytes_than_the_named_object_puts_nothing(store: Store, tmp_path: Path, size: int) -> None:
    source = tmp_path / "source"
    source.write_bytes(os.urandom(size))
    name = store.put_file(source).name
    assert store.put_file(source, name=name).name == name
    source.write_bytes(os.urandom(size))
    with pytest.raises(DigestMismatch, match="expected was " + name):
        store.put_file(source, name=name)
    assert list(store.names()) == [name]
    assert os.listdir(store.root / "tmp") == []


def test_put_file_of_a_missing_file_names_it(store: Store, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="nothing-here"):
        store.put_file(tmp_path / "nothing-here")


def test_put_file_of_what_is_no_file_is_refused_and_waits_for_nobody(store: Store, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path, tmp_path / "fifo"):
        with pytest.raises(StoreError, match=f"{path} cannot be put into the store: it is not a regular file"):
            store.put_file(path)
    assert litter(store) == []


def test_put_open_takes_the_whole_file_and_ends_when_it_is_told_to(store: Store, tmp_path: Path) -> None:
    content = os.urandom(3 << 20)
    (tmp_path / "source").write_bytes(content)
    seen: list[int] = []

    def ending(done: int) -> None:
        raise KeyError(done)

    with (tmp_path / "source").open("rb") as source:
        source.seek(1000)
        with pytest.raises(KeyError):
            store.put_open(source.fileno(), tmp_path / "source", progress=ending)
        assert litter(store) == []
        put = store.put_open(source.fileno(), tmp_path / "source", progress=seen.append)
    assert store.open_verified(put.name).read() == content
    assert seen == sorted(seen)
    assert seen[-1] == len(content)


def test_an_empty_object_is_an_object(store: Store) -> None:
    assert store.open_verified(store.put_stream(io.BytesIO()).name).read() == b""


@pytest.mark.parametrize(
    ("expected", "error"),
    [({"sha256": "0" * 64}, DigestMismatch), ({"size": 4}, SizeMismatch), ({"size": 6}, SizeMismatch)],
)
def test_bytes_that_are_not_the_expected_ones_leave_nothing_behind(store: Store, expected: dict, error: type) -> None:
    with pytest.raises(error):
        store.put_stream(io.BytesIO(b"hello"), **expected)
    assert list(store.names()) == []
    assert litter(store) == []
    assert os.listdir(store.root / "by-sha256") == []


def test_a_writer_that_is_not_committed_leaves_nothing(store: Store) -> None:
    with store.writer() as writer:
        writer.write(b"hello")
    assert list(store.names()) == []
    assert litter(store) == []


def test_a_stream_that_breaks_leaves_nothing(store: Store) -> None:
    class Breaking(io.RawIOBase):
        def read(self, size: int = -1) -> bytes:
            raise ConnectionResetError("cut")

    with pytest.raises(ConnectionResetError):
        store.put_stream(Breaking())  # type: ignore[arg-type]  # a stand-in for a socket
    assert litter(store) == []


def test_adopt_takes_the_file_in_without_copying(store: Store) -> None:
    path = store.temporary(".squashfs")
    path.write_bytes(b"image")
    inode = path.stat().st_ino
    put = store.adopt(path)
    assert store.path(put.name).stat().st_ino == inode
    assert not path.exists()


def test_adopt_refuses_a_file_from_elsewhere_and_a_symlink(store: Store, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_bytes(b"x")
    with pytest.raises(StoreError, match="elsewhere"):
        store.adopt(tmp_path / "elsewhere")
    link = store.temporary()
    link.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StoreError, match="adopting"):
        store.adopt(link)


def test_open_verified_refuses_damaged_bytes_and_open_unverified_hands_them_out(store: Store) -> None:
    name = store.put_stream(io.BytesIO(b"hello")).name
    store.path(name).chmod(0o644)
    store.path(name).write_bytes(b"hellO")
    with pytest.raises(ObjectCorrupt, match="scrub"):
        store.open_verified(name)
    assert store.open_unverified(name).read() == b"hellO"


def test_a_missing_object_is_reported_by_name(store: Store) -> None:
    for read in (store.path, store.open_verified, store.open_unverified, store.size):
        with pytest.raises(ObjectMissing, match="ab" * 32):
            read("ab" * 32)
    assert not store.contains("ab" * 32)
    assert store.find_sha256("ab" * 32) is None
    assert not store.delete("ab" * 32)
    assert not store.renew("ab" * 32)


@pytest.mark.parametrize("name", ["", "../../etc/passwd", "AB" * 32, "ab" * 31 + "/a", "ab" * 32 + "\n"])
def test_what_is_no_name_never_becomes_a_path(store: Store, name: str) -> None:
    for use in (store.path, store.open_verified, store.find_sha256, store.contains, store.delete, store.renew):
        with pytest.raises(NameInvalid):
            use(name)


def test_delete_removes_the_object_and_its_link(store: Store) -> None:
    put = store.put_stream(io.BytesIO(b"hello"))
    assert store.delete(put.name)
    assert not store.contains(put.name)
    assert store.find_sha256(put.sha256) is None
    assert list(store.sha256_links()) == []


def test_writers_of_the_same_and_of_other_bytes_do_not_disturb_each_other(store: Store) -> None:
    contents = [bytes([n % 5]) * 200_000 for n in range(20)]
    results: list[Object] = []
    threads = [
        threading.Thread(target=lambda c=content: results.append(store.put_stream(io.BytesIO(c))))
        for content in contents
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(store.names()) == sorted({blake3.blake3(c).hexdigest() for c in contents})
    assert len(results) == 20
    assert litter(store) == []


def test_permissions_do_not_depend_on_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        store = Store(tmp_path / "store")
        name = store.put_stream(io.BytesIO(b"hello")).name
    finally:
        os.umask(before)
    for directory in (store.root, store.root / "objects", store.path(name).parent):
        assert stat.S_IMODE(directory.stat().st_mode) == 0o755


def test_a_private_store_is_its_owners_alone(tmp_path: Path) -> None:
    assert stat.S_IMODE(Store(tmp_path / "store", private=True).root.stat().st_mode) == 0o700


CONTENT = b"first half, second half"
DIGEST = hashlib.sha256(CONTENT).hexdigest()


def test_a_writer_goes_on_with_what_a_killed_one_left(store: Store) -> None:
    child = os.fork()
    if child == 0:
        writer = store.writer(sha256=DIGEST, size=len(CONTENT), resume=True)
        writer.write(CONTENT[:10])
        os._exit(0)
    os.waitpid(child, 0)
    with store.writer(sha256=DIGEST, size=len(CONTENT), resume=True) as writer:
        assert writer.written == 10
        writer.write(CONTENT[10:])
        assert writer.commit().sha256 == DIGEST
    assert litter(store) == []


def test_what_a_writer_keeps_is_there_for_the_next_and_only_then(store: Store) -> None:
    for keep, expected in ((False, 0), (True, 0), (False, 5)):
        with store.writer(sha256=DIGEST, resume=True) as writer:
            assert writer.written == expected
            writer.write(CONTENT[expected : expected + 5])
            if keep:
                writer.keep()
    assert litter(store) == []


def test_two_writers_of_the_same_do_not_share(store: Store) -> None:
    with store.writer(sha256=DIGEST, resume=True) as one, store.writer(sha256=DIGEST, resume=True) as two:
        one.write(CONTENT[:5])
        two.write(CONTENT)
        assert two.commit().sha256 == DIGEST
        one.write(CONTENT[5:])
        assert one.commit().sha256 == DIGEST
    assert litter(store) == []


def test_a_left_part_that_is_wrong_is_refused_and_not_kept(store: Store) -> None:
    (store.root / "tmp" / f"partial-{DIGEST}").write_bytes(b"something else")
    with store.writer(sha256=DIGEST, size=len(CONTENT), resume=True) as writer:
        writer.write(CONTENT[14:])
        with pytest.raises(DigestMismatch):
            writer.commit()
    assert litter(store) == []
    (store.root / "tmp" / f"partial-{DIGEST}").write_bytes(b"x" * 100)
    with store.writer(sha256=DIGEST, size=len(CONTENT), resume=True) as writer:
        assert writer.written == 0
        writer.write(CONTENT)
        assert writer.commit().size == len(CONTENT)
