"""Launches as tables for a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from sim.advise import WORTH, Advice, Change
from sim.result import PHASES, Launch
from sim.station import StationReport

LOOK: dict[str, Any] = {"box": box.SIMPLE_HEAD, "show_edge": False, "pad_edge": False, "header_style": "bold"}


def seconds(value: float | None) -> str:
    """A time with three digits that matter and its unit; a dash for none."""
    if value is None:
        return "-"
    if value < 1e-9:
        return "0"
    if value < 1e-3:
        return f"{value * 1e6:.3g} µs"
    if value < 1:
        return f"{value * 1e3:.3g} ms"
    return f"{value:.3g} s" if value < 600 else f"{value / 60:.3g} min"


def number(value: float) -> str:
    """Big numbers with k, M, G."""
    for limit_, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e4, "k")):
        if value >= limit_:
            return f"{value / (1e3 if letter == 'k' else limit_):.3g}{letter}"
    return f"{value:g}"


def busiest(stations: Sequence[StationReport]) -> StationReport | None:
    """The station with the highest utilisation until the last task was up."""
    used = [s for s in stations if s.visits]
    return max(used, key=lambda s: s.utilisation) if used else None


def sweep(outcomes: Sequence[Launch]) -> Table:
    """One line a number of nodes."""
    table = Table(**LOOK)
    for heading in (
        "nodes",
        "tasks",
        "first task",
        "median",
        "last task",
        "look-ups",
        "opens/node",
        "loops/node",
        "failed",
    ):
        table.add_column(heading, justify="right")
    table.add_column("busiest server")
    for outcome in outcomes:
        busy = busiest(outcome.stations)
        table.add_row(
            str(outcome.nodes),
            str(outcome.nodes * outcome.tasks * outcome.jobs),
            seconds(outcome.first_task),
            seconds(outcome.phases["start"].p50),
            seconds(outcome.last_task),
            str(outcome.gateway_lookups),
            str(outcome.image_opens_per_node),
            str(outcome.loop_devices_per_node),
            str(outcome.failed_tasks),
            f"{busy.name} {busy.utilisation:.0%}" if busy else "-",
        )
    return table


def phases(outcome: Launch) -> Table:
    """Percentiles of each phase."""
    table = Table(**LOOK)
    table.add_column("phase")
    for heading in ("median", "95%", "99%", "longest", "last ends at"):
        table.add_column(heading, justify="right")
    table.add_column("what it is", style="dim")
    for name, meaning in PHASES.items():
        row = outcome.phases[name]
        if row.count and (row.longest > 0 or name == "start"):
            values = [seconds(v) for v in (row.p50, row.p95, row.p99, row.longest, row.end)]
            table.add_row(name, *values, meaning)
    return table


def servers(outcome: Launch) -> Table:
    """What each server did; servers alike (data servers) as one line with the busiest one's figures."""
    table = Table(**LOOK)
    table.add_column("server")
    for heading in ("operations", "bytes", "busy", "mean wait", "longest wait", "peak queue"):
        table.add_column(heading, justify="right")
    groups: dict[str, list[StationReport]] = {}
    for station in outcome.stations:
        if station.visits:
            groups.setdefault(station.name.rstrip("0123456789 "), []).append(station)
    for name, group in groups.items():
        top = max(group, key=lambda s: s.utilisation)
        table.add_row(
            f"{name} (busiest of {len(group)})" if len(group) > 1 else name,
            number(sum(s.operations for s in group)),
            number(sum(s.bytes for s in group)),
            f"{top.utilisation:.0%}",
            seconds(top.mean_wait),
            seconds(top.longest_wait),
            str(top.peak_queue),
        )
    return table


def failures(outcome: Launch) -> RenderableType:
    """Why tasks failed."""
    lines = [f"{count} tasks: {reason}" for reason, count in outcome.failures.items()]
    if outcome.mixed_images:
        lines.append(
            f"{outcome.mixed_images} jobs started different images on their nodes: the tag changed in mid-launch"
        )
    return Text("\n".join(lines), style="red")


def launch(outcomes: Sequence[Launch]) -> RenderableType:
    """The whole answer of `shifter-sim launch`."""
    last = outcomes[-1]
    parts: list[RenderableType] = [
        sweep(outcomes),
        "",
        f"[bold]{last.nodes} nodes x {last.tasks} tasks[/bold], seed {last.seed}",
    ]
    parts += [phases(last), "", servers(last)]
    if last.failures or last.mixed_images:
        parts += ["", failures(last)]
    return Group(*parts)


def compare(one: Launch, other: Launch, names: tuple[str, str]) -> Table:
    """Two launches side by side."""
    table = Table(**LOOK)
    table.add_column("")
    for heading in (*names, "ratio"):
        table.add_column(heading, justify="right")

    def row(label: str, a: float | None, b: float | None, shown: tuple[str, str] | None = None) -> None:
        ratio = f"{b / a:.2f}" if a and b is not None else "-"
        table.add_row(label, *(shown or (seconds(a), seconds(b))), ratio)

    row("first task", one.first_task, other.first_task)
    row("last task", one.last_task, other.last_task)
    for name in PHASES:
        a, b = one.phases[name], other.phases[name]
        if a.longest or b.longest:
            row(f"{name}, 95%", a.p95, b.p95)
    for label, x, y in (
        ("look-ups", one.gateway_lookups, other.gateway_lookups),
        ("image opens a node", one.image_opens_per_node, other.image_opens_per_node),
        ("loop devices a node", one.loop_devices_per_node, other.loop_devices_per_node),
        ("metadata operations", _operations(one), _operations(other)),
        ("bytes read", _bytes(one), _bytes(other)),
        ("failed tasks", one.failed_tasks, other.failed_tasks),
    ):
        row(label, float(x), float(y), (number(x), number(y)))
    return table


def _operations(outcome: Launch) -> int:
    return sum(s.operations for s in outcome.stations if s.name == "metadata server")


def _bytes(outcome: Launch) -> int:
    return sum(s.bytes for s in outcome.stations if s.name.startswith("data server"))


#: How a site does what `advise` proposes; by the parameter, or by parameter and value.
_HOW = {
    "launch.strategy = squashfs": "a container that brings the modules along",
    "launch.strategy = erofs": "DefaultImageFormat in imagemanager.json, on Linux 6.12 or newer",
    "launch.prepared": "the SPANK plugin in plugstack.conf, whose prolog prepares",
    "launch.by_tag": "the SPANK plugin looks the image up at submission",
    "node.max_loop": "max_loop of the loop module",
    "filesystem.read_bytes": "smaller stripes (lfs setstripe -S), before images are pulled",
    "filesystem.stripes": "more stripes (lfs setstripe -c), before images are pulled",
    "slurm.tree_width": "TreeWidth in slurm.conf",
    "gateway.threads": "RequestThreads in imagemanager.json",
    "imports.source = image": "the modules are put into the image",
    "imports.source = node-cache": "each node copies an archive of the modules to its own disk",
}
#: What a figure that is better by a factor is called.
_FACTORS = {2.0: "twice as much", 0.5: "half of it", 0.0: "none of it"}


def plain(value: object) -> str:
    """A parameter's value as `--set` takes it."""
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)


def _words(change: Change) -> str:
    return ", ".join(f"{key} = {plain(value)}" for key, value in ((change.key, change.value), *change.also))


def _saves(before: float, after: float) -> str:
    """The part of the time that is saved; where it takes more than twice as long, how many times."""
    gain = 1 - after / before
    return f"{after / before:.3g}x as long" if gain < -1 else f"{gain + 0.0:.0%}".replace("-0%", "0%")


def _limits(advice: Advice) -> list[RenderableType]:
    """What limits the launch, what the site can do about it now, and what limits it then."""
    limiting, best, again = advice.limit, advice.best, advice.again
    parts: list[RenderableType] = []
    if limiting is None:
        parts.append("No single figure limits it: none of them, made twice as good, saves 5%.")
    else:
        much = _FACTORS[limiting.change.factor]
        parts.append(f"[bold]{limiting.change.key}[/bold] limits it: {much} saves {limiting.gain:.0%}.")
    if best is None or best.after is None:
        parts.append("Nothing that the site can configure saves 5%.")
    else:
        change = best.change
        how = _HOW.get(f"{change.key} = {plain(change.value)}", _HOW.get(change.key))
        line = f"Without buying anything, [bold]{_words(change)}[/bold] saves {best.gain:.0%}"
        parts.append(f"{line}: {how}." if how else f"{line}.")
        if limiting is not None and advice.together is not None:
            more = 1 - advice.together / best.after
            much = _FACTORS[limiting.change.factor]
            parts.append(
                f"Then {limiting.change.key} limits it no longer."
                if more < WORTH
                else f"Then {limiting.change.key} still counts: {much} saves {more:.0%} of what is left."
            )
    if again is not None:
        parts.append(
            f"On nodes that have started the same before, the plan is cached: {seconds(again.after)} ({again.gain:.0%} less)."
        )
    return parts


def advice(found: Advice, most: int = 8) -> RenderableType:
    """What limits the launch, and the best changes of each kind."""
    before, effects, saving = found.before, found.effects, found.rescue
    parts: list[RenderableType] = [
        f"{before.nodes} nodes x {before.tasks} tasks: last task after {seconds(before.last_task)}"
    ]
    parts += [f"{count} tasks fail: {reason}" for reason, count in before.failures.items()]
    if found.faultless is not None:
        still = found.faultless.failed_tasks
        without = f"Without its faults: last task after {seconds(found.faultless.last_task)}"
        parts.append(f"{without}, {still} tasks fail." if still else f"{without}, none fails.")
    if saving is not None:
        parts.append(
            f"[bold]{_words(saving.change)}[/bold] lets {saving.failed_before - saving.failed_after} of them start."
        )
    elif before.failed_tasks:
        parts.append("None of these changes lets more of them start.")
    if before.last_task is not None:  # else there is no time to compare with
        parts += _limits(found)
    for kind, title in (("configure", "What the site can configure"), ("improve", "What would have to become better")):
        table = Table(title=title, title_justify="left", **LOOK)
        for heading in ("change", "last task", "saves", "failed tasks"):
            table.add_column(heading, justify="left" if heading == "change" else "right")
        for effect in [e for e in effects if e.change.kind == kind][:most]:
            failed = f"{effect.failed_before} → {effect.failed_after}"
            table.add_row(
                _words(effect.change),
                seconds(effect.after),
                "-" if effect.before is None or effect.after is None else _saves(effect.before, effect.after),
                failed if effect.failed_before != effect.failed_after else str(effect.failed_after),
            )
        parts += ["", table]
    return Group(*parts)
