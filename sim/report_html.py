"""A launch as one HTML page: what it costs, curves over nodes and strategies, a timeline, queues, and every
parameter used.

The page needs nothing beside itself: no scripts, no links, plots inline. Where matplotlib is missing, it says so in
their place.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from html import escape

from sim import launch, plots, report_text
from sim.parameters import SECTIONS, STRATEGIES, Fault, Scenario
from sim.result import PHASES, Launch, queue_lengths
from sim.scenario import FAULT_KEYS, ScenarioInvalid, replaced

STYLE = """
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, sans-serif; color: #1a1a1a; background: #fff; max-width: 64rem; margin: 2rem auto;
padding: 0 1rem; } h1 { font-size: 1.5rem; margin-bottom: .2rem; } h2 { font-size: 1.15rem; margin-top: 2.2rem; }
p.note { color: #555; margin-top: .2rem; } table { border-collapse: collapse; margin: .6rem 0; font-variant-numeric:
tabular-nums; } th, td { text-align: right; white-space: nowrap; padding: .25rem .8rem; border-bottom: 1px solid
#e4e4e4; } th { font-weight: 600; border-bottom: 2px solid #999; } th:first-child, td:first-child { text-align:
left; padding-left: 0; } td.text, th.text { text-align: left; color: #555; white-space: normal; } .bad { color:
#b00020; } svg { max-width: 100%; height: auto; } pre { overflow-x: auto; }
details { margin-top: 1rem; } summary { cursor: pointer; }
"""


def page(
    scenario: Scenario,
    outcomes: Sequence[Launch],
    seed: int,
    step: Callable[[str], None] = lambda text: None,
    curves: str = "",
) -> str:
    """The page for launches of one scenario at several numbers of nodes. `step` hears what is computed; `curves` is what
    `strategies` gave, where it has been drawn already."""
    last = outcomes[-1]
    parts = [
        f"<h1>{escape(scenario.name)}</h1><p class=note>{escape(scenario.description)}</p>",
        f"<p>{last.tasks} tasks a node, {last.plan_steps} plan steps a start, seed {seed}.</p>",
        "<h2>Start-up</h2>",
        _sweep(outcomes),
    ]
    try:
        step("strategies")
        parts += ["<h2>Start-up against nodes, by how the image reaches them</h2>"]
        parts += ["<p class=note>Time until the last task is up; everything else as in this scenario.</p>"]
        parts += [curves or strategies(scenario, outcomes, seed)]
        step("timeline")
        run = launch.play(scenario, last.nodes, seed)
        parts += [f"<h2>One launch on {last.nodes} nodes</h2>", plots.timeline(run.machine)]
        parts += ["<h2>Queues</h2>", plots.queues(queue_lengths(run.machine))]
    except plots.NoPlots as missing:
        parts.append(f"<p class=bad>{escape(str(missing))}</p>")
    parts += [f"<h2>Phases on {last.nodes} nodes</h2>", _phases(last), "<h2>Servers</h2>", _servers(last)]
    if last.failures:
        rows = [(reason, str(count)) for reason, count in last.failures.items()]
        parts += ["<h2 class=bad>Failures</h2>", _table(("reason", "tasks"), rows)]
    parts.append(_parameters(scenario))
    title = escape(f"{scenario.name}: launch")
    body = "\n".join(parts)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f"<style>{STYLE}</style></head><body>\n{body}\n</body></html>\n"
    )


def strategies(scenario: Scenario, outcomes: Sequence[Launch], seed: int) -> str:
    """SVG of the time to the last task against nodes, a curve for each way in which an image can reach them. Raises
    NoPlots."""
    plots.needed()  # before anything is played
    series: dict[str, list[tuple[float, float]]] = {}
    for strategy in STRATEGIES:
        points = []
        for known in outcomes:
            outcome, nodes = known, known.nodes
            if strategy != scenario.launch.strategy:
                try:
                    changed = replaced(scenario, "launch", {"strategy": strategy})
                    outcome = launch.simulate(changed, nodes, seed)
                except ScenarioInvalid:
                    continue  # this site's configuration forbids the strategy
            if outcome.last_task is not None:
                points.append((float(nodes), outcome.last_task))
        if points:
            series["no container" if strategy == "none" else strategy] = points
    return plots.curves(series, "nodes", "seconds to the last task")


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]], text: Sequence[int] = ()) -> str:
    def cell(tag: str, index: int, value: str) -> str:
        return f"<{tag}{' class=text' if index in text else ''}>{escape(value)}</{tag}>"

    head = "".join(cell("th", i, h) for i, h in enumerate(headings))
    lines = ["<tr>" + "".join(cell("td", i, v) for i, v in enumerate(row)) + "</tr>" for row in rows]
    return f"<table><tr>{head}</tr>{''.join(lines)}</table>"


def _sweep(outcomes: Sequence[Launch]) -> str:
    s = report_text.seconds
    rows = [
        (
            str(o.nodes),
            str(o.nodes * o.tasks * o.jobs),
            s(o.first_task),
            s(o.phases["start"].p50),
            s(o.last_task),
            str(o.gateway_lookups),
            str(o.image_opens_per_node),
            str(o.loop_devices_per_node),
            str(o.failed_tasks),
        )
        for o in outcomes
    ]
    headings = (
        "nodes",
        "tasks",
        "first task",
        "median",
        "last task",
        "look-ups",
        "image opens/node",
        "loops/node",
        "failed",
    )
    return _table(headings, rows)


def _phases(outcome: Launch) -> str:
    rows = []
    for name, meaning in PHASES.items():
        p = outcome.phases[name]
        if p.count and (p.longest > 0 or name == "start"):
            rows.append((name, *(report_text.seconds(v) for v in (p.p50, p.p95, p.p99, p.longest, p.end)), meaning))
    return _table(("phase", "median", "95%", "99%", "longest", "last ends at", "what it is"), rows, text=(6,))


def _servers(outcome: Launch) -> str:
    n, s = report_text.number, report_text.seconds
    rows = [
        (
            station.name,
            n(station.operations),
            n(station.bytes),
            f"{station.utilisation:.0%}",
            s(station.mean_wait),
            s(station.longest_wait),
            str(station.peak_queue),
        )
        for station in outcome.stations
        if station.visits
    ]
    return _table(("server", "operations", "bytes", "busy", "mean wait", "longest wait", "peak queue"), rows)


def _parameters(scenario: Scenario) -> str:
    rows = []
    for section, kind in SECTIONS.items():
        part = getattr(scenario, section)
        for f in dataclasses.fields(kind):
            value = getattr(part, f.name)
            shown = ", ".join(f"{k} {v:g}" for k, v in value.items()) if isinstance(value, dict) else str(value)
            rows.append((f"{section}.{f.name}", shown, f.metadata["unit"], f.metadata["meaning"]))
    rows.insert(
        0, ("configuration", scenario.configuration or "as shipped", "", "the udiRoot.conf that the planner plans with")
    )
    for index, fault in enumerate(scenario.faults):
        for key in ("kind", *FAULT_KEYS[fault.kind]):
            f = Fault.__dataclass_fields__[key]
            rows.append((f"fault[{index}].{key}", str(getattr(fault, key)), f.metadata["unit"], f.metadata["meaning"]))
    table = _table(("parameter", "value", "unit", "meaning"), rows, text=(2, 3))
    return f"<details><summary>All parameters</summary>{table}</details>"
