"""What goes wrong, worked out before the run: which node, which time, so that nothing depends on the order of events."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sim.draws import Draws, Floats
from sim.parameters import Fault, Scenario
from sim.scenario import ScenarioInvalid
from sim.station import Window

#: Seconds by which a clock may be wrong before munge refuses a credential (munged's default time to live).
CREDENTIAL_LIFE = 300.0


@dataclass(frozen=True)
class Struck:
    """The faults of one run, by node of the machine.

    `crash_step` is the number of the plan step after which a node crashes (-1: none, -2: drawn when the plan is
    known), `crash_at` a time in seconds (infinite: none), `loops_taken` devices, `skew` seconds.
    """

    crash_step: NDArray[np.int64]
    crash_at: Floats
    corrupt: NDArray[np.bool_]
    loops_taken: NDArray[np.int64]
    skew: Floats
    speed: Floats
    gateway_windows: tuple[Window, ...]
    metadata_windows: tuple[Window, ...]
    submit_skew: float

    def special(self, node: int) -> bool:
        """Whether a node needs to be played step by step."""
        return bool(
            self.crash_step[node] != -1
            or np.isfinite(self.crash_at[node])
            or self.corrupt[node]
            or self.loops_taken[node]
            or self.skew[node]
        )


def strike(scenario: Scenario, nodes: int, draws: Draws) -> Struck:
    """Works out the scenario's faults, stragglers included, for a machine of `nodes`."""
    crash_step = np.full(nodes, -1, np.int64)
    crash_at = np.full(nodes, np.inf)
    corrupt = np.zeros(nodes, np.bool_)
    loops = np.zeros(nodes, np.int64)
    skew = np.zeros(nodes)
    speed = np.ones(nodes)
    speed[draws.struck("stragglers", scenario.node.slow_probability, nodes)] = scenario.node.slow_factor
    gateway: list[Window] = []
    metadata: list[Window] = []
    submit_skew = 0.0
    for index, fault in enumerate(scenario.faults):
        who = _who(fault, index, nodes, draws)
        if fault.kind == "node-crash":
            if fault.at > 0:
                crash_at[who] = fault.at
            else:
                crash_step[who] = fault.step if fault.step >= 0 else -2
        elif fault.kind == "corrupt-image":
            corrupt[who] = True
        elif fault.kind == "loop-exhaustion":
            loops[who] = fault.devices or scenario.node.max_loop
        elif fault.kind == "clock-skew":
            skew[who] = fault.seconds
            if fault.node < 0 and draws.struck("fault clock-skew at submission", fault.probability, 1, index)[0]:
                submit_skew = fault.seconds
        elif fault.kind == "slow-node":
            speed[who] *= fault.factor
        else:
            end = fault.at + fault.duration if fault.duration > 0 else float("inf")
            factor = fault.factor if fault.kind == "gateway-slow" else float("inf")
            (metadata if fault.kind == "metadata-stall" else gateway).append(Window(fault.at, end, factor))
    return Struck(crash_step, crash_at, corrupt, loops, skew, speed, tuple(gateway), tuple(metadata), submit_skew)


def check_places(scenario: Scenario, steps: int | None = None) -> None:
    """Raises ScenarioInvalid for a fault at a node that the machine has not or, where the number of the plan's `steps` is
    known, at a step that the plan has not: a launch without it would pass for one with it.
    """
    nodes = scenario.launch.machine_nodes or scenario.launch.nodes
    for index, fault in enumerate(scenario.faults):
        where = f"{scenario.name}: fault[{index}]: {fault.kind}"
        if fault.node >= nodes:
            raise ScenarioInvalid(
                f"{where} has node = {fault.node}, but the nodes of this machine are 0 to {nodes - 1}: choose one of them, or"
                f" more than {fault.node} nodes"
            )
        if fault.kind == "node-crash" and fault.at == 0 and steps is not None and fault.step >= steps:
            raise ScenarioInvalid(
                f"{where} has step = {fault.step}, but the steps of this plan are 0 to {steps - 1}: choose one of them, or"
                " none to have it drawn"
            )


def _who(fault: Fault, index: int, nodes: int, draws: Draws) -> NDArray[np.bool_]:
    if fault.node < 0:
        return draws.struck(f"fault {fault.kind}", fault.probability, nodes, index)
    who = np.zeros(nodes, np.bool_)
    who[fault.node] = True
    return who
