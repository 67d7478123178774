"""Which parameter limits a launch, and what a change would bring: each change is tried by a simulation of its own.

Three kinds: what a site can configure today, what it would have to buy or rebuild (a figure twice as good), and what
comes by itself when nodes start the same again. The answer is the time to the last task with the change against that
without it, same seed, so the difference is the change's and not chance's. What limits the launch is told twice: as it
is, and with the best that the site can configure, since a limit that goes with a line of configuration is not to be bought
away.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from sim import launch
from sim.parameters import STRATEGIES, Scenario
from sim.result import Launch
from sim.scenario import ScenarioInvalid, replaced


@dataclass(frozen=True)
class Change:
    """One change of one parameter. kind: "configure", "improve" or "again"; `also`: what has to be set with it (key, value)."""

    key: str
    value: Any
    kind: str
    also: tuple[tuple[str, Any], ...] = ()
    factor: float = 1.0  # of the old value, for what is to be improved

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


@dataclass(frozen=True)
class Advice:
    """The launch as it is, the effect of every change, the best first, and the seconds to the last task with both the best
    that the site can configure and what would better its limit most (None: there are not both, or no task gets up).
    `faultless` is the launch without the scenario's faults; None where it has none."""

    before: Launch
    effects: tuple[Effect, ...]
    together: float | None
    faultless: Launch | None

    @property
    def limit(self) -> Effect | None:
        """The figure that limits the launch: of those that can be improved, the one that helps most (WORTH at least)."""
        return self._most("improve")

    @property
    def best(self) -> Effect | None:
        """What the site can configure to start sooner (by WORTH at least); no more tasks fail than do now."""
        return self._most("configure")

    @property
    def again(self) -> Effect | None:
        """What comes by itself when the nodes start the same once more."""
        return self._most("again")

    @property
    def rescue(self) -> Effect | None:
        """The change that lets the most tasks get up that fail now; None when nothing fails or no change helps."""
        helps = [e for e in self.effects if e.failed_after < e.failed_before]
        return helps[0] if helps else None

    def _most(self, kind: str) -> Effect | None:
        helps = [
            e for e in self.effects if e.change.kind == kind and e.gain >= WORTH and e.failed_after <= e.failed_before
        ]
        return max(helps, key=lambda e: round(e.gain, 3)) if helps else None


#: The part of the time that a change has to save to be spoken of.
WORTH = 0.05
#: The smallest stripe that file systems lay a file out in, bytes.
SMALLEST_STRIPE = 64 * 1024
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
    launched = scenario.launch
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
        yield Change("node.plan_cached", True, "again")
    if launched.strategy != "none":
        yield from _layouts(scenario)
    if scenario.slurm.prolog_slots:
        yield Change("slurm.prolog_slots", 0, "configure")
    yield Change("slurm.tree_width", scenario.slurm.tree_width * 2, "configure")
    if launched.strategy != "none" and (launched.by_tag or launched.jobs > 1):  # else it is asked once
        yield Change("gateway.threads", scenario.gateway.threads * 2, "configure")
    if scenario.imports.files and scenario.imports.source != "image" and launched.strategy != "none":
        yield Change("imports.source", "image", "configure")
    if scenario.imports.files and scenario.imports.source != "node-cache":
        yield Change("imports.source", "node-cache", "configure")
    for key, factor in _IMPROVE:
        section, _, name = key.partition(".")
        value = getattr(getattr(scenario, section), name)
        if value:
            yield Change(key, type(value)(value * factor), "improve", factor=factor)


def _layouts(scenario: Scenario) -> Iterator[Change]:
    """How an image file can lie on the data servers: over more of them, and in stripes small enough that what a start reads
    reaches all of these."""
    files, image = scenario.filesystem, scenario.image
    read = image.mount_read_bytes + image.exec_read_bytes
    if scenario.launch.strategy in ("broadcast", "node-cache"):
        read = image.bytes
    elif scenario.imports.files and scenario.imports.source == "image":
        read += scenario.imports.bytes

    def fitting(stripes: int) -> int:
        size = files.read_bytes
        while size > SMALLEST_STRIPE and read < stripes * size:
            size //= 2
        return size

    if fitting(files.stripes) < files.read_bytes:
        yield Change("filesystem.read_bytes", fitting(files.stripes), "configure")
    for stripes in (4, files.data_servers):
        if files.stripes < stripes <= files.data_servers:
            size = fitting(stripes)
            also = (("filesystem.read_bytes", size),) if size < files.read_bytes else ()
            yield Change("filesystem.stripes", stripes, "configure", also)


def advise(
    scenario: Scenario, nodes: int | None = None, seed: int = 0, progress: Callable[[int, int], None] | None = None
) -> Advice:
    """The launch as it is, and the effect of every change. `progress` hears (done, of)."""
    scenario = launch.at_size(scenario, nodes)
    before = launch.simulate(scenario, seed=seed)
    effects = []
    tried = list(changes(scenario))
    for number, change in enumerate(tried):
        if progress:
            progress(number, len(tried) + 1)
        try:
            after = launch.simulate(change.applied(scenario), seed=seed)
        except ScenarioInvalid:
            continue  # this site cannot be changed so: its configuration forbids it
        effects.append(Effect(change, before.last_task, after.last_task, before.failed_tasks, after.failed_tasks))
    # times that are shown alike keep the order of `changes`: the plainer comes first
    effects.sort(key=lambda e: (e.failed_after, float("inf" if e.after is None else f"{e.after:.3g}")))
    faultless = launch.simulate(replace(scenario, faults=()), seed=seed) if scenario.faults else None
    advice = Advice(before, tuple(effects), None, faultless)
    if advice.best and advice.limit:
        both = launch.simulate(advice.limit.change.applied(advice.best.change.applied(scenario)), seed=seed)
        advice = replace(advice, together=both.last_task)
    if progress:
        progress(len(tried) + 1, len(tried) + 1)
    return advice
