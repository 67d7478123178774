"""Simulated launches: a scenario in, a `Launch` out.

    from sim import launch, scenario
    outcome = launch.simulate(scenario.load("centre-1000"), nodes=1000, seed=1)
    outcome.last_task, outcome.gateway_lookups

The plans come from the runtime's planner and the gateway's answers from the gateway's application (`sim.plans`,
`sim.answers`); this module puts them on a machine and lets time pass. The same scenario and seed give the same
bytes. Every run checks its own laws (`result.check`).
"""

from __future__ import annotations

import gc
from dataclasses import dataclass
from typing import Protocol

from sim import answers, plans, workload
from sim.gateway import Answers
from sim.jobs import Job
from sim.machine import Machine, Plans
from sim.parameters import Scenario
from sim.result import Launch, summarise
from sim.scenario import replaced
from sim.station import Process


class Attendant(Answers, Protocol):
    """Answers that also let the simulation drive their background work (pulls)."""

    downloads: int

    def attend(self, machine: Machine) -> None: ...


@dataclass(frozen=True)
class Run:
    """A finished run: its outcome, and the machine for those who want every time of it."""

    outcome: Launch
    machine: Machine


def simulate(scenario: Scenario, nodes: int | None = None, seed: int = 0) -> Launch:
    """The outcome of one launch, with another number of nodes than the scenario's if given."""
    return play(scenario, nodes, seed).outcome


def play(
    scenario: Scenario,
    nodes: int | None = None,
    seed: int = 0,
    *,
    stepwise: bool = False,
    shared_cores: int = 0,
    plan: Plans | None = None,
) -> Run:
    """Plays one launch. `stepwise`: every task and step by itself; `shared_cores`: all nodes on so many cores
    (emulation).

    Raises ScenarioInvalid for a scenario that the planner or the gateway refuses or whose faults lie beyond the machine,
    and LawBroken for a defect of the simulator.
    """
    scenario = at_size(scenario, nodes)
    made = plan or plans.make(scenario)
    with answers.Catalog(scenario, workload.images(scenario)) as catalog:
        return play_with(Machine(scenario, made, catalog, seed, stepwise, shared_cores), seed, catalog)


def play_with(machine: Machine, seed: int, catalog: Attendant) -> Run:
    """Plays the scenario's jobs on a machine whose answers are `catalog`'s."""
    catalog.attend(machine)
    for index, spec in enumerate(workload.jobs(machine.scenario)):
        machine.start(Job(machine, index, spec).run())
    if machine.scenario.launch.workload == "retag":
        machine.start(_retag(machine))
    collecting = gc.isenabled()
    gc.disable()  # a run makes millions of objects and no cycles that matter: the collector would walk them in vain
    try:
        machine.environment.run()
    finally:
        if collecting:
            gc.enable()
    return Run(summarise(machine, seed, catalog.downloads), machine)


def at_size(scenario: Scenario, nodes: int | None) -> Scenario:
    """The scenario with another number of nodes."""
    if nodes is None:
        return scenario
    machine_nodes = max(scenario.launch.machine_nodes, nodes) if scenario.launch.machine_nodes else 0
    return replaced(scenario, "launch", {"nodes": nodes, "machine_nodes": machine_nodes})


def _retag(machine: Machine) -> Process:
    """Somebody pulls the tag again, and the registry has something new under it."""
    yield machine.environment.timeout(machine.scenario.launch.retag_at)
    yield from machine.gateway.pull(workload.FIRST_USER - 1, workload.reference(0), 0)
    machine.over = machine.environment.now
