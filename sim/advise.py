"""Which parameter limits a launch, and what a change would bring: each change is tried by a simulation of its own.

Two kinds: what a site can configure today, and what it would have to buy or rebuild (a figure twice as good). The
answer is the time to the last task with the change against that without it, same seed, so the difference is the
change's and not chance's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from sim import launch
from sim.parameters import STRATEGIES, Scenario
from sim.result import Launch
from sim.scenario import ScenarioInvalid, replaced


@dataclass(frozen=True)
class Change:
    """One change of one parameter. kind: "configure" or "improve"; `also`: what has to be set with it (key, value)."""

    key: str
    value: Any
    kind: str
    also: tuple[tuple[str, Any], ...] = ()

    def applied(self, scenario: Scenario) -> Scenario:
        """The scenario with the change. Raises ScenarioInvalid where this site cannot be changed so."""
        for key, value in ((self.key, self.value), *self.also):
            section, _, name = key.partition(".")
            scenario = replaced(scenario, section, {name: value})
        return scenario


@dataclass(frozen=True)
class Effect:
    """What a change brings: seconds to the last task before and after (None: no task gets up), tasks that fail before
    and after."""

    change: Change
    before: float | None
    after: float | None
    failed_before: int
    failed_after: int

    @property
    def gain(self) -> float:
        """Part of the time saved: 0.5 is twice as fast; negative is slower. 0 where no task got up to compare with."""
        return 1 - self.after / self.before if self.before and self.after is not None else 0.0


_HALF = 0.5
#: Parameters of which a better figure may help, and by what to multiply.
_IMPROVE: tuple[tuple[str, float], ...] = (
    ("filesystem.metadata_rate", 2),
    ("filesystem.metadata_latency", _HALF),
    ("filesystem.data_bandwidth", 2),
    ("filesystem.disk_bandwidth", 2),
    ("filesystem.data_latency", _HALF),
    ("network.node_bandwidth", 2),
    ("gateway.lookup_seconds", _HALF),
    ("gateway.client_seconds", _HALF),
    ("registry.bandwidth", 2),
    ("registry.convert_rate", 2),
    ("slurm.hop_seconds", _HALF),
    ("slurm.send_seconds", _HALF),
    ("slurm.stepd_seconds", _HALF),
    ("slurm.fork_seconds", _HALF),
    ("slurm.prolog_seconds", _HALF),
    ("slurm.controller_message_seconds", _HALF),
    ("node.planner_seconds", _HALF),
    ("node.slow_probability", 0),
    ("image.decompress_rate", 2),
    ("image.exec_read_bytes", _HALF),
    ("imports.files", _HALF),
    ("imports.cpu_seconds", _HALF),
)


def changes(scenario: Scenario) -> Iterator[Change]:
    """The changes that make sense for a scenario."""
    launched, files = scenario.launch, scenario.filesystem
    for strategy in STRATEGIES:
        if strategy not in (launched.strategy, "none") and launched.strategy != "none":
            yield Change("launch.strategy", strategy, "configure")
    if launched.strategy == "none":  # a container brings the modules along: else it would only add to the start
        modules = (("imports.source", "image"),) if scenario.imports.files else ()
        for strategy in ("squashfs", "erofs"):
            yield Change("launch.strategy", strategy, "configure", modules)
    if not launched.prepared:
        yield Change("launch.prepared", True, "configure")
    if launched.by_tag:
        yield Change("launch.by_tag", False, "configure")
    if not launched.shared_hold:
        yield Change("launch.shared_hold", True, "configure")
    if scenario.node.loops_in_use + (1 if launched.shared_hold else launched.tasks) > scenario.node.max_loop:
        yield Change("node.max_loop", scenario.node.loops_in_use + launched.tasks, "configure")
    if not scenario.node.plan_cached and launched.strategy != "none":
        yield Change("node.plan_cached", True, "configure")
    for stripes in (4, files.data_servers):
        if files.stripes < stripes <= files.data_servers:
            yield Change("filesystem.stripes", stripes, "configure")
    if scenario.slurm.prolog_slots:
        yield Change("slurm.prolog_slots", 0, "configure")
    yield Change("slurm.tree_width", scenario.slurm.tree_width * 2, "configure")
    yield Change("gateway.threads", scenario.gateway.threads * 2, "configure")
    if scenario.imports.files and scenario.imports.source != "image" and launched.strategy != "none":
        yield Change("imports.source", "image", "configure")
    if scenario.imports.files and scenario.imports.source != "node-cache":
        yield Change("imports.source", "node-cache", "configure")
    for key, factor in _IMPROVE:
        section, _, name = key.partition(".")
        value = getattr(getattr(scenario, section), name)
        if value:
            yield Change(key, type(value)(value * factor), "improve")


def advise(
    scenario: Scenario, nodes: int | None = None, seed: int = 0, progress: Callable[[int, int], None] | None = None
) -> tuple[Launch, list[Effect]]:
    """The launch as it is, and the effect of every change, the best first. `progress` hears (done, of)."""
    scenario = launch.at_size(scenario, nodes)
    before = launch.simulate(scenario, seed=seed)
    effects = []
    tried = list(changes(scenario))
    for number, change in enumerate(tried):
        if progress:
            progress(number, len(tried))
        try:
            after = launch.simulate(change.applied(scenario), seed=seed)
        except ScenarioInvalid:
            continue  # this site cannot be changed so: its configuration forbids it
        effects.append(Effect(change, before.last_task, after.last_task, before.failed_tasks, after.failed_tasks))
    if progress:
        progress(len(tried), len(tried))
    return before, sorted(effects, key=lambda e: (e.failed_after, float("inf") if e.after is None else e.after))


def limit(effects: list[Effect]) -> Effect | None:
    """The figure that limits the launch: of those that can be improved, the one that helps most (5% at least)."""
    helps = [e for e in effects if e.change.kind == "improve" and e.gain >= 0.05 and e.failed_after <= e.failed_before]
    return max(helps, key=lambda e: e.gain) if helps else None


def rescue(effects: list[Effect]) -> Effect | None:
    """The change that lets the most tasks get up that fail now; None when nothing fails or no change helps."""
    helps = [e for e in effects if e.failed_after < e.failed_before]
    return helps[0] if helps else None
