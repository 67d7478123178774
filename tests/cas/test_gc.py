"""gc takes what nobody needs, and nothing else, whatever happens beside it."""

from __future__ import annotations

import io
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from cas.check import fsck
from cas.errors import ObjectMissing, StoreError
from cas.gc import collect
from cas.leases import leased, leased_names
from cas.store import Store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def put(store: Store, text: str, *, age: float = 0) -> str:
    """An object that was put so many seconds ago."""
    put_now = store.put_stream(io.BytesIO(text.encode()))
    path = store.path(put_now.name)
    os.utime(path, (path.stat().st_mtime - age,) * 2)
    return put_now.name


def test_what_is_needed_young_or_leased_stays(store: Store) -> None:
    needed, young, held, old = (put(store, text, age=100) for text in ("needed", "young", "held", "old"))
    store.renew(young)
    with leased(store, [held]):
        done = collect(store, lambda: {needed}, grace=50)
    assert done.removed == (old,)
    assert set(store.names()) == {needed, young, held}
    assert (done.bytes, done.kept) == (3, 3)
    assert collect(store, lambda: {needed}, grace=50).removed == (held,)


def test_the_link_by_sha256_goes_with_its_object(store: Store) -> None:
    sha256 = store.put_stream(io.BytesIO(b"x")).sha256
    collect(store, set, grace=-1)
    assert store.find_sha256(sha256) is None
    assert list(store.sha256_links()) == []


def test_a_dry_run_says_what_and_does_nothing(store: Store) -> None:
    name = put(store, "x", age=100)
    assert collect(store, set, grace=50, dry_run=True).removed == (name,)
    assert store.contains(name)


def test_a_budget_takes_the_longest_unused_first_and_no_more_than_needed(store: Store) -> None:
    oldest, older, newer = (
        put(store, text, age=age) for text, age in (("1" * 10, 300), ("2" * 10, 200), ("3" * 10, 100))
    )
    store.renew(oldest)
    assert collect(store, set, grace=-1, budget=25).removed == (older,)
    assert set(store.names()) == {oldest, newer}
    assert collect(store, set, grace=-1, budget=25).removed == ()


def test_a_lease_of_a_dead_process_runs_out(store: Store) -> None:
    now = [1000.0]
    with leased(store, [put(store, "x")], lifetime=60, clock=lambda: now[0]):
        assert len(leased_names(store, clock=lambda: now[0])) == 1
        now[0] = 1061.0
        assert leased_names(store, clock=lambda: now[0]) == set()


def test_a_lease_that_cannot_be_read_stops_gc(store: Store) -> None:
    (store.root / "leases" / "odd").write_text("?")
    with pytest.raises(StoreError, match="odd cannot be read"):
        collect(store, set, grace=-1)


def test_stale_temporary_files_are_swept(store: Store) -> None:
    old, new = store.temporary(), store.temporary()
    for path, age in ((old, 100), (new, 0)):
        path.write_bytes(b"x")
        os.utime(path, (path.stat().st_mtime - age,) * 2)
    assert collect(store, set, stale=50).temporary == 1
    assert not old.exists()
    assert new.exists()


def test_what_becomes_needed_between_the_marks_comes_back(store: Store) -> None:
    name = put(store, "x", age=100)
    answers = iter([set(), {name}])
    assert collect(store, lambda: next(answers), grace=50).removed == ()
    assert store.open_verified(name).read() == b"x"


@pytest.mark.parametrize("how", ["put", "renew", "path", "contains"])
def test_what_is_condemned_comes_back_when_somebody_wants_it(store: Store, how: str) -> None:
    """In the middle of gc, just after the objects have been moved aside."""
    name = put(store, "x", age=100)
    sha256 = store.put_stream(io.BytesIO(b"x")).sha256
    os.utime(store.path(name), (1, 1))
    asked = []

    def needed() -> set[str]:
        asked.append(1)
        if len(asked) == 2:
            assert not (store.root / "objects" / name[:2] / name[2:]).exists()
            if how == "put":
                assert put(store, "x") == name
            elif how == "renew":
                assert store.renew(name)
            elif how == "path":
                assert store.path(name).read_bytes() == b"x"
            else:
                assert store.contains(name)
        return set()

    collect(store, needed, grace=50)
    if how in ("put", "renew"):
        assert store.open_verified(name).read() == b"x"
        assert store.find_sha256(sha256) == name
    assert fsck(store) == []


def test_condemned_objects_of_a_collection_that_died_are_judged_again(store: Store) -> None:
    needed, old = put(store, "needed", age=100), put(store, "old", age=100)
    for name in (needed, old):
        os.rename(store.path(name), store.root / "condemned" / name)
    assert collect(store, lambda: {needed}, grace=50).removed == (old,)
    assert store.contains(needed)
    assert not store.contains(old)


def test_many_puts_during_many_collections_lose_nothing(store: Store) -> None:
    """Two collectors without any grace beside writers: whatever a put returned while leased is there and whole."""
    stop = threading.Event()

    def collecting() -> None:
        while not stop.is_set():
            collect(store, set, grace=-1)

    def writing(number: int) -> None:
        try:
            for turn in range(40):
                content = f"{number % 2}-{turn}".encode()  # two writers put the same
                with leased(store, [store_name(content)]):
                    name = store.put_stream(io.BytesIO(content)).name
                    for _ in range(3):
                        assert store.open_verified(name).read() == content
        finally:
            stop.set()

    with ThreadPoolExecutor() as pool:
        running = [pool.submit(collecting) for _ in range(2)]
        running += [pool.submit(writing, number) for number in range(4)]
    for future in running:
        future.result()
    assert fsck(store) == []


def store_name(content: bytes) -> str:
    import blake3

    return blake3.blake3(content).hexdigest()


class Gateways(RuleBasedStateMachine):
    """Pulls and collections of two gateways on one store, in any order: what an image or a pull needs is always there."""

    CONTENTS = st.integers(min_value=0, max_value=5)

    def __init__(self) -> None:
        super().__init__()
        import tempfile

        self.directory = tempfile.TemporaryDirectory()
        self.stores = [Store(Path(self.directory.name) / "store", sync=False) for _ in range(2)]
        self.images: dict[str, bytes] = {}
        self.pulls: dict[str, tuple[object, bytes]] = {}

    def teardown(self) -> None:
        for context, _ in self.pulls.values():
            context.__exit__(None, None, None)  # type: ignore[attr-defined]  # a context manager held open
        self.directory.cleanup()

    @rule(gateway=st.integers(0, 1), content=CONTENTS)
    def begin_a_pull(self, gateway: int, content: int) -> None:
        data = b"%d" % content
        name = store_name(data)
        if name in self.pulls:
            return
        context = leased(self.stores[gateway], [name])
        context.__enter__()
        assert self.stores[gateway].put_stream(io.BytesIO(data)).name == name
        self.pulls[name] = (context, data)

    @precondition(lambda self: self.pulls)
    @rule(keep=st.booleans())
    def end_a_pull(self, keep: bool) -> None:
        name, (context, data) = self.pulls.popitem()
        if keep:
            self.images[name] = data
        context.__exit__(None, None, None)  # type: ignore[attr-defined]  # a context manager held open

    @precondition(lambda self: self.images)
    @rule()
    def remove_an_image(self) -> None:
        self.images.popitem()

    @rule(gateway=st.integers(0, 1), budget=st.none() | st.integers(0, 3))
    def collect(self, gateway: int, budget: int | None) -> None:
        done = collect(self.stores[gateway], lambda: set(self.images), grace=-1, budget=budget)
        assert not set(done.removed) & (set(self.images) | set(self.pulls))

    @rule(gateway=st.integers(0, 1), name=st.integers(0, 5))
    def die_while_collecting(self, gateway: int, name: int) -> None:
        store = self.stores[gateway]
        victim = store_name(b"%d" % name)
        path = store.root / "objects" / victim[:2] / victim[2:]
        if path.exists():
            path.rename(store.root / "condemned" / victim)

    @invariant()
    def what_is_needed_is_there(self) -> None:
        for name, data in [*self.images.items(), *((name, data) for name, (_, data) in self.pulls.items())]:
            assert self.stores[0].open_verified(name).read() == data
        assert not any("is no" in finding.text for finding in fsck(self.stores[1]))


TestGateways = Gateways.TestCase
TestGateways.settings = settings(max_examples=25, stateful_step_count=20, deadline=None)


def test_a_removed_object_is_missing_by_name(store: Store) -> None:
    name = put(store, "x")
    collect(store, set, grace=-1)
    with pytest.raises(ObjectMissing):
        store.path(name)
