"""`shifter-sim calibrate`: this machine's own figures as a scenario, each with its spread and how it was measured.

Measured are the plan's steps, loop devices and mounts (`sim.probe`), whole starts, the gateway and Slurm's fan-out
on emulated nodes (`sim.emulation`). What cannot be measured by itself is the rest of a whole that can: the
launcher's own time is a warm start less its steps, the planner's a cold start less a warm one and the mount.
Emulated nodes share this machine's cores; `cores` says how many, and `shared_cores` in `launch.play` makes them
queue for them.
"""

from __future__ import annotations

import datetime
import http.client
import json
import math
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, urlsplit

from sim import plans, probe
from sim.compiled import price
from sim.emulation import IMAGE, USER, Instants, Workbench, spread
from sim.parameters import Scenario
from sim.scenario import override, parse

#: What srun of Slurm 22.05 sleeps before it asks again whether all its nodes are ready; then twice, three times that.
POLL = 0.1
STARTS = 40
LOOKUPS = 300


@dataclass(frozen=True)
class Figure:
    """One parameter: its value, the 5% and 95% of what was measured, of how many measurements (0: set, not measured), and
    how."""

    key: str
    value: float
    low: float
    high: float
    count: int
    how: str


@dataclass(frozen=True)
class Calibration:
    """All figures of one machine on one day."""

    machine: str
    date: str
    figures: tuple[Figure, ...]

    def scenario(self) -> Scenario:
        """These figures in place of the defaults, one task a node."""
        settings = [f"{f.key}={f.value!r}" for f in self.figures if not f.key.startswith("node.step_seconds.")]
        steps = {f.key.rpartition(".")[2]: f.value for f in self.figures if f.key.startswith("node.step_seconds.")}
        base = parse({"name": "this-machine", "description": self.machine, "node": {"step_seconds": steps}})
        return override(base, ["launch.tasks=1", "launch.nodes=1", *settings])

    def toml(self) -> str:
        """A scenario file: every figure with its spread as its source."""
        scenario = self.scenario()
        lines = [
            f"# Measured by `shifter-sim calibrate` on {self.date}: {self.machine}.",
            "# Each figure is a median, or what the text says, with the 5% and 95% of the measurements.",
            'name = "this-machine"',
            f"description = {json.dumps(self.machine, ensure_ascii=False)}",
            "",
            "[launch]",
            f"nodes = {scenario.launch.nodes}",
            f"tasks = {scenario.launch.tasks}",
        ]
        section = ""
        for figure in sorted(self.figures, key=lambda f: (f.key.rpartition(".")[0], f.key)):
            head, _, name = figure.key.rpartition(".")
            if head != section:
                section = head
                lines += ["", f"[{section}]"]
            value = str(round(figure.value)) if name == "tree_width" else f"{figure.value:.6g}"
            source = f"# source: {figure.how}"
            if figure.count:
                source += f", {figure.low:.3g} .. {figure.high:.3g}, {figure.count} measurements"
            lines.append(f"{name} = {value}".ljust(36) + source)
        return "\n".join(lines) + "\n"


def calibrate(
    bench: Workbench,
    repeats: int = 3,
    plain: tuple[Instants, Instants] | None = None,
    step: Callable[[str], None] = lambda text: None,
) -> Calibration:
    """Measures everything; `plain` are launches of nothing on one node and on all, where they have been measured
    already. `step` hears what is measured.

    About a minute on a small machine. Raises ProbeFailed, LaunchFailed.
    """
    step("plan steps, loop devices, mounts")
    figures = steps(bench)
    step("look-ups")
    figures += gateway(bench)
    step("starts")
    figures += starts(bench, figures)
    step("Slurm's fan-out")
    one, many = plain or (bench.launch(1, (), 3 * repeats), bench.launch(bench.nodes, (), repeats))
    bench.launch(bench.nodes, (), 1, bench.request)  # every node has plan and image from here on
    empty = [bench.allocation() for _ in range(repeats)]
    image = [bench.allocation(bench.request) for _ in range(repeats)]
    figures += slurm(one, many, [bench.work() for _ in range(repeats)], empty, repeats)
    figures += prepared(bench, figures, empty, image, 3 * repeats)
    return Calibration(machine(), f"{datetime.datetime.now(tz=datetime.UTC):%Y-%m-%d}", tuple(figures))


def machine() -> str:
    """This machine in a line: processor, cores, kernel."""
    names = [line.partition(":")[2].strip() for line in _cpuinfo() if line.startswith("model name")]
    return f"{names[0] if names else platform.machine()}, {cores()} cores, Linux {platform.release()}"


def _cpuinfo() -> list[str]:
    return Path("/proc/cpuinfo").read_text().splitlines()


def cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0))


def steps(bench: Workbench) -> list[Figure]:
    """The plan's steps, loop device and mount."""
    found = probe.steps(bench.image, bench.site.directory)
    figures = [
        _figure(f"node.step_seconds.{verb}", found[verb], "system calls alone")
        for verb in ("mkdir", "symlink", "write", "copy", "bind", "remount", "tmpfs", "overlay", "proc")
    ]
    figures.append(_figure("node.loop_seconds", found["loop"], "LOOP_CTL_GET_FREE and LOOP_CONFIGURE"))
    figures.append(_figure("node.mount_seconds", found["mount"], "mount(2) of squashfs"))
    figures.append(_figure("node.unmount_seconds", found["unmount"], "umount2(2) of a bind"))
    executions = [bench.start([str(bench.stamp), "outside"]) for _ in range(STARTS)]
    figures.append(_figure("node.step_seconds.exec", executions, "exec of a static program"))
    return figures


def starts(bench: Workbench, known: Sequence[Figure]) -> list[Figure]:
    """Launcher and planner: what whole starts take beside their steps."""
    bench.configure(cold=False)
    bench.start(bench.container())
    warm = [bench.start(bench.container()) for _ in range(STARTS)]
    bench.configure(cold=True)
    cold = [bench.start(bench.container()) for _ in range(STARTS)]
    bench.configure(cold=False)
    scenario = _with_steps(bench, known)
    plan = price(plans.make(scenario).start, scenario, 1)
    own = plan.before_seconds + plan.after_seconds + plan.execute_seconds + (plan.image.seconds if plan.image else 0.0)
    mount = sum(f.value for f in known if f.key in ("node.loop_seconds", "node.mount_seconds"))
    least = spread(warm)[1]
    left = [max(0.0, t - own - scenario.node.namespace_seconds) for t in warm]
    planned = [max(0.0, t - least - mount) for t in cold]
    lower, _, upper = statistics.quantiles(warm, n=4)
    sigma = math.log(upper / lower) / 1.349  # of a lognormal distribution with these quartiles
    return [
        Figure(
            "node.jitter", sigma, sigma, sigma, len(warm), "logarithm of the ratio of a warm start's quartiles, / 1.349"
        ),
        _undisturbed("node.start_seconds", left, "a warm start less its steps"),
        _undisturbed("node.planner_seconds", planned, "a cold start less a warm one and the mount"),
    ]


def prepared(
    bench: Workbench,
    known: Sequence[Figure],
    empty: Sequence[tuple[float, float]],
    image: Sequence[tuple[float, float]],
    repeats: int,
) -> list[Figure]:
    """What a prepared environment costs: the CPU of prologs with an image beside those without, and a start that
    joins.

    Nodes hold the image and have the plan, as after their first job.
    """
    job = bench.launch(1, bench.container(), repeats, bench.request)
    value = {f.key: f.value for f in known}
    scenario = _with_steps(bench, known)
    plan = price(plans.make(scenario).prepare, scenario, 1)
    made = plan.before_seconds + plan.after_seconds + (plan.image.seconds if plan.image else 0.0)
    made += value["node.start_seconds"] + scenario.node.namespace_seconds
    unseen = value["slurm.prolog_seconds"] / max(1e-6, statistics.median(prolog for prolog, _ in empty))
    more = [max(0.0, (b[0] - a[0]) * unseen - made) for a, b in zip(empty, image, strict=True)]
    join = max(0.0, job.inside - job.last - value["node.start_seconds"] - value["node.step_seconds.exec"])
    how = f"srun --image on 1 node, least of {repeats}: a start, less launcher and exec"
    return [
        _figure(
            "slurm.prepare_seconds",
            more,
            f"CPU a node of salloc --image on {bench.nodes}, less salloc's, less the plan",
        ),
        Figure("node.join_seconds", join, join, join, repeats, how),
    ]


def _with_steps(bench: Workbench, known: Sequence[Figure]) -> Scenario:
    """A scenario with the site's configuration and the measured steps."""
    table = {f.key.rpartition(".")[2]: f.value for f in known if f.key.startswith("node.step_seconds.")}
    return parse({"node": {"step_seconds": table}, "configuration": bench.configuration})


def gateway(bench: Workbench) -> list[Figure]:
    """The time of a look-up at the gateway, and of the program that asks."""
    address = urlsplit(bench.site.gateway)
    connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=10)
    path = f"/api/lookup/{bench.site.name}/docker/{quote(IMAGE, safe='')}/"
    served = []
    for _ in range(LOOKUPS):
        began = time.perf_counter()
        connection.request("GET", path)
        connection.getresponse().read()
        served.append(time.perf_counter() - began)
    connection.close()
    asked = []
    for _ in range(STARTS):
        began = time.perf_counter()
        bench.site.run_as(USER, ["shifterimg", "lookup", IMAGE])
        asked.append(time.perf_counter() - began)
    own = spread(served)[0]
    return [
        _figure("gateway.lookup_seconds", served, "GET lookup, one connection"),
        _figure(
            "gateway.client_seconds", [max(0.0, t - own) for t in asked], "shifterimg lookup less the gateway's part"
        ),
    ]


def slurm(
    one: Instants, many: Instants, work: Sequence[float], empty: Sequence[tuple[float, float]], repeats: int
) -> list[Figure]:
    """Slurm's waiting times and its work a node, from `srun` of a program that does nothing on one node and on many.

    On one node the time is waiting: for the controller, for messages, and for srun, which sleeps before it looks
    whether all prologs are done (POLL). On many emulated nodes their daemons queue for this machine's cores. The
    CPU of the prologs is counted in an allocation in which nothing runs, that of the step is what is left of a
    whole srun; what the count does not see (the controller, munged, the kernel's own threads, other work) is one
    factor on both, such that the first task on many nodes begins when it did. slurmstepd's share is told by the
    span from the first task to the last. How the time grows between one node and many is the model's to say:
    validation asks it.
    """
    turns = max(1.0, many.nodes / cores())
    prologs = [before for before, _ in empty]
    steps_ = [max(0.0, whole - sum(none)) for whole, none in zip(work, empty, strict=True)]
    prolog, step = statistics.median(prologs), statistics.median(steps_)
    hop = max(0.0, one.over - one.last)
    span = max(0.0, many.last - many.first) / turns

    def wait(factor: float) -> float:
        return max(0.0, one.first - POLL - hop - factor * step)

    def first(factor: float) -> float:
        looks, ready = 0.0, hop + turns * factor * prolog
        number = 0
        while looks < ready:
            number += 1
            looks += number * POLL
        stepd = min(factor * step, span)
        return wait(factor) + looks + hop + turns * (factor * step - stepd) + stepd

    factors = [n / 100 for n in range(50, 1000)]
    unseen = min(factors, key=lambda factor: abs(first(factor) - many.first))
    bound = " (as far as is looked: measure on more nodes)" if unseen in (factors[0], factors[-1]) else ""
    stepd = min(unseen * step, span)
    how = f"srun on 1 and {many.nodes} emulated nodes, least of {3 * repeats} and {repeats}"
    counted = f"CPU a node on {many.nodes} emulated nodes, times {unseen:.2f}{bound} for what is not counted:"
    values: Mapping[str, float] = {
        "slurm.submit_seconds": wait(unseen) / 2,
        "slurm.hop_seconds": hop,
        "slurm.stepd_seconds": stepd,
        "slurm.epilog_seconds": max(0.0, many.over - many.last - hop) / turns,
    }
    # one machine's launches of one task a node do not tell these apart from the work of a node
    within = ("slurm.send_seconds", "slurm.fork_seconds", "slurm.controller_message_seconds")
    return [
        *(
            Figure(key, 0.0, 0.0, 0.0, 0, "not measured: what it takes is in the other figures of Slurm")
            for key in within
        ),
        *(Figure(key, value, value, value, 4 * repeats, how) for key, value in values.items()),
        _figure("slurm.prolog_seconds", [p * unseen for p in prologs], f"{counted} until salloc has its nodes"),
        _figure(
            "slurm.step_seconds",
            [max(0.0, s * unseen - stepd) for s in steps_],
            f"{counted} srun less salloc and stepd",
        ),
        Figure("slurm.poll_seconds", POLL, POLL, POLL, 0, "strace of srun: sleeps of 0.1, 0.2, 0.3 s and so on"),
        Figure("slurm.tree_width", 256, 256, 256, 0, "all nodes are on this machine: a message is work, not way"),
    ]


def _undisturbed(key: str, samples: Sequence[float], how: str) -> Figure:
    """The 5% in place of the median: milliseconds long, a sample is as often as not lengthened by something else's work."""
    _, low, high = spread(samples)
    return Figure(key, low, low, high, len(samples), f"{how} (the 5% of them)")


def _figure(key: str, samples: Sequence[float], how: str) -> Figure:
    middle, low, high = spread(samples)
    return Figure(key, middle, low, high, len(samples), how)
