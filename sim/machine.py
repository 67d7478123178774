"""The imagined machine: its nodes' kernels, its servers, and what a job's start costs on it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import simpy

from runtime.plan import Step
from sim.compiled import Compiled, price
from sim.draws import Draws
from sim.faults import check_places, strike
from sim.filesystem import Filesystem
from sim.gateway import Answers, GatewayService
from sim.kernel import Kernel
from sim.parameters import Scenario
from sim.record import Record
from sim.station import Process, Station, SteppedStation


@dataclass(frozen=True)
class Plans:
    """The plans of a launch, from the runtime's planner: `start` is what `shifter` executes, `prepare` what setupRoot
    does. `kept`: whether a node remembers a start's plan."""

    start: tuple[Step, ...]
    prepare: tuple[Step, ...]
    kept: bool = True


@dataclass(frozen=True)
class Priced:
    """The same plans with prices on this machine."""

    start: Compiled
    prepare: Compiled
    kept: bool

    def played(self, scenario: Scenario) -> Compiled:
        """The plan that a node plays in full: setupRoot's where the prolog prepares, else the starts'."""
        return self.prepare if scenario.launch.prepared and scenario.launch.strategy != "none" else self.start


def price_plans(plans: Plans, scenario: Scenario) -> Priced:
    """Prices a launch's plans: tasks of a node start together, the prolog runs alone."""
    together = min(scenario.launch.tasks, scenario.node.cores)
    return Priced(price(plans.start, scenario, together), price(plans.prepare, scenario, 1), plans.kept)


class Machine:
    """Everything that one run shares. `stepwise` plays each task and each step by itself (slow, exact).

    Raises ScenarioInvalid for a fault at a place that this machine or its plan has not.
    """

    def __init__(
        self,
        scenario: Scenario,
        plans: Plans,
        answers: Answers,
        seed: int,
        stepwise: bool,
        shared_cores: int = 0,
    ) -> None:
        self.scenario = scenario
        self.environment = simpy.Environment()
        self.stepwise = stepwise
        self.draws = Draws(seed)
        self.priced = price_plans(plans, scenario)
        station = SteppedStation if stepwise else Station
        self.station = station
        nodes = scenario.launch.machine_nodes or scenario.launch.nodes
        check_places(scenario, len(self.priced.played(scenario).steps))
        self.struck = strike(scenario, nodes, self.draws)
        p = scenario.node
        self.kernels = [
            Kernel(
                i,
                p.max_loop,
                p.loops_in_use + int(self.struck.loops_taken[i]),
                float(self.struck.speed[i]),
                p.plan_cached and plans.kept,
            )
            for i in range(nodes)
        ]
        self.filesystem = Filesystem(self.environment, scenario, station, self.struck.metadata_windows)
        self.gateway = GatewayService(self.environment, scenario, station, answers, self.struck.gateway_windows)
        self.controller = station(self.environment, "controller")
        self.registry = station(self.environment, "registry", scenario.registry.parallel_layers)
        self.free = deque(range(nodes))
        self.returned = self.environment.event()  # a node was given back
        self.scheduler = simpy.Resource(self.environment, 1)
        slots = scenario.slurm.prolog_slots
        self.prologs = simpy.Resource(self.environment, slots) if slots else None
        self.over = 0.0  # when the last job was, in seconds
        self.record = Record.blank(scenario.launch.jobs * scenario.launch.nodes, scenario.launch.tasks)
        #: cores shared by all nodes (emulated nodes on one machine), or None: each node has its own
        self.shared_cores = simpy.Resource(self.environment, shared_cores) if shared_cores else None

    def stations(self) -> Sequence[Station]:
        """Every queue of the machine."""
        return [*self.gateway.stations, self.controller, *self.filesystem.stations(), self.registry]

    def start(self, process: Process) -> simpy.Process:
        """Runs something beside the rest."""
        return self.environment.process(process)

    def give_back(self, node: int) -> None:
        """A job is done with a node."""
        self.free.append(node)
        self.returned.succeed()
        self.returned = self.environment.event()

    def fetch_and_convert(self, done: Callable[[], None]) -> Process:
        """What a pull costs a gateway's worker: layers from the registry, several at a time, then the conversion."""
        p, image = self.scenario.registry, self.scenario.image

        def layer() -> Process:
            yield from self.registry.visit(
                p.latency + image.bytes / image.layers / (p.bandwidth / p.parallel_layers),
                1,
                image.bytes // image.layers,
            )

        yield self.environment.all_of([self.start(layer()) for _ in range(image.layers)])
        yield self.environment.timeout(image.unpacked_bytes / p.convert_rate)
        done()
