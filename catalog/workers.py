"""The workers: threads that take waiting pulls and imports, carry them out and record how they ended.

Promises that every attempt ends: in an image or in a failure with a reason. A worker claims an attempt by an event (only one
can win), holds a lease while it works, and stops when it finds the claim superseded. Attempts of processes that died, here
or on another gateway, are found by `scan` and taken up again. `step` does one attempt in the calling thread, for
tests and for the simulator.
"""

from __future__ import annotations

import logging
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Protocol
from uuid import UUID

from eventsourcing.persistence import PersistenceError

from catalog.application import Catalog, Contended
from catalog.config import Configuration
from catalog.counters import Counters
from catalog.desk import Wallet
from catalog.domain import ImageReference, Superseded
from catalog.failure import PullAborted, PullFailed
from catalog.image_list import ImageList
from catalog.leases import Leases, Progress, SideTableUnavailable
from catalog.publication import Publication
from catalog.record import Attempt, Image, Record
from catalog.reference import Reference
from catalog.scratch import sweep
from catalog.settling import Settling
from catalog.states import NotAllowed, Stage

log = logging.getLogger("shifter.workers")

_PROGRESS_EVERY = 0.25  # seconds between two writes of byte progress
_TROUBLE = (PersistenceError, SideTableUnavailable, sqlite3.Error, OSError)  # of a store that will come back
_RETRY_STORE = 1.0  # seconds between two tries to record an outcome while the store is away


class Job(Protocol):
    """Brings one image in. `carry_out` returns it, or raises PullFailed (a sentence) or PullAborted."""

    def carry_out(self, record: Record, watch: Watch) -> Image: ...


class Watch:
    """How a running job speaks to the catalog: the Observer of catalog.pull."""

    def __init__(self, workers: Workers, reference: Reference, attempt: int, worker: str, source: str) -> None:
        self._source = source
        self._workers = workers
        self._reference = reference
        self._attempt = attempt
        self._worker = worker
        self._progress = Progress(attempt)
        self._written_at = 0.0
        self._stage: tuple[str, float] | None = None
        self.lost = False

    def stage(self, stage: Stage) -> None:
        """The job begins `stage`. Raises PullAborted when somebody else has taken the job over."""
        self.check()
        self.staged(str(stage))
        try:
            self._workers.record(
                self._reference,
                lambda image: image.reach(stage, self._workers.clock(), self._worker, attempt=self._attempt),
            )
        except (Superseded, NotAllowed) as error:
            raise PullAborted(str(error)) from error

    def staged(self, stage: str | None) -> None:
        """Counts the seconds of the stage that ends, and begins `stage`."""
        now = self._workers.monotonic()
        if self._stage is not None:
            self._workers.counters.add("shifter_stage_seconds_total", self._stage[0], now - self._stage[1])
        self._stage = (stage, now) if stage is not None else None

    def ended(self, outcome: str) -> None:
        """Counts the attempt, and the bytes that it brought."""
        self.staged(None)
        self._workers.counters.add("shifter_attempts_total", outcome)
        if self._progress.done:
            self._workers.counters.add("shifter_bytes_total", self._source, self._progress.done)

    def progress(self, *, done: int, total: int, layers_done: int, layers: int) -> None:
        self._write(Progress(self._attempt, done, total, layers_done, layers, self._progress.note), force=False)

    def note(self, text: str) -> None:
        """A sentence worth showing to who waits."""
        now = self._progress
        self._write(Progress(now.attempt, now.done, now.total, now.layers_done, now.layers, text), force=True)

    def check(self) -> None:
        if self.lost:
            raise PullAborted(f"another worker has taken over {self._reference}")
        if self._workers.stopping:
            raise PullAborted("the gateway is shutting down")

    def claim(self, name: str) -> AbstractContextManager[None]:
        """Waits until this job alone holds `name`, over all threads and gateways."""
        return self._workers.alone(name, self.check)

    def _write(self, progress: Progress, *, force: bool) -> None:
        now = self._workers.monotonic()
        finished = progress.total > 0 and progress.done == progress.total
        self._progress = progress
        if force or finished or now - self._written_at >= _PROGRESS_EVERY:
            self._written_at = now
            try:
                self._workers.leases.table.save_progress(self._reference.uuid.hex, progress)
            except SideTableUnavailable as error:
                log.warning("progress of %s not shown: %s", self._reference, error)


class Workers:
    """A pool of workers of this process. `job` gives what carries out an attempt of a kind (`pull`, `import`)."""

    def __init__(
        self,
        configuration: Configuration,
        catalog: Catalog,
        images: ImageList,
        leases: Leases,
        publication: Publication,
        wallet: Wallet,
        jobs: Callable[[str], Job],
        monotonic: Callable[[], float],
        counters: Counters,
    ) -> None:
        self.counters = counters
        self.leases = leases
        self.monotonic = monotonic
        self.stopping = False
        self._configuration = configuration
        self._catalog = catalog
        self._images = images
        self._publication = publication
        self._wallet = wallet
        self._jobs = jobs
        self.settling = Settling(publication, configuration.platforms.values())
        self._changed = threading.Condition()
        self._waiting: deque[UUID] = deque()
        self._mine: dict[UUID, Watch | None] = {}  # waiting or worked at by this process
        self._threads: list[threading.Thread] = []
        self._stop = threading.Event()
        self._alone: dict[str, threading.Lock] = {}
        self.each_beat: Callable[[], None] = lambda: None  # what else is to be done every second or two

    def clock(self) -> float:
        return self._catalog.clock()

    # Threads

    def start(self) -> None:
        """Takes up what a dead gateway left, and starts the threads."""
        self.leases.beat()
        swept = sweep(self._configuration.expand_directory)
        if swept:
            log.info(
                "removed %d directories that killed gateways left in %s", swept, self._configuration.expand_directory
            )
        threads = [
            threading.Thread(target=self._work, name=f"worker-{n}", daemon=True)
            for n in range(self._configuration.worker_threads)
        ]
        threads.append(threading.Thread(target=self._heart, name="heart", daemon=True))
        threads += self.settling.threads()
        self._threads = threads
        for thread in threads:
            thread.start()

    def stop(self, patience: float = 3.0) -> bool:
        """Lets jobs stop at their next check and gives the leases back; unfinished attempts are taken up later.

        Returns whether all threads ended within `patience` seconds; the process must then close nothing they use.
        """
        self.stopping = True
        self._stop.set()
        self.settling.stop()
        with self._changed:
            self._changed.notify_all()
        end = time.monotonic() + patience
        for thread in self._threads:
            thread.join(max(0.0, end - time.monotonic()))
        try:
            self.leases.close()
        except SideTableUnavailable as error:
            log.warning("leases not given back, they will run out: %s", error)
        return not any(thread.is_alive() for thread in self._threads)

    def wake(self, identity: UUID) -> None:
        """There is an attempt for this reference; takes its lease so that other gateways leave it to us."""
        with self._changed:
            if identity in self._mine:
                return
            self._mine[identity] = None
        if not self.leases.take(f"pull:{identity.hex}"):
            with self._changed:
                del self._mine[identity]
            return
        with self._changed:
            self._waiting.append(identity)
            self._changed.notify()

    def scan(self) -> int:
        """Takes up attempts that nobody living works at; returns how many."""
        found = 0
        for record in self._images.live():
            identity, attempt = record.reference.uuid, record.attempt
            if identity in self._mine or attempt is None:
                continue
            if attempt.credentialed and attempt.worker is None and not self._may_take_credentialed(attempt):
                continue
            holder = self.leases.table.holder(f"pull:{identity.hex}")
            if holder is not None and holder != self.leases.instance and not self.leases.dead(holder):
                continue
            self.wake(identity)
            found += 1
        return found

    def _may_take_credentialed(self, attempt: Attempt) -> bool:
        # Between a request's event and its lease, another gateway would fail it for want of the credential.
        return attempt.gateway == self.leases.instance or self.leases.dead(attempt.gateway)

    def step(self) -> bool:
        """Does one waiting attempt in this thread; False when none waits."""
        with self._changed:
            if not self._waiting:
                return False
            identity = self._waiting.popleft()
        self._do(identity)
        return True

    def healthy(self) -> bool:
        """Whether all threads that were started still run."""
        return all(thread.is_alive() for thread in self._threads)

    def busy(self) -> int:
        """How many attempts wait or are worked at here."""
        with self._changed:
            return len(self._mine)

    def _work(self) -> None:
        while not self._stop.is_set():
            with self._changed:
                while not self._waiting and not self._stop.is_set():
                    self._changed.wait()
                if self._stop.is_set():
                    return
                identity = self._waiting.popleft()
            self._do(identity)

    def _heart(self) -> None:
        pause = min(self.leases.patience / 5, 2.0)
        while not self._stop.is_set():
            try:
                self.leases.beat()
                self._notice_lost()
                self.scan()
                self.each_beat()
            except _TROUBLE as error:
                log.warning("cannot reach the store: %s", error)
            self._stop.wait(pause)

    def _notice_lost(self) -> None:
        held = self.leases.table.leases()
        with self._changed:
            working = [(identity, watch) for identity, watch in self._mine.items() if watch is not None]
        for identity, watch in working:
            if held.get(f"pull:{identity.hex}") != self.leases.instance:
                watch.lost = True

    # One attempt

    def _do(self, identity: UUID) -> None:
        worker = f"{self.leases.instance}/{threading.current_thread().name}"
        name = f"pull:{identity.hex}"
        try:
            if self.leases.take(name):
                self._carry_out(identity, worker)
        except (*_TROUBLE, Contended) as error:
            log.error("attempt left for later: %s", error)
        finally:
            with self._changed:
                self._mine.pop(identity, None)
            try:
                self.leases.drop(name)
            except SideTableUnavailable as error:
                log.warning("lease not given back, it will run out: %s", error)
        if not self.stopping:
            self._again(identity)

    def _again(self, identity: UUID) -> None:
        """A new attempt may have been asked for while the old one was being put away."""
        try:
            image = self._catalog.load(identity)
            if image is not None and image.record.state.live and image.record.attempt is not None:
                self.wake(identity)
        except _TROUBLE as error:
            log.warning("will look again at the next scan: %s", error)

    def _carry_out(self, identity: UUID, worker: str) -> None:
        image = self._catalog.load(identity)
        if image is None or not image.record.state.live or image.record.attempt is None:
            return
        record, attempt = image.record, image.record.attempt
        source = "file" if attempt.kind == "import" else attempt.location
        watch = Watch(self, record.reference, attempt.number, worker, source)
        with self._changed:
            self._mine[identity] = watch
        first = Stage.HASHING if attempt.kind == "import" else Stage.PULLING
        try:
            self._catalog.change(
                record.reference,
                lambda it: it.reach(first, self.clock(), worker, attempt=attempt.number, takeover=True),
            )
            done = self._run(record, attempt, watch)
            self._finish(record, done, attempt.number, worker)
            watch.ended("ready")
        except PullFailed as failure:
            watch.ended("failure")
            self._fail(record.reference, str(failure), attempt.number, worker)
        except (PullAborted, Superseded, NotAllowed) as reason:
            log.info("%s: stopped: %s", record.reference, reason)
            return
        self._wallet.drop(identity, attempt.number)

    def _run(self, record: Record, attempt: Attempt, watch: Watch) -> Image:
        lost_credential = attempt.credentialed and self._wallet.get(record.reference.uuid, attempt.number) is None
        if lost_credential:
            raise PullFailed(
                "the gateway was restarted during this pull and keeps no credentials on disk; please pull again"
            )
        try:
            return self._jobs(attempt.kind).carry_out(record, watch)
        except (PullFailed, PullAborted, PersistenceError, SideTableUnavailable, sqlite3.Error):
            raise
        except Exception as error:  # whatever a job meets, its user must be told and no state may stick
            log.exception("%s: unexpected error", record.reference)
            raise PullFailed(
                f"internal error in the gateway ({type(error).__name__}); its log has the details"
            ) from error

    def _finish(self, record: Record, image: Image, attempt: int, worker: str) -> None:
        platform, old = self._configuration.platforms[record.reference.system], record.image

        def complete(reference: ImageReference) -> None:
            # Published before it is READY: a user who sees READY must be able to run it.
            access, owner = reference.access_after(image)
            self._publication.publish(platform, image, access)
            reference.complete(image, access, owner, self.clock(), worker, attempt=attempt)

        with ExitStack() as owing:
            owing.enter_context(self._publication.owing(platform, image.id))
            if old is not None and old.id != image.id:
                owing.enter_context(self._publication.owing(platform, old.id))
            with self._publication.changing(platform, image.id):
                self.record(record.reference, complete)
            if old is not None and old.id != image.id:
                self._publication.settle(platform, old.id)

    def _fail(self, reference: Reference, reason: str, attempt: int, worker: str) -> None:
        log.info("%s: failed: %s", reference, reason)
        try:
            self.record(reference, lambda image: image.fail(reason, self.clock(), worker, attempt=attempt))
        except (Superseded, NotAllowed) as error:
            log.info("%s: %s", reference, error)

    def record(self, reference: Reference, command: Callable[[ImageReference], None]) -> None:
        """Records what happened; while the store is away, tries again (another gateway takes over if we cannot)."""
        while True:
            try:
                self._catalog.change(reference, command)
                return
            except (PersistenceError, SideTableUnavailable, sqlite3.Error, Contended) as error:
                log.warning("%s: cannot record: %s; trying again", reference, error)
                if self._stop.wait(_RETRY_STORE):
                    raise

    @contextmanager
    def alone(self, name: str, check: Callable[[], None] = lambda: None) -> Iterator[None]:
        """While it lasts, this thread alone holds `name`, among all threads of all gateways of this store."""
        with self._changed:
            lock = self._alone.setdefault(name, threading.Lock())
        while not lock.acquire(timeout=0.5):
            check()
        try:
            while not self.leases.take(f"alone:{name}"):
                check()
                self._stop.wait(0.1)
            try:
                yield
            finally:
                self.leases.drop(f"alone:{name}")
        finally:
            lock.release()
