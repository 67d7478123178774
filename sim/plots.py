"""Plots of launches as SVG text, drawn by matplotlib (the extra `plots`).

Each function returns one `<svg>` element to be put into a page, or raises `NoPlots` with what to install. The same
figures give the same bytes: no dates, no random ids.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from sim.machine import Machine

#: Colours that stay apart for colour-blind readers (Okabe and Ito).
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F7F7F")


class NoPlots(Exception):
    """matplotlib is not installed."""


def needed() -> Any:
    """matplotlib; raises NoPlots where it is not installed."""
    try:
        import matplotlib
    except ImportError:
        raise NoPlots("plots need matplotlib: install shifter[plots]") from None
    return matplotlib


def _figure(width: float, height: float) -> tuple[Any, Any]:
    matplotlib = needed()
    matplotlib.use("svg")
    from matplotlib import pyplot

    matplotlib.rcParams.update(
        {
            "svg.hashsalt": "shifter",
            "svg.fonttype": "none",
            "font.family": "sans-serif",
            "font.size": 10,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": True,
            "grid.color": "#e4e4e4",
            "axes.axisbelow": True,
        }
    )
    return pyplot.subplots(figsize=(width, height))


def _svg(figure: Any, label: str) -> str:
    from matplotlib import pyplot

    out = io.StringIO()
    figure.savefig(out, format="svg", bbox_inches="tight", metadata={"Date": None})
    pyplot.close(figure)
    text = out.getvalue()
    return text[text.index("<svg") :].replace("<svg ", f'<svg role="img" aria-label="{label}" ', 1)


def curves(
    series: Mapping[str, Sequence[tuple[float, float]]],
    x: str,
    y: str,
    *,
    log_y: bool = True,
    floor: float | None = None,
) -> str:
    """Lines over a logarithmic x; each series is (x, y) points. `floor`: the lowest y shown."""
    figure, axes = _figure(7.6, 3.8)
    for i, (name, points) in enumerate(series.items()):
        look = {"color": COLOURS[i % len(COLOURS)], "linewidth": 2.6 if i == 0 else 1.4}  # equal curves stay visible
        axes.plot(*zip(*points, strict=True), marker="o", markersize=6 if i == 0 else 3.5, label=name, **look)
    axes.set_xscale("log")
    if log_y:
        axes.set_yscale("log")
        low, high = axes.get_ylim()  # curves within one decade would have one tick, or none
        axes.set_yticks(_ticks(low, high))
    ticks = sorted({p for points in series.values() for p, _ in points})
    axes.set_xticks(ticks, [f"{t:g}" for t in ticks])
    axes.minorticks_off()
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    if floor is not None:
        axes.set_ylim(bottom=floor)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    if len(series) > 1:
        axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1.01, 0.5))
    return _svg(figure, f"{y} against {x}")


def _ticks(low: float, high: float) -> list[float]:
    """1, 2, 5 of each decade between two bounds; the decades alone where there are more than three."""
    steps = (1, 2, 5) if high / low <= 1e3 else (1,)
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    return [step * 10.0**decade for decade in decades for step in steps if low <= step * 10.0**decade <= high]


def timeline(machine: Machine, most: int = 200) -> str:
    """One launch, a line a node, coloured by phase; a sample of evenly chosen nodes when there are many."""
    record = machine.record
    rows = np.unique(np.linspace(0, len(record.prolog_begin) - 1, min(most, len(record.prolog_begin))).astype(int))
    with np.errstate(invalid="ignore"):
        edges = [
            ("prolog", record.prolog_begin, record.prolog_end),
            ("waits for the step", record.prolog_end, record.message),
            ("slurmstepd", record.message, record.stepd_end),
            ("container made or joined", record.stepd_end, _last(record.environment)),
            ("reads and exec", _last(record.environment), _last(record.executed)),
            ("imports", _last(record.executed), _last(record.ready)),
            ("epilog", record.epilog_begin, record.epilog_end),
        ]
    figure, axes = _figure(7.6, 4.2)
    for (name, begin, end), colour in zip(edges, COLOURS, strict=True):
        if name == "waits for the step":
            colour = "#d0d0d0"
        length = (end - begin)[rows]
        if np.nansum(length) > 0:
            axes.barh(range(len(rows)), np.nan_to_num(length), left=begin[rows], height=1.0, color=colour, label=name)
    axes.set_xlabel("seconds since submission")
    axes.set_ylabel(
        "nodes" if len(rows) == len(record.prolog_begin) else f"{len(rows)} of {len(record.prolog_begin)} nodes"
    )
    axes.grid(visible=False)
    axes.yaxis.get_major_locator().set_params(integer=True)  # there is no node 2.5
    axes.set_xlim(left=0)
    axes.set_ylim(-0.5, len(rows) - 0.5)
    if axes.patches:  # else no node came as far as its prolog's end
        axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1.01, 0.5))
    return _svg(figure, "timeline of one launch by node")


def _last(times: Any) -> Any:
    """The last task's time of each node; NaN where none got so far."""
    filled = np.where(np.isnan(times), -np.inf, times).max(axis=1)
    return np.where(np.isinf(filled), np.nan, filled)


def queues(lengths: Mapping[str, tuple[Sequence[float], Sequence[int]]], most: int = 6) -> str:
    """How many wait or are served at the fullest servers, over time."""
    figure, axes = _figure(7.6, 3.4)
    fullest = sorted(lengths, key=lambda name: -max(lengths[name][1]))[:most]
    for name, colour in zip(fullest, COLOURS, strict=False):
        times, values = lengths[name]
        axes.step(times, values, where="post", label=name, color=colour, linewidth=1.4)
    axes.set_xlabel("seconds since submission")
    axes.set_ylabel("waiting or being served")
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1.01, 0.5))
    return _svg(figure, "queue lengths over time")


def scatter(groups: Mapping[tuple[str, str], Sequence[tuple[float, float]]], x: str, y: str) -> str:
    """Predicted against measured, with the line where both are equal and 15% either side.

    A group's first name is its colour, the second its marker.
    """
    figure, axes = _figure(6.4, 4.6)
    flat = [value for points in groups.values() for point in points for value in point if value > 0]
    low, high = min(flat) / 1.3, max(flat) * 1.3
    axes.plot([low, high], [low, high], color="#555555", linewidth=1)
    axes.fill_between([low, high], [low * 0.85, high * 0.85], [low * 1.15, high * 1.15], color="#eeeeee", label="±15%")
    colours = dict(zip(dict.fromkeys(first for first, _ in groups), COLOURS, strict=False))
    markers = dict(zip(dict.fromkeys(second for _, second in groups), "os^Dvx", strict=False))
    for (first, second), points in groups.items():
        look = {"color": colours[first], "marker": markers[second], "fillstyle": "none", "linestyle": "none"}
        axes.plot(*zip(*points, strict=True), markersize=5, label=f"{first}: {second}", **look)
    ticks = [t for e in range(-6, 5) for t in (10.0**e, 2 * 10.0**e, 5 * 10.0**e) if low <= t <= high]
    for axis, scale, bounds in (
        (axes.xaxis, axes.set_xscale, axes.set_xlim),
        (axes.yaxis, axes.set_yscale, axes.set_ylim),
    ):
        scale("log")
        axis.set_ticks(ticks, [f"{t:g}" for t in ticks])
        bounds(low, high)
    axes.minorticks_off()
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1.01, 0.5))
    return _svg(figure, f"{y} against {x}")
