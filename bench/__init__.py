"""Benchmarks: each row is one function that measures one thing and says what it is held against.

    @row("fasthash", unit="GB/s", goal=0.9, against="b3sum")
    def fasthash() -> Measured:
        return Measured(value=5.9, ratio=0.95)

`goal` is compared with the ratio where there is one, else with the value; `better="less"` turns the comparison round
(times). A ratio is taken in one run, on one machine, in turn with what it is held against, so that it survives a noisy machine.
A row that cannot measure raises: `python -m bench` shows the reason and goes on. Rows register when their module
`bench/<room>.py` is imported; this module imports nothing of the rooms.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Measured:
    """What a row found: the value in the row's unit, and its ratio to what the row names as `against`, if any."""

    value: float
    ratio: float | None = None


@dataclass(frozen=True)
class Row:
    """A registered benchmark. `name` is what bench.json calls it and ONLY selects by prefix."""

    name: str
    unit: str
    goal: float | None
    against: str | None
    better: Literal["more", "less"]
    measure: Callable[[], Measured]

    def met(self, measured: Measured) -> bool | None:
        """Whether the goal is reached; None where the row has no goal."""
        if self.goal is None:
            return None
        figure = measured.value if measured.ratio is None else measured.ratio
        return figure >= self.goal if self.better == "more" else figure <= self.goal


ROWS: dict[str, Row] = {}


def row(
    name: str,
    *,
    unit: str,
    goal: float | None = None,
    against: str | None = None,
    better: Literal["more", "less"] = "more",
) -> Callable[
    [Callable[[], Measured | tuple[float, float | None]]], Callable[[], Measured | tuple[float, float | None]]
]:
    """Register the decorated function as the benchmark `name`; it returns Measured, or the pair (value, ratio)."""

    def register(
        function: Callable[[], Measured | tuple[float, float | None]],
    ) -> Callable[[], Measured | tuple[float, float | None]]:
        if name in ROWS:
            raise ValueError(f"two benchmark rows are called {name}: rename one")

        def measure() -> Measured:
            found = function()
            return found if isinstance(found, Measured) else Measured(*found)

        ROWS[name] = Row(name=name, unit=unit, goal=goal, against=against, better=better, measure=measure)
        return function

    return register
