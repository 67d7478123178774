"""`shifter-sim launch | compare | advise | calibrate | validate | parameters`: simulated launches, and their truth.

Errors of a scenario are one line and exit status 1, like every error of `shifter-sim`. The progress bar shows on a
terminal only.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from rich.progress import Progress, TaskID
from rich.table import Table

from sim import advise, calibrate, emulation, faults, launch, plots, report_html, report_text, validate
from sim.parameters import SECTIONS, Fault, Scenario, describe
from sim.probe import ProbeFailed
from sim.scenario import FAULT_KEYS, ScenarioInvalid, load

EXAMPLE = """\
examples:
  shifter-sim launch small
  shifter-sim launch centre-10000 --nodes 16,256,4096,10000 --html launch.html
  shifter-sim launch centre-1000 --set launch.strategy=erofs --set launch.prepared=false
  shifter-sim compare centre-1000 centre-1000 --set-second filesystem.stripes=8
  shifter-sim advise centre-1000 --nodes 4096
shipped scenarios: small, centre-1000, centre-10000, imports-1000; `shifter-sim parameters` lists what can be set
"""
WIDTH = 128


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the simulation's subcommands to `shifter-sim`: each sets `run`, arguments to exit status."""
    one = _command(subparsers, "launch", show_launch, "what a launch will cost, at any number of nodes")
    one.add_argument("scenario", help="a TOML file, or the name of a shipped scenario")
    one.add_argument("--nodes", type=_numbers, metavar="N,N,...", help="numbers of nodes (the scenario's own)")
    one.add_argument("--json", type=Path, metavar="FILE", help="write every figure as JSON (- for standard output)")
    one.add_argument("--html", type=Path, metavar="FILE", help="write a page with plots")
    one.add_argument("--svg", type=Path, metavar="FILE", help="write the plot of start-up against nodes alone")
    _common(one)

    two = _command(subparsers, "compare", show_compare, "two scenarios side by side")
    two.add_argument("first", help="a TOML file, or the name of a shipped scenario")
    two.add_argument("second")
    two.add_argument("--nodes", type=int, metavar="N", help="nodes of both (each scenario's own)")
    two.add_argument(
        "--set-second", action="append", default=[], metavar="KEY=VALUE", help="a parameter of the second alone"
    )
    _common(two)

    best = _command(subparsers, "advise", show_advice, "what limits a launch, and what a change would bring")
    best.add_argument("scenario", help="a TOML file, or the name of a shipped scenario")
    best.add_argument("--nodes", type=int, metavar="N", help="nodes (the scenario's own)")
    best.add_argument("--json", type=Path, metavar="FILE", help="write every effect as JSON (- for standard output)")
    _common(best)

    measure = _command(subparsers, "calibrate", run_calibrate, "measure this machine: a scenario with its own figures")
    measure.add_argument("--output", type=Path, metavar="FILE", help="the scenario file to write (standard output)")
    _emulated(measure)

    truth = _command(subparsers, "validate", run_validate, "predicted against measured, on emulated nodes")
    truth.add_argument(
        "--sizes", type=_numbers, default=list(validate.NODES), metavar="N,N,...", help="numbers of nodes"
    )
    truth.add_argument("--json", type=Path, metavar="FILE", help="write every point (- for standard output)")
    truth.add_argument("--html", type=Path, metavar="FILE", help="write a page with the plot and every point")
    truth.add_argument("--svg", type=Path, metavar="FILE", help="write the plot alone")
    truth.add_argument("--markdown", type=Path, metavar="FILE", help="write a page that shows the plot of --svg")
    _emulated(truth)

    parameters = _command(subparsers, "parameters", show_parameters, "print every parameter of a scenario")
    parameters.set_defaults(run=show_parameters)


def _command(
    subparsers: argparse._SubParsersAction[argparse.ArgumentParser],
    name: str,
    run: Callable[[argparse.Namespace], int],
    text: str,
) -> argparse.ArgumentParser:
    parser = subparsers.add_parser(
        name,
        help=text,
        description=text[0].upper() + text[1:] + ".",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )

    def guarded(arguments: argparse.Namespace) -> int:
        try:
            return run(arguments)
        except (ScenarioInvalid, emulation.LaunchFailed, ProbeFailed, plots.NoPlots, FileExistsError) as error:
            print(f"shifter-sim: {error}", file=sys.stderr)
        except MemoryError:
            print("shifter-sim: not enough memory for so many nodes, tasks and jobs: choose fewer", file=sys.stderr)
        except OSError as error:
            print(f"shifter-sim: {error.filename}: {error.strerror}: choose another file", file=sys.stderr)
        return 1

    parser.set_defaults(run=guarded)
    return parser


def _common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="a parameter, as section.key=value"
    )
    parser.add_argument("--seed", type=_seed, default=0, metavar="S", help="of the random draws (%(default)s)")


def _emulated(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--nodes", type=int, default=64, metavar="N", help="emulated nodes of the cluster (%(default)s)"
    )
    parser.add_argument(
        "--repeats", type=int, default=3, metavar="R", help="of each launch; the least counts (%(default)s)"
    )
    parser.add_argument(
        "--dir", type=Path, help="a new directory for the site; default: one in /tmp, removed at the end"
    )


def _seed(text: str) -> int:
    if not (text.isascii() and text.isdigit()):
        raise argparse.ArgumentTypeError(f"{text!r}: write a whole number, 0 or more")
    return int(text)


def _numbers(text: str) -> list[int]:
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if not numbers or min(numbers) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: write whole numbers above 0, such as 16,256,4096")
    return numbers


def show_launch(arguments: argparse.Namespace) -> int:
    """`launch`: a table; JSON and HTML when asked for. Exit status 2 when tasks failed."""
    scenario = load(arguments.scenario, arguments.set)
    sizes = arguments.nodes or [scenario.launch.nodes]
    for nodes in sizes:  # before the first of them is played
        faults.check_places(launch.at_size(scenario, nodes))
    with _progress() as progress:
        task = progress.add_task("simulating", total=sum(sizes))
        outcomes = []
        for nodes in sizes:
            progress.update(task, description=f"{nodes} nodes")
            outcomes.append(launch.simulate(scenario, nodes, arguments.seed))
            progress.advance(task, nodes)
        curves = ""
        if arguments.svg:
            curves = report_html.strategies(scenario, outcomes, arguments.seed)
            arguments.svg.write_text(curves + "\n", encoding="utf-8")
        if arguments.html:
            page = report_html.page(scenario, outcomes, arguments.seed, _step(progress, task), curves)
            arguments.html.write_text(page, encoding="utf-8")
    if arguments.json:
        _write(arguments.json, [json.loads(outcome.as_json()) for outcome in outcomes])
    if str(arguments.json) != "-":
        console = _console()
        if scenario.description:
            console.print(f"[bold]{scenario.name}[/bold]: {scenario.description}\n", highlight=False)
        console.print(report_text.launch(outcomes), highlight=False)
        if arguments.html:
            console.print(f"\npage: {arguments.html}", highlight=False)
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
    console = _console()
    for key, a, b in differences(scenarios[0], scenarios[1]):
        console.print(f"{key}: {report_text.plain(a)} → {report_text.plain(b)}", highlight=False)
    console.print(f"\n{one.nodes} and {other.nodes} nodes, seed {arguments.seed}\n", highlight=False)
    console.print(report_text.compare(one, other, names), highlight=False)
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
    with _progress() as progress:
        task = progress.add_task("trying changes", total=1)

        def heard(done: int, of: int) -> None:
            progress.update(task, completed=done, total=of)

        found = advise.advise(scenario, arguments.nodes, arguments.seed, heard)
    if arguments.json:
        _write(arguments.json, [dataclasses.asdict(effect) | {"gain": effect.gain} for effect in found.effects])
    if str(arguments.json) != "-":
        _console().print(report_text.advice(found), highlight=False)
    return 0


def run_calibrate(arguments: argparse.Namespace) -> int:
    """`calibrate`: measures for some seconds, then writes a scenario file."""
    with emulation.workbench(_directory(arguments), arguments.nodes) as bench:
        text = calibrate.calibrate(bench, arguments.repeats).toml()
    if arguments.output:
        arguments.output.write_text(text, encoding="utf-8")
    else:
        sys.stdout.write(text)
    return 0


def run_validate(arguments: argparse.Namespace) -> int:
    """`validate`: every point, the median error, and whether it is within the goal: exit status 2 when it is not."""
    with _progress() as progress:
        task = progress.add_task("bringing the cluster up", total=None)
        with emulation.workbench(_directory(arguments), arguments.nodes) as bench:
            found = validate.validate(bench, arguments.sizes, arguments.repeats, _step(progress, task))
    if arguments.json:
        _write(arguments.json, json.loads(found.as_json()))
    if arguments.html:
        arguments.html.write_text(validate.page(found), encoding="utf-8")
    if arguments.svg:
        arguments.svg.write_text(validate.plot(found) + "\n", encoding="utf-8")
    if arguments.markdown:
        picture = arguments.svg.name if arguments.svg else "validation.svg"
        arguments.markdown.write_text(validate.markdown(found, picture), encoding="utf-8")
    if str(arguments.json) != "-":
        rows = Table(**report_text.LOOK)
        for heading in validate.HEADINGS:
            rows.add_column(heading, justify="left" if heading in ("start", "instant") else "right")
        for row in validate.table(found):
            rows.add_row(*row)
        console = _console()
        console.print(rows, highlight=False)
        where = f"{found.calibration.machine}, {found.calibration.date}"
        error = f"median error {found.median_error:.1%} over {len(found.points)} points (goal: {validate.GOAL:.0%})"
        console.print(f"\n{error}\n{where}", highlight=False)
    return 0 if found.median_error <= validate.GOAL else 2


def _directory(arguments: argparse.Namespace) -> Path:
    """Where the site goes: other users must be able to reach it, and socket paths are short."""
    if arguments.dir:
        chosen: Path = arguments.dir
        return chosen
    made = Path(tempfile.mkdtemp(prefix="shifter-", dir="/tmp"))
    made.rmdir()
    return made


def show_parameters(arguments: argparse.Namespace) -> int:
    """Prints the table of parameters."""
    table = Table(**report_text.LOOK)
    for heading in ("parameter", "default", "unit", "meaning"):
        table.add_column(heading, overflow="fold")
    for row in describe():
        value = "a table by step" if isinstance(row.default, dict) else str(row.default)
        table.add_row(row.key, value, row.unit, row.meaning)
    _console().print(table, highlight=False)
    return 0


def _console() -> Console:
    """Standard output; wide enough for the tables where it is no terminal."""
    console = Console()
    return console if console.is_terminal else Console(width=WIDTH)


def _progress() -> Progress:
    console = Console(stderr=True)
    return Progress(console=console, transient=True, disable=not console.is_terminal)


def _step(progress: Progress, task: TaskID) -> Callable[[str], None]:
    return lambda text: progress.update(task, description=text)


def _write(path: Path, value: object) -> None:
    text = json.dumps(value, indent=1, sort_keys=True) + "\n"
    if str(path) == "-":
        sys.stdout.write(text)
    else:
        path.write_text(text, encoding="utf-8")
