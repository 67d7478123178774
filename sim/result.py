"""What a launch came to: times, servers, devices, failures; the same for the terminal, JSON, HTML and assertions.

Times are seconds. A `Launch` is computed once from the record of a run (`summarise`) and says nothing that the run
did not.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from sim.draws import Floats
from sim.machine import Machine
from sim.record import Record
from sim.station import LawBroken, StationReport

#: The phases of a launch, in order, with what each means.
PHASES: Mapping[str, str] = {
    "submission": "look-up at submission and the controller's answer, a job",
    "prolog": "prolog with setupRoot, a node",
    "message": "step launch message is there and the prolog is done, a node",
    "stepd": "slurmstepd starts, a node",
    "environment": "a task's container is made or joined",
    "exec": "command and libraries are read, exec",
    "imports": "the interpreter's modules",
    "start": "from submission until a task is up",
    "epilog": "epilog with unsetupRoot, a node",
}


@dataclass(frozen=True)
class Phase:
    """Percentiles of one phase in seconds; count of what was measured; `end` is when the last one ended."""

    name: str
    count: int
    p5: float
    p50: float
    p95: float
    p99: float
    longest: float
    end: float


@dataclass(frozen=True)
class Launch:
    """One run's outcome. `first_task` and `last_task` (seconds) are None when no task got up."""

    scenario: str
    nodes: int
    tasks: int
    jobs: int
    seed: int
    first_task: float | None
    last_task: float | None
    finished: float
    ready_tasks: int
    failed_tasks: int
    failures: Mapping[str, int]
    crashed_nodes: int
    phases: Mapping[str, Phase]
    stations: tuple[StationReport, ...]
    gateway_lookups: int
    gateway_pulls: int
    gateway_timeouts: int
    downloads: int
    image_opens_per_node: int
    loop_devices_per_node: int
    loop_devices_left: int
    mounts_left: int
    mixed_images: int
    plan_steps: int
    digest: str

    @property
    def lookups_per_job(self) -> float:
        """Requests to the gateway a job."""
        return self.gateway_lookups / self.jobs

    def as_json(self) -> str:
        """Everything as one JSON object with sorted keys: the same run gives the same bytes."""
        return json.dumps(dataclasses.asdict(self), sort_keys=True, indent=1) + "\n"


def phase(name: str, durations: Floats, ends: Floats) -> Phase:
    """Percentiles of the durations that are numbers."""
    good = durations[~np.isnan(durations)]
    if not len(good):
        return Phase(name, 0, *([0.0] * 6))
    p5, p50, p95, p99 = (float(x) for x in np.percentile(good, (5, 50, 95, 99)))
    return Phase(name, len(good), p5, p50, p95, p99, float(good.max()), float(np.nanmax(ends)))


def summarise(machine: Machine, seed: int, downloads: int) -> Launch:
    """The outcome of a finished run, after its laws have been checked. Raises LawBroken."""
    record, scenario = machine.record, machine.scenario
    check(machine)
    submitted = np.repeat([job.submitted for job in record.jobs], scenario.launch.nodes)
    ready = record.ready[~np.isnan(record.ready)]
    jobs = record.jobs
    lookups = np.array([job.looked_up - job.submitted for job in jobs])
    with np.errstate(invalid="ignore"):
        step = np.repeat([job.step for job in jobs], scenario.launch.nodes)
        phases = {
            "submission": phase("submission", lookups, np.array([job.looked_up for job in jobs])),
            "prolog": phase("prolog", record.prolog_end - record.prolog_begin, record.prolog_end),
            "message": phase("message", record.message - step, record.message),
            "stepd": phase("stepd", record.stepd_end - record.message, record.stepd_end),
            "environment": phase("environment", record.environment - record.started, record.environment),
            "exec": phase("exec", record.executed - record.environment, record.executed),
            "imports": phase("imports", record.ready - record.executed, record.ready),
            "start": phase("start", record.ready - submitted[:, None], record.ready),
            "epilog": phase("epilog", record.epilog_end - record.epilog_begin, record.epilog_end),
        }
    # the clock may run on to a crash that was to come later: then the launch was over already
    now = max([machine.over, *(max(station.departures, default=0.0) for station in machine.stations())])
    return Launch(
        scenario=scenario.name,
        nodes=scenario.launch.nodes,
        tasks=scenario.launch.tasks,
        jobs=scenario.launch.jobs,
        seed=seed,
        first_task=float(ready.min()) if len(ready) else None,
        last_task=float(ready.max()) if len(ready) else None,
        finished=now,
        ready_tasks=len(ready),
        failed_tasks=record.failed_tasks,
        failures=dict(sorted(record.failures.items())),
        crashed_nodes=record.crashed_nodes,
        phases=phases,
        stations=tuple(station.report(float(ready.max()) if len(ready) else now) for station in machine.stations()),
        gateway_lookups=machine.gateway.lookups,
        gateway_pulls=machine.gateway.pulls,
        gateway_timeouts=machine.gateway.timeouts,
        downloads=downloads,
        image_opens_per_node=max(kernel.most_opened for kernel in machine.kernels),
        loop_devices_per_node=max(kernel.loops.peak for kernel in machine.kernels),
        loop_devices_left=sum(kernel.loops.held() for kernel in machine.kernels),
        mounts_left=sum(len(kernel.mounts.names()) for kernel in machine.kernels),
        mixed_images=mixed(record),
        plan_steps=len(machine.priced.start.steps),
        digest=digest(record),
    )


def mixed(record: Record) -> int:
    """Jobs whose nodes did not all start the same image: what a tag pulled again in mid-launch can do."""
    return sum(
        1
        for job in record.jobs
        if len(set().union(*(record.identifiers.get(job.rows + i, set()) for i in range(job.nodes)))) > 1
    )


def digest(record: Record) -> str:
    """SHA-256 of every time in the record: two runs with one digest are the same to the byte."""
    sha = hashlib.sha256()
    for array in (
        record.prolog_end,
        record.message,
        record.started,
        record.environment,
        record.ready,
        record.epilog_end,
    ):
        sha.update(array.tobytes())
    return sha.hexdigest()


def check(machine: Machine) -> None:
    """The laws of every run. Raises LawBroken."""
    for station in machine.stations():
        station.check()
    for kernel in machine.kernels:
        if not kernel.crashed:
            kernel.check_empty()
    record, launch = machine.record, machine.scenario.launch
    ready = int(np.count_nonzero(~np.isnan(record.ready)))
    total = launch.jobs * launch.nodes * launch.tasks
    if ready + record.failed_tasks != total:
        raise LawBroken(f"{total} tasks, but {ready} got ready and {record.failed_tasks} failed")
    order = (record.started, record.environment, record.executed, record.ready)
    for before, after in itertools.pairwise(order):
        with np.errstate(invalid="ignore"):
            if np.any(after < before - 1e-9):
                raise LawBroken("a task ended a phase before the phase before it")


def queue_lengths(machine: Machine, points: int = 400) -> Mapping[str, tuple[Sequence[float], Sequence[int]]]:
    """How many wait or are served at each station that was used, thinned to about `points` points for plotting."""
    out: dict[str, tuple[Sequence[float], Sequence[int]]] = {}
    for station in machine.stations():
        times, lengths = station.queue()
        if len(times) == 0:
            continue
        if len(times) > points:
            edges = np.linspace(times[0], times[-1], points + 1)
            at = np.clip(np.searchsorted(times, edges, "right") - 1, 0, None)
            peaks = [int(lengths[a : max(a + 1, b)].max()) for a, b in itertools.pairwise(at)]
            times, lengths = edges[:-1], np.array(peaks)
        out[station.name] = ([float(t) for t in times], [int(n) for n in lengths])
    return out
