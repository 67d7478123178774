"""`shifter-sim calibrate | validate`: this machine measured on emulated nodes, and the model held against it.

Both bring a real site up in a directory of its own and take it down again, however they end. Files are tried before the
minutes of measuring that are to fill them.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.table import Table

from sim import calibrate, emulation, plots, report_text, validate
from sim.cluster import MAXIMUM_NODES
from sim.emulation import LaunchFailed, Workbench
from sim.terminal import check_files, command, console, number, numbers, progress, step, write_file, write_json

#: With fewer nodes a core daemons hardly wait for one another, and how long one works cannot be told from how long all take.
FEW = 4


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds both subcommands to `shifter-sim`: each sets `run`, arguments to exit status."""
    measure = command(subparsers, "calibrate", run_calibrate, "measure this machine: a scenario with its own figures")
    measure.add_argument("--output", type=Path, metavar="FILE", help="the scenario file to write (standard output)")
    _emulated(measure)

    truth = command(subparsers, "validate", run_validate, "predicted against measured, on emulated nodes")
    truth.add_argument(
        "--sizes", type=numbers, metavar="N,N,...", help="numbers of nodes (1, 2, 4, ... 64, as far as --nodes goes)"
    )
    truth.add_argument("--json", type=Path, metavar="FILE", help="write every point (- for standard output)")
    truth.add_argument("--html", type=Path, metavar="FILE", help="write a page with the plot and every point")
    truth.add_argument("--svg", type=Path, metavar="FILE", help="write the plot alone")
    truth.add_argument("--markdown", type=Path, metavar="FILE", help="write a page that shows the plot of --svg")
    _emulated(truth)


def _emulated(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--nodes", type=number, default=64, metavar="N", help="emulated nodes of the cluster (%(default)s)"
    )
    parser.add_argument(
        "--repeats", type=number, default=3, metavar="R", help="of each launch; the least counts (%(default)s)"
    )
    parser.add_argument(
        "--dir", type=Path, help="a new directory for the site, removed at the end; default: one in /tmp"
    )


def run_calibrate(arguments: argparse.Namespace) -> int:
    """`calibrate`: measures for a minute, then writes a scenario file."""
    check_files(arguments.output)
    with progress() as shown:
        task = shown.add_task("bringing the cluster up", total=None)
        with _workbench(arguments) as bench:
            text = calibrate.calibrate(bench, arguments.repeats, step=step(shown, task)).toml()
    _warn(arguments.nodes)
    if arguments.output:
        try:
            write_file(arguments.output, text)
        except OSError:
            sys.stdout.write(text)  # a minute's work is not lost for a disk that has filled up meanwhile
            raise
        print(f"{arguments.output}: this machine's figures; shifter-sim launch {arguments.output} --nodes 1,16,64")
    else:
        sys.stdout.write(text)
    return 0


def run_validate(arguments: argparse.Namespace) -> int:
    """`validate`: every point, the median error, and whether it is within the goal: exit status 2 when it is not."""
    sizes = arguments.sizes or [size for size in validate.NODES if size <= arguments.nodes]
    if max(sizes) > arguments.nodes:
        raise LaunchFailed(f"--sizes {max(sizes)}, but the cluster has {arguments.nodes} nodes: --nodes {max(sizes)}")
    if arguments.markdown and not arguments.svg:
        raise LaunchFailed("--markdown writes a page that shows the plot of --svg: name that file too")
    if arguments.html or arguments.svg:
        plots.needed()
    check_files(arguments.json, arguments.html, arguments.svg, arguments.markdown)
    with progress() as shown:
        task = shown.add_task("bringing the cluster up", total=None)
        with _workbench(arguments) as bench:
            found = validate.validate(bench, sizes, arguments.repeats, step(shown, task))
    _warn(arguments.nodes)
    if str(arguments.json) != "-":
        rows = Table(**report_text.LOOK)
        for heading in validate.HEADINGS:
            rows.add_column(heading, justify="left" if heading in ("start", "instant") else "right")
        for row in validate.table(found):
            rows.add_row(*row)
        out = console()
        out.print(rows, highlight=False)
        where = f"{found.calibration.machine}, {found.calibration.date}"
        error = f"median error {found.median_error:.1%} over {len(found.points)} points (goal: {validate.GOAL:.0%})"
        out.print(f"\n{error}\n{where}", highlight=False)
    if arguments.json:
        write_json(arguments.json, json.loads(found.as_json()))
    if arguments.html:
        write_file(arguments.html, validate.page(found))
    if arguments.svg:
        write_file(arguments.svg, validate.plot(found) + "\n")
    if arguments.markdown:
        write_file(arguments.markdown, validate.markdown(found, arguments.svg.name))
    return 0 if found.median_error <= validate.GOAL else 2


def _warn(nodes: int) -> None:
    if nodes < FEW * calibrate.cores():
        few = f"what Slurm costs a node is a guess with {nodes} of them on {calibrate.cores()} cores"
        print(f"shifter-sim: {few}: it shows where many queue for these (--nodes 64)", file=sys.stderr)


@contextmanager
def _workbench(arguments: argparse.Namespace) -> Iterator[Workbench]:
    """The emulated site, in the directory that was asked for or in one that nobody else has; either is gone at the end."""
    if arguments.nodes > MAXIMUM_NODES:
        raise LaunchFailed(f"--nodes {arguments.nodes}: a cluster has 1 to {MAXIMUM_NODES} emulated nodes")
    if arguments.dir:
        with emulation.workbench(arguments.dir, arguments.nodes) as bench:
            yield bench
        return
    made = Path(tempfile.mkdtemp(prefix="shifter-", dir="/tmp"))  # others must reach it, and socket paths are short
    try:
        made.chmod(0o755)
        with emulation.workbench(made / "bench", arguments.nodes) as bench:
            yield bench
    finally:
        made.rmdir()
