"""One line of progress: redrawn in place on a terminal, one line a state in a file or a pipe.

``Progress`` gets the gateway's record at every poll and decides what to show. It holds no clock of its own but the
one for the rate, never fails for a narrow terminal, and leaves the cursor at the start of a line when ``end`` returns.
"""

from __future__ import annotations

import os
import time

TYPE_CHECKING = False  # see runtime/munge.py
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any, TextIO

_LONGEST_BAR, _SHORTEST_BAR = 30, 6  # characters between the brackets


def local_time(seconds: float) -> str:
    """``2026-11-23T18:00:00``: the form that tools which read ``shifterimg images`` expect."""
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(seconds))


def zoned_time(seconds: float) -> str:
    """Local time with its offset from UTC, for people who compare clocks."""
    text = time.strftime("%Y-%m-%dT%H:%M:%S%z", time.localtime(seconds))
    return f"{text[:-2]}:{text[-2:]}"


def size(count: float) -> str:
    """Bytes as people read them: ``512 B``, ``1.4 MiB``."""
    units = ("B", "KiB", "MiB", "GiB", "TiB")
    for unit in units:
        if count < 1024 or unit == units[-1]:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    raise AssertionError("unreachable")


class Progress:
    """Shows the states of one pull or import on ``stream``. ``lines``: never redraw, even on a terminal (``-v``)."""

    def __init__(
        self, stream: TextIO, doing: str, image: str, *, lines: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        self._stream = stream
        self._what = f"{doing} Image: {image}, status: "
        self._redraw = stream.isatty() and not lines
        self._clock = clock
        self._shown: str | None = None
        self._now = self._entered = 0.0  # the clock at this redrawing, and when its state was first seen
        self._began: tuple[float, int] | None = None  # time and bytes when the first bytes were seen

    def show(self, status: str, progress: Mapping[str, Any] | None = None, note: str = "") -> None:
        """Show ``status``; ``progress`` has done, total (bytes), layers_done, layers as the gateway gives them."""
        if self._redraw:
            self._now = self._clock()
            if status != self._shown:
                self._entered = self._now
            # The gateway's last count of bytes stays in its answers while later stages run.
            counted = progress if progress and (status == "PULLING" or not _complete(progress)) else {}
            parts = [*([note] if note else []), *self._parts(counted), *self._patience(counted)]
            line = _fit(self._line(status), parts, self._width())
            self._stream.write(f"\r{self._with_bar(line, counted)}\x1b[K")
            self._shown = status
        elif self._shown != status + note:
            self._stream.write(self._line(status) + (f" ({note})" if note else "") + "\n")
            self._shown = status + note
        self._stream.flush()

    def end(self) -> None:
        """Leave the line: what follows starts at a line of its own."""
        if self._redraw and self._shown is not None:
            self._stream.write("\n")
            self._stream.flush()
            self._shown = None

    def _line(self, status: str) -> str:
        return f"{local_time(time.time())} {self._what}{status}"

    def _width(self) -> int:
        try:
            return os.get_terminal_size(self._stream.fileno()).columns or 80
        except (OSError, ValueError):
            return 80

    def _parts(self, progress: Mapping[str, Any]) -> list[str]:
        """What there is to say about the bytes, the most important first."""
        done, total, layers_done, layers = (
            _count(progress.get(name)) for name in ("done", "total", "layers_done", "layers")
        )
        parts: list[str] = []
        if isinstance(note := progress.get("note"), str) and note:
            parts.append(note)
        if total > 0:
            done = min(done, total)
            parts += [f"{100 * done // total:3d}%", f"{size(done)} of {size(total)}"]
        elif done > 0:
            parts.append(size(done))
        if rate := self._rate(done):
            parts.append(f"{size(rate)}/s")
        if layers > 1:
            parts.append(f"{layers_done} of {layers} layers")
        return parts

    def _patience(self, progress: Mapping[str, Any]) -> list[str]:
        """A state without a count of bytes shows that time goes by: silence looks like a hang."""
        elapsed = self._now - self._entered
        return [f"for {elapsed:.0f} s"] if not progress and elapsed >= 2 else []

    def _with_bar(self, line: str, progress: Mapping[str, Any]) -> str:
        """``line`` and a bar in what is left of the width, if that is enough for one."""
        done, total = _count(progress.get("done")), _count(progress.get("total"))
        room = min(self._width() - len(line) - 5, _LONGEST_BAR)
        if total <= 0 or room < _SHORTEST_BAR:
            return line
        filled = room * min(done, total) // total
        return f"{line}  [{'#' * filled}{'.' * (room - filled)}]"

    def _rate(self, done: int) -> float:
        if self._began is None or done < self._began[1]:  # another stage counts from nothing again
            self._began = (self._now, done)
            return 0.0
        elapsed = self._now - self._began[0]
        return (done - self._began[1]) / elapsed if elapsed >= 1 else 0.0


def _fit(line: str, parts: list[str], width: int) -> str:
    """``line`` and as many of ``parts`` as fit into ``width`` columns; the last column stays free, so nothing wraps."""
    for part in parts:
        if len(line) + 2 + len(part) >= width:
            break
        line += "  " + part
    return line[: width - 1]


def _complete(progress: Mapping[str, Any]) -> bool:
    return _count(progress.get("done")) >= _count(progress.get("total"))


def _count(value: object) -> int:
    return int(value) if isinstance(value, (int, float)) and not isinstance(value, bool) and value >= 0 else 0
