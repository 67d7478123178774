"""Decompression one step ahead of who reads: in a thread of its own, so that merging and compressing need not wait for it.

isa-l and zstd let go of the interpreter while they work. What is ahead is bounded (a few pieces), so memory is too.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from types import TracebackType

_AHEAD = 6 << 20


class Ahead:
    """`read` gives what the wrapped read gives, in order, and raises what it raises. A context manager: leaving ends it."""

    def __init__(self, read: Callable[[], bytes]) -> None:
        self._source = read
        self._pieces: deque[bytes] = deque()
        self._size = 0
        self._ended = False
        self._failure: BaseException | None = None
        self._closed = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="decompress", daemon=True)

    def __enter__(self) -> Ahead:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join()

    def read(self) -> bytes:
        """The next bytes, b"" at the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._pieces or self._ended)
            if self._pieces:
                piece = self._pieces.popleft()
                self._size -= len(piece)
                self._changed.notify_all()
                return piece
            if self._failure is not None:
                raise self._failure
            return b""

    def _run(self) -> None:
        try:
            while piece := self._source():
                with self._changed:
                    self._pieces.append(piece)
                    self._size += len(piece)
                    self._changed.notify_all()
                    self._changed.wait_for(lambda: self._size < _AHEAD or self._closed)
                    if self._closed:
                        return
        except BaseException as error:  # noqa: BLE001  # raised again, all of it, in the thread that reads
            self._failure = error
        finally:
            with self._changed:
                self._ended = True
                self._changed.notify_all()
