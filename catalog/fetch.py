"""Getting an image's layers into the layer store: side by side, each once however many pulls want it, whole or not at
all.

A layer that is there is not asked for again. One that another pull is fetching is waited for. What breaks is taken up
again at the byte where it broke. SHA-256 is checked and BLAKE3 computed in the pass that writes.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager

from cas.errors import DigestMismatch, SizeMismatch, StoreError
from cas.store import Store
from cas.writer import Writer
from catalog.failure import PullAborted, PullFailed
from catalog.limits import Limits
from catalog.manifest import Descriptor
from catalog.registry import BrokenTransfer, Registry

Claim = Callable[[str], AbstractContextManager[None]]
"""Waits until the caller alone holds a name, among all pulls that share the store."""


_CONNECTIONS = 16
"""Layers at a time from all registries together."""
_all_slots = threading.BoundedSemaphore(_CONNECTIONS)
_registry_slots: dict[tuple[str, int], threading.BoundedSemaphore] = {}
_registry_slots_lock = threading.Lock()


def _slots(registry: str, count: int) -> threading.BoundedSemaphore:
    """What bounds the downloads of this gateway from one registry."""
    with _registry_slots_lock:
        return _registry_slots.setdefault((registry, count), threading.BoundedSemaphore(count))


class Progress:
    """Bytes and layers that have come, over all threads of a pull; `tell` gets them a few times a second."""

    def __init__(self, layers: Iterable[Descriptor]) -> None:
        sizes = {layer.sha256: layer.size for layer in layers}
        self.total = sum(sizes.values())
        self.layers = len(sizes)
        self._lock = threading.Lock()
        self._done: dict[str, int] = dict.fromkeys(sizes, 0)
        self._complete: set[str] = set()

    def at(self, layer: Descriptor, done: int) -> None:
        with self._lock:
            self._done[layer.sha256] = done

    def complete(self, layer: Descriptor) -> None:
        with self._lock:
            self._done[layer.sha256] = layer.size
            self._complete.add(layer.sha256)

    def now(self) -> tuple[int, int]:
        """Bytes and layers that are here."""
        with self._lock:
            return sum(self._done.values()), len(self._complete)


def fetch_layers(
    registries: Sequence[Registry],
    layers: Sequence[Descriptor],
    store: Store,
    limits: Limits,
    *,
    what: str,
    parallel: int,
    stop: threading.Event,
    watch: Callable[[Progress], None],
    note: Callable[[str], None],
    claim: Claim,
) -> dict[str, str]:
    """Brings all layers into the store; returns the object name of each by its SHA-256.

    registries: the repository, its mirrors before it; one that fails is noted and the next one asked. parallel:
    layers at a time from the registry, over all pulls. stop: is set here when one fails, and ends the others. watch:
    called several times a second from the calling thread, and may raise to end it all. Raises PullFailed,
    PullAborted.
    """
    wanted = list({layer.sha256: layer for layer in layers}.values())
    progress = Progress(wanted)
    fetch = _Fetch(registries, store, limits, what, progress, stop, note, claim, _slots(registries[-1].name, parallel))
    names: dict[str, str] = {}
    missing = []
    for layer in wanted:
        name = fetch.present(layer)
        if name is not None:
            names[layer.sha256] = name
        else:
            missing.append(layer)
    watch(progress)
    if not missing:
        return names
    end = time.monotonic() + limits.longest
    # The largest first: the last to end is then a small one.
    missing.sort(key=lambda layer: -layer.size)
    with ThreadPoolExecutor(max_workers=max(1, min(parallel, len(missing))), thread_name_prefix="layer") as pool:
        futures: dict[Future[str], Descriptor] = {pool.submit(fetch.layer, layer): layer for layer in missing}
        pending = set(futures)
        try:
            while pending:
                done, pending = wait(pending, timeout=0.2, return_when=FIRST_COMPLETED)
                watch(progress)
                if pending and time.monotonic() > end:
                    raise PullFailed(
                        f"the layers of {what} have not come within {limits.longest:.0f} s, which is the limit: pull "
                        "again to go on, or ask the administrator for more (Pull.LongestDownloadSeconds)"
                    )
                for future in done:
                    names[futures[future].sha256] = future.result()
        except BaseException as error:
            fetch.taken_up_again = isinstance(error, PullAborted) or time.monotonic() > end
            stop.set()
            for future in pending:
                future.cancel()
            raise
    watch(progress)
    return names


class _Fetch:
    """What the threads of one pull share."""

    def __init__(
        self,
        registries: Sequence[Registry],
        store: Store,
        limits: Limits,
        what: str,
        progress: Progress,
        stop: threading.Event,
        note: Callable[[str], None],
        claim: Claim,
        slots: threading.Semaphore,
    ) -> None:
        self.registries = registries
        self.note = note
        self.slots = slots
        self.taken_up_again = False  # the pull was stopped, but did not fail: what is here will be wanted
        self.store = store
        self.limits = limits
        self.what = what
        self.progress = progress
        self.stop = stop
        self.claim = claim

    def layer(self, layer: Descriptor) -> str:
        """One layer, fetched here, or by another pull that has claimed it. Returns the object's name."""
        with self.claim(f"layer:{layer.sha256}"):
            self._check()
            name = self.present(layer)
            if name is not None:
                return name
            with self.slots, _all_slots:
                return self._put_from_any(layer)

    def present(self, layer: Descriptor) -> str | None:
        """The layer's object when it is in the store, renewed against gc."""
        name = self.store.find_sha256(layer.sha256)
        if name is None or not self.store.renew(name):
            return None
        self.progress.complete(layer)
        return name

    def _check(self) -> None:
        if self.stop.is_set():
            raise PullAborted("the pull has ended")

    def _put_from_any(self, layer: Descriptor) -> str:
        *mirrors, origin = self.registries
        for mirror in mirrors:
            try:
                return self._put(layer, mirror)
            except PullFailed as error:
                self.note(f"{error}; the next place is asked")
        return self._put(layer, origin)

    def _put(self, layer: Descriptor, registry: Registry, *, resume: bool = True) -> str:
        name = registry.name
        resumed = 0
        try:
            with self.store.writer(sha256=layer.sha256, size=layer.size, resume=resume) as writer:
                resumed = writer.written
                try:
                    self._download(layer, writer, registry)
                except PullAborted:
                    if self.taken_up_again:
                        writer.keep()
                    raise
                stored = writer.commit().name
        except DigestMismatch as error:
            if resumed:  # what an earlier attempt left may be what is wrong
                return self._put(layer, registry, resume=False)
            raise PullFailed(
                f"registry {name} sent other bytes for layer {layer.digest} of {self.what}: {error}"
            ) from error
        except SizeMismatch as error:
            raise PullFailed(
                f"registry {name} sent layer {layer.digest} of {self.what} with a wrong size: {error}"
            ) from error
        except StoreError as error:
            raise PullFailed(f"layer {layer.digest} of {self.what} cannot be stored: {error}") from error
        self.progress.complete(layer)
        return stored

    def _download(self, layer: Descriptor, writer: Writer, registry: Registry) -> None:
        """Writes the layer's bytes, going on where a broken connection left off."""
        failures = 0
        while writer.written < layer.size or not layer.size:
            before = writer.written
            try:
                with registry.blob(layer, self.what, before) as (start, pieces):
                    skip = before - start
                    for piece in pieces:
                        self._check()
                        if skip:
                            piece, skip = piece[skip:], max(0, skip - len(piece))
                        writer.write(piece)
                        self.progress.at(layer, writer.written)
                return  # the whole answer came; `commit` says whether it was long enough
            except BrokenTransfer as error:
                # Only tries that bring next to nothing add up: a connection that breaks every gigabyte still gets there.
                worth = self.limits.slowest * self.limits.timeout
                failures = 1 if writer.written - before >= worth else failures + 1
                if failures >= self.limits.attempts:
                    raise PullFailed(
                        f"registry {registry.name} broke the connection in the middle of layer {layer.digest} of "
                        f"{self.what}: {error}"
                    ) from error
                why = f"broke the connection in the middle of a layer of {self.what} ({error})"
                registry.backoff(failures, why)
