"""`shifter-sim validate`: predicted against measured, on real emulated nodes, in one run on one machine.

Real jobs start containers on 1, 2, 4 ... nodes, the machine is calibrated, and the simulation predicts the same
jobs from the calibration, which knows no container on more than one node (but for the CPU of prologs that prepare).
Every point is reported, good or bad. The emulated nodes queue for this machine's few cores, and so do the imagined
ones (`shared_cores`): what is validated is the model of the work and of the queueing, not the network of a big
machine, which no emulation has.
"""

from __future__ import annotations

import dataclasses
import json
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

from sim import launch, plots
from sim.calibrate import Calibration, calibrate, cores
from sim.emulation import Instants, Workbench, least
from sim.parameters import Scenario
from sim.report_html import STYLE
from sim.report_text import seconds
from sim.scenario import override

NODES = (1, 2, 4, 8, 16, 32, 64)
REPEATS = 3
#: What is compared, and what it is in a launch.
INSTANTS = {
    "first": "the first task begins",
    "last": "the last task begins",
    "inside": "the last task runs in its container",
    "over": "the job is over",
}
#: How containers start: the first start on a node (planner and mount), later ones (plan cached, image held), and
#: joining the environment that the job's prolog prepared.
VARIANTS = ("cold", "warm", "prepared")
GOAL = 0.15


@dataclass(frozen=True)
class Point:
    """One comparison; seconds."""

    variant: str
    nodes: int
    instant: str
    measured: float
    predicted: float

    @property
    def error(self) -> float:
        """Relative to what was measured; negative: the prediction is too early."""
        return self.predicted / self.measured - 1


@dataclass(frozen=True)
class Validation:
    """All points, and the calibration that the predictions came from."""

    calibration: Calibration
    points: tuple[Point, ...]

    @property
    def median_error(self) -> float:
        """The median of the absolute relative errors."""
        return statistics.median(abs(p.error) for p in self.points)

    def as_json(self) -> str:
        """Points and calibration as JSON."""
        return (
            json.dumps({**dataclasses.asdict(self), "median_error": self.median_error}, indent=1, sort_keys=True) + "\n"
        )


def validate(
    bench: Workbench,
    sizes: Sequence[int] = NODES,
    repeats: int = REPEATS,
    step: Callable[[str], None] = lambda text: None,
) -> Validation:
    """Measures, calibrates and predicts. Raises LaunchFailed, ProbeFailed."""
    bench.configure(cold=False)
    bench.launch(bench.nodes, bench.container(), 1, bench.request)  # every node has been used once
    plain: dict[int, list[Instants]] = {}
    real: dict[tuple[str, int], list[Instants]] = {}
    for turn in range(repeats):  # turn by turn, so that what else the machine does strikes all alike
        for nodes in (1, bench.nodes):
            plain.setdefault(nodes, []).append(bench.launch(nodes, (), 1))
        for variant in VARIANTS:
            bench.configure(cold=variant == "cold")
            options = bench.request if variant == "prepared" else ()
            if variant != "cold":
                bench.launch(
                    bench.nodes, bench.container(), 1, options
                )  # plans are cached and images held from here on
            for nodes in (n for n in sizes if n <= bench.nodes):
                step(f"turn {turn + 1} of {repeats}, {variant}: {nodes} nodes")
                found = bench.launch(nodes, bench.container(), 1, options)
                real.setdefault((variant, nodes), []).append(found)
    bench.configure(cold=False)
    calibration = calibrate(bench, repeats, (least(plain[1]), least(plain[bench.nodes])), step)
    points: list[Point] = []
    for (variant, nodes), repeated in real.items():
        measured, imagined = least(repeated), predict(calibration, nodes, variant, bench.configuration)
        points += [Point(variant, nodes, name, getattr(measured, name), getattr(imagined, name)) for name in INSTANTS]
    return Validation(calibration, tuple(points))


def predict(calibration: Calibration, nodes: int, variant: str, configuration: str = "") -> Instants:
    """The simulation's answer for one task a node on nodes that share this machine's cores, with that udiRoot.conf."""
    imagined = dataclasses.replace(emulated(calibration, variant), configuration=configuration)
    run = launch.play(imagined, nodes, stepwise=True, shared_cores=cores())
    record = run.machine.record
    return Instants(
        nodes=nodes,
        first=float(np.nanmin(record.started)),
        last=float(np.nanmax(record.started)),
        inside=float(np.nanmax(record.ready)),
        over=float(np.nanmax(record.epilog_end)),
    )


def emulated(calibration: Calibration, variant: str) -> Scenario:
    """The calibrated scenario as emulated nodes have it: the image is in this machine's page cache, no network
    between.

    Its jobs name the image by identifier, so the gateway is not asked. Warm nodes hold the image and have the plan.
    """
    settings = [
        f"launch.prepared={'true' if variant == 'prepared' else 'false'}",
        "gateway.lookup_seconds=0.0",
        "filesystem.metadata_latency=0.0",
        "filesystem.data_latency=0.0",
        "filesystem.metadata_rate=1e9",
        "filesystem.data_bandwidth=1e12",
        "filesystem.disk_bandwidth=1e12",
        "network.node_bandwidth=1e12",
        "network.latency=0.0",
        "image.decompress_rate=1e12",
        "node.jitter=0.0",
        f"node.plan_cached={'false' if variant == 'cold' else 'true'}",
    ]
    if variant != "prepared":
        settings.append("gateway.client_seconds=0.0")  # else srun's plugin asks at submission
    if variant != "cold":
        settings += ["node.mount_seconds=0.0", "node.loop_seconds=0.0"]
    return override(calibration.scenario(), settings)


def table(validation: Validation) -> list[tuple[str, ...]]:
    """Every point as a row of texts."""
    return [
        (p.variant, str(p.nodes), INSTANTS[p.instant], seconds(p.measured), seconds(p.predicted), f"{p.error:+.0%}")
        for p in validation.points
    ]


HEADINGS = ("start", "nodes", "instant", "measured", "predicted", "error")


def plot(validation: Validation) -> str:
    """Predicted against measured as SVG."""
    groups: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for p in validation.points:
        groups.setdefault((p.variant, INSTANTS[p.instant]), []).append((p.measured, p.predicted))
    return plots.scatter(groups, "measured, seconds", "predicted, seconds")


def markdown(validation: Validation, picture: str) -> str:
    """The validation as a page of the documentation: date, machine, the plot in the file `picture`, and every point."""
    c = validation.calibration
    rows = ["| " + " | ".join(row) + " |" for row in (HEADINGS, ("---",) * len(HEADINGS), *table(validation))]
    by_variant = ", ".join(
        f"{variant} {statistics.median(abs(p.error) for p in validation.points if p.variant == variant):.1%}"
        for variant in dict.fromkeys(p.variant for p in validation.points)
    )
    lines = [
        "# Predicted against measured",
        "",
        f"Made by `make validate` on {c.date}: {c.machine}.",
        f"Median error {validation.median_error:.1%} over {len(validation.points)} points ({by_variant}).",
        "What is measured and how: [simulation.md](simulation.md#truth).",
        "",
        f"![Predicted against measured, with 15% either side]({picture})",
        "",
        *rows,
        "",
        "The calibration that the predictions came from:",
        "",
        "```toml",
        c.toml().rstrip(),
        "```",
    ]
    return "\n".join(lines) + "\n"


def page(validation: Validation) -> str:
    """The validation as an HTML page: the plot, every point, every calibrated figure."""
    c = validation.calibration
    rows = "".join(
        "<tr>"
        + "".join(f"<td{' class=text' if i in (0, 2) else ''}>{escape(v)}</td>" for i, v in enumerate(row))
        + "</tr>"
        for row in table(validation)
    )
    head = "".join(f"<th{' class=text' if i in (0, 2) else ''}>{escape(h)}</th>" for i, h in enumerate(HEADINGS))
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>Validation</title><style>{STYLE}</style></head>'
        f"<body><h1>Predicted against measured</h1><p class=note>{escape(c.machine)}, {c.date}. Median error "
        f"{validation.median_error:.1%} over {len(validation.points)} points.</p>{plot(validation)}"
        f"<table><tr>{head}</tr>{rows}</table><h2>Calibration</h2><pre>{escape(c.toml())}</pre></body></html>\n"
    )
