"""The threads that answer requests: those that wait for something keep no other from being answered."""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest

from catalog.serving import _Lines

THREADS = 16


@dataclass
class Request:
    """What the dispatcher sees of a connection with a request: its headers, and that it can be served or given up."""

    work: Callable[[], object]
    known: bool = True
    requests: list[SimpleNamespace] = field(init=False)

    def __post_init__(self) -> None:
        self.requests = [SimpleNamespace(headers={"AUTHENTICATION": "x"} if self.known else {})]

    def service(self) -> None:
        self.work()

    def cancel(self) -> None:
        pass


@pytest.fixture
def lines() -> _Lines:
    made = _Lines(THREADS // 2)
    made.set_thread_count(THREADS)
    return made


def test_requests_that_wait_use_every_thread(lines: _Lines) -> None:
    together = threading.Barrier(THREADS + 1, timeout=60)
    try:
        for _ in range(3):
            for _ in range(THREADS):
                lines.add_task(Request(together.wait))
            together.wait()  # passes only when all of them are being served
    finally:
        lines.shutdown()


def test_a_request_is_answered_beside_those_that_wait(lines: _Lines) -> None:
    release, answered = threading.Event(), [threading.Event() for _ in range(50)]
    try:
        for _ in range(THREADS - 1):
            lines.add_task(Request(release.wait))
        for one in answered:
            lines.add_task(Request(one.set))
        assert all(one.wait(60) for one in answered)
    finally:
        release.set()
        lines.shutdown()


def test_strangers_have_half_of_the_threads_and_wait_behind_all_others(lines: _Lines) -> None:
    release, known = threading.Event(), threading.Event()
    begun = threading.Semaphore(0)

    def stranger() -> None:
        begun.release()
        release.wait()

    try:
        for _ in range(THREADS):
            lines.add_task(Request(stranger, known=False))
        lines.add_task(Request(known.set))
        assert known.wait(60)
        assert all(begun.acquire(timeout=60) for _ in range(THREADS // 2))
        assert not begun.acquire(blocking=False)
        release.set()
        assert all(begun.acquire(timeout=60) for _ in range(THREADS - THREADS // 2))
    finally:
        release.set()
        lines.shutdown()


def test_many_requests_of_both_kinds_are_all_answered(lines: _Lines) -> None:
    done = threading.Semaphore(0)
    try:
        for number in range(2000):
            lines.add_task(Request(done.release, known=number % 3 > 0))
        assert all(done.acquire(timeout=60) for _ in range(2000))
    finally:
        lines.shutdown()
