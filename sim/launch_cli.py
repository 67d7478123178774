"""`shifter-sim launch | compare | advise | parameters`: simulated launches. What measures real ones is `sim.truth_cli`."""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import sys
from pathlib import Path

from rich.markup import escape
from rich.table import Table

from sim import advise, faults, launch, report_html, report_text
from sim.parameters import SECTIONS, Fault, Scenario, describe
from sim.scenario import FAULT_KEYS, find, load
from sim.terminal import check_files, command, console, number, numbers, progress, seed, step, write_file, write_json


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the simulation's subcommands to `shifter-sim`: each sets `run`, arguments to exit status."""
    one = command(subparsers, "launch", show_launch, "what a launch will cost, at any number of nodes")
    one.add_argument("scenario", help="a TOML file, or the name of a shipped scenario")
    one.add_argument("--nodes", type=numbers, metavar="N,N,...", help="numbers of nodes (the scenario's own)")
    one.add_argument("--json", type=Path, metavar="FILE", help="write every figure as JSON (- for standard output)")
    one.add_argument("--html", type=Path, metavar="FILE", help="write a page with plots")
    one.add_argument("--svg", type=Path, metavar="FILE", help="write the plot of start-up against nodes alone")
    _common(one)

    two = command(subparsers, "compare", show_compare, "two scenarios side by side")
    two.add_argument("first", help="a TOML file, or the name of a shipped scenario")
    two.add_argument("second")
    two.add_argument("--nodes", type=number, metavar="N", help="nodes of both (each scenario's own)")
    two.add_argument(
        "--set-second", action="append", default=[], metavar="KEY=VALUE", help="a parameter of the second alone"
    )
    _common(two)

    best = command(subparsers, "advise", show_advice, "what limits a launch, and what a change would bring")
    best.add_argument("scenario", help="a TOML file, or the name of a shipped scenario")
    best.add_argument("--nodes", type=number, metavar="N", help="nodes (the scenario's own)")
    best.add_argument("--json", type=Path, metavar="FILE", help="write every effect as JSON (- for standard output)")
    _common(best)

    parameters = command(
        subparsers, "parameters", show_parameters, "print every parameter of a scenario, or a scenario to begin with"
    )
    parameters.add_argument("scenario", nargs="?", help="print this file: shifter-sim parameters small > site.toml")


def _common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="a parameter, as section.key=value"
    )
    parser.add_argument("--seed", type=seed, default=0, metavar="S", help="of the random draws (%(default)s)")


def show_launch(arguments: argparse.Namespace) -> int:
    """`launch`: a table; JSON and HTML when asked for. Exit status 2 when tasks failed."""
    scenario = load(arguments.scenario, arguments.set)
    sizes = arguments.nodes or [scenario.launch.nodes]
    for nodes in sizes:  # before the first of them is played
        faults.check_places(launch.at_size(scenario, nodes))
    check_files(arguments.json, arguments.html, arguments.svg)
    with progress() as shown:
        task = shown.add_task("simulating", total=sum(sizes))
        outcomes = []
        for nodes in sizes:
            shown.update(task, description=f"{nodes} nodes")
            outcomes.append(launch.simulate(scenario, nodes, arguments.seed))
            shown.advance(task, nodes)
        curves = ""
        if arguments.svg:
            curves = report_html.strategies(scenario, outcomes, arguments.seed)
            write_file(arguments.svg, curves + "\n")
        if arguments.html:
            page = report_html.page(scenario, outcomes, arguments.seed, step(shown, task), curves)
            write_file(arguments.html, page)
    if arguments.json:
        write_json(arguments.json, [json.loads(outcome.as_json()) for outcome in outcomes])
    if str(arguments.json) != "-":
        out = console()
        if scenario.description:
            out.print(f"[bold]{escape(scenario.name)}[/bold]: {escape(scenario.description)}\n", highlight=False)
        out.print(report_text.launch(outcomes), highlight=False)
        over = max(outcome.finished for outcome in outcomes)
        for index, fault in enumerate(scenario.faults):
            if fault.at > over:
                late = f"begins at {fault.at:g} s, when the launch was over ({report_text.seconds(over)}): it changed nothing"
                out.print(f"\nfault[{index}]: {fault.kind} {late}", highlight=False, markup=False)
        if arguments.html:
            out.print(f"\npage: {arguments.html}", highlight=False)
    return 2 if any(outcome.failed_tasks for outcome in outcomes) else 0


def show_compare(arguments: argparse.Namespace) -> int:
    """`compare`: what differs in the scenarios, then in the launches."""
    scenarios = [
        load(arguments.first, arguments.set),
        load(arguments.second, [*arguments.set, *arguments.set_second]),
    ]
    names = (scenarios[0].name, scenarios[1].name)
    if names[0] == names[1]:
        names = ("first", "second")
    one, other = (launch.simulate(s, arguments.nodes, arguments.seed) for s in scenarios)
    out = console()
    for key, a, b in differences(scenarios[0], scenarios[1]):
        out.print(f"{key}: {report_text.plain(a)} → {report_text.plain(b)}", highlight=False)
    out.print(f"\n{one.nodes} and {other.nodes} nodes, seed {arguments.seed}\n", highlight=False)
    out.print(report_text.compare(one, other, names), highlight=False)
    return 0


def differences(one: Scenario, other: Scenario) -> list[tuple[str, object, object]]:
    """The parameters in which two scenarios differ, with both values."""
    out: list[tuple[str, object, object]] = []
    if one.configuration != other.configuration:
        out.append(("configuration", one.configuration or "as shipped", other.configuration or "as shipped"))
    for section, kind in SECTIONS.items():
        for field in dataclasses.fields(kind):
            a, b = (getattr(getattr(s, section), field.name) for s in (one, other))
            if a != b:
                out.append((f"{section}.{field.name}", a, b))
    for index, (a, b) in enumerate(itertools.zip_longest(one.faults, other.faults)):
        if a != b:
            out.append((f"fault[{index}]", _fault(a), _fault(b)))
    return out


def _fault(fault: Fault | None) -> str:
    """A fault in one line: its kind and the keys that were written."""
    if fault is None:
        return "none"
    keys = ((key, getattr(fault, key)) for key in FAULT_KEYS[fault.kind])
    return " ".join([fault.kind, *(f"{key}={value}" for key, value in keys if value != getattr(Fault(), key))])


def show_advice(arguments: argparse.Namespace) -> int:
    """`advise`: every change tried, the best first."""
    scenario = load(arguments.scenario, arguments.set)
    check_files(arguments.json)
    with progress() as shown:
        task = shown.add_task("trying changes", total=1)

        def heard(done: int, of: int) -> None:
            shown.update(task, completed=done, total=of)

        found = advise.advise(scenario, arguments.nodes, arguments.seed, heard)
    if arguments.json:
        write_json(arguments.json, [dataclasses.asdict(effect) | {"gain": effect.gain} for effect in found.effects])
    if str(arguments.json) != "-":
        console().print(report_text.advice(found), highlight=False)
    return 0


def show_parameters(arguments: argparse.Namespace) -> int:
    """Prints the table of parameters, or the file of a scenario."""
    if arguments.scenario:
        sys.stdout.write(find(arguments.scenario).read_text(encoding="utf-8"))
        return 0
    table = Table(**report_text.LOOK)
    for heading in ("parameter", "default", "unit", "meaning"):
        table.add_column(heading, overflow="fold")
    for row in describe():
        value = "a table by step" if isinstance(row.default, dict) else str(row.default)
        table.add_row(row.key, value, row.unit, row.meaning)
    console().print(table, highlight=False)
    return 0
