import io
from collections.abc import Iterator
from itertools import count

import pytest

from runtime import terminal
from runtime.terminal import Progress, size


class Terminal(io.StringIO):
    """A stream that says it is a terminal, `columns` wide."""

    def __init__(self, columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__()
        monkeypatch.setattr(Progress, "_width", lambda _: columns)

    def isatty(self) -> bool:
        return True

    @property
    def screen(self) -> str:
        """What stands on the line now."""
        return self.getvalue().rpartition("\r")[2].removesuffix("\x1b[K")


@pytest.fixture
def seconds() -> Iterator[int]:
    return count(0, 1)


def half() -> dict[str, object]:
    return {"done": 31 << 20, "total": 62 << 20, "layers_done": 2, "layers": 5}


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        (150, "status: PULLING   50%  31.0 MiB of 62.0 MiB  2 of 5 layers  [###############...............]"),
        (125, "status: PULLING   50%  31.0 MiB of 62.0 MiB  2 of 5 layers  [###...]"),
        (112, "status: PULLING   50%  31.0 MiB of 62.0 MiB  [####....]"),
        (101, "status: PULLING   50%  31.0 MiB of 62.0 MiB"),
        (90, "status: PULLING   50%  [####....]"),
        (80, "status: PULLING   50%"),
        (72, "status: PULLING"),
        (30, "2026"),
    ],
)
def test_the_line_says_as_much_as_fits(monkeypatch: pytest.MonkeyPatch, columns: int, expected: str) -> None:
    monkeypatch.setattr(terminal, "local_time", lambda _: "2026-11-23T18:00:00")
    stream = Terminal(columns, monkeypatch)
    Progress(stream, "Pulling", "docker:ubuntu:24.04").show("PULLING", half())
    assert len(stream.screen) < columns
    assert (stream.screen if columns > 40 else stream.screen[:4]).endswith(expected)


def test_the_rate_is_shown_once_there_is_one(monkeypatch: pytest.MonkeyPatch, seconds: Iterator[int]) -> None:
    stream = Terminal(200, monkeypatch)
    progress = Progress(stream, "Pulling", "a", clock=lambda: next(seconds))
    progress.show("PULLING", {"done": 0, "total": 100 << 20})
    assert "/s" not in stream.screen
    progress.show("PULLING", {"done": 10 << 20, "total": 100 << 20})
    assert "MiB/s" in stream.screen


def test_a_stage_without_bytes_shows_that_time_goes_by(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([0.0, 5.0])
    stream = Terminal(200, monkeypatch)
    progress = Progress(stream, "Pulling", "a", clock=lambda: next(times))
    whole = {"done": 100, "total": 100}
    progress.show("CONVERSION", whole)
    assert stream.screen.endswith("status: CONVERSION")
    progress.show("CONVERSION", whole)
    assert stream.screen.endswith("status: CONVERSION  for 5 s")


def test_what_the_gateway_wants_the_user_to_know_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = Terminal(200, monkeypatch)
    note = "registry asks to wait 30 s (429)"
    Progress(stream, "Pulling", "a").show("PULLING", {**half(), "note": note})
    assert f"status: PULLING  {note}   50%" in stream.screen


@pytest.mark.parametrize("odd", [{"done": -1, "total": "x"}, {"done": None}, {"total": 0}, {"done": 9, "total": 3}, {}])
def test_numbers_that_make_no_sense_do_not_end_the_pull(
    monkeypatch: pytest.MonkeyPatch, odd: dict[str, object]
) -> None:
    stream = Terminal(100, monkeypatch)
    Progress(stream, "Pulling", "a").show("PULLING", odd)
    assert "status: PULLING" in stream.screen


@pytest.mark.parametrize(
    ("bytes", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (5 << 30, "5.0 GiB"), (3 << 50, "3072.0 TiB")],
)
def test_sizes_read_well(bytes: int, text: str) -> None:
    assert size(bytes) == text
