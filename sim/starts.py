"""The tasks of one node start: each charged with the steps of the real plan, by formula or one by one.

Task 0 is the node's leader: it makes the hold of the image and reads what is cold; the others wait for it, as they
wait for the lock and the pages on a real node. When every task has a core, nobody but the leader meets a shared
server, so the others' times follow from the leader's by arithmetic on arrays (`grouped`). Otherwise, and on nodes
where something goes wrong, each task is a process (`alone`); with `Machine.stepwise` each of its steps is an event.
Tests hold the two ways against each other.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import numpy as np
import simpy

from sim.compiled import Charge
from sim.draws import Floats
from sim.gateway import LookupFailed
from sim.kernel import Kernel, StartFailed
from sim.machine import Machine
from sim.reading import Reading
from sim.station import Process


class NodeCrashed(Exception):
    """The node stopped in the middle of a step."""


class Starts:
    """All starts of one job on one node. `row` is the node's row in the record; `factors` slow each task's CPU."""

    def __init__(
        self,
        machine: Machine,
        kernel: Kernel,
        row: int,
        factors: Floats,
        image: str,
        user: int,
        reference: str,
    ) -> None:
        self.machine = machine
        self.environment = machine.environment
        self.kernel = kernel
        self.row = row
        self.factors = factors
        self.image = image
        self.user = user
        self.reference = reference
        self.launch = machine.scenario.launch
        self.node = machine.scenario.node
        struck = machine.struck
        self.reading = Reading(machine, kernel, image, bool(struck.corrupt[kernel.index]))
        self.special = struck.special(kernel.index)
        self.cores = machine.shared_cores or simpy.Resource(self.environment, self.node.cores)
        self.with_loop = self.launch.strategy in ("squashfs", "broadcast", "node-cache")
        self.mounted = self.launch.strategy != "none"
        self.steps_done = 0
        self.crash_step = self._crash_step()
        self.held = self.environment.event()
        self.warm = self.environment.event()
        self.imported = self.environment.event()
        self.crashed = self.environment.event()
        self.reason = ""
        self.attaching = 0
        self.devices: list[tuple[int, str]] = []

    def _crash_step(self) -> int:
        step = int(self.machine.struck.crash_step[self.kernel.index])
        if step == -2:
            plan = self.machine.priced.played(self.machine.scenario)
            step = int(self.machine.draws.stream("crash step", self.kernel.index).integers(len(plan.steps)))
        return step

    # -- the prolog's part ---------------------------------------------------------------------------------------

    def prepare(self, factor: float) -> Process:
        """setupRoot: the whole plan once, by the node. Raises StartFailed, NodeCrashed."""
        plan = self.machine.priced.prepare
        with self.cores.request() as core:
            yield core
            yield self._cpu(self._opening_seconds() * factor)
            yield from self._charges(plan.before, factor)
            self._mounted(plan.before)
            if plan.image is not None and self.mounted:
                yield from self._hold(plan.image, factor)
                self._mounted((plan.image,))
            yield from self._charges(plan.after, factor)
            self._mounted(plan.after)

    def _mounted(self, charges: tuple[Charge, ...]) -> None:
        for charge in charges:
            if charge.mount:
                self.kernel.mounts.push(charge.text)

    def _opening_seconds(self) -> float:
        """Launcher, namespace, and the planner where no plan is cached yet; it is cached from then on."""
        seconds = self.node.start_seconds + self.node.namespace_seconds
        if not self.kernel.plans:
            seconds += self.node.planner_seconds
        self.kernel.plans = self.machine.priced.kept
        return seconds

    def _hold(self, charge: Charge, factor: float) -> Process:
        if self.image not in self.kernel.holds:
            yield from self.reading.open_image()
            self.kernel.hold(self.image, self.with_loop)
            for _ in range(self._images() - 1):
                self.kernel.opened()
            yield self._cpu(self._mount_seconds() * factor)
        yield from self._charges((charge,), factor)

    def _images(self) -> int:
        """How many image files the plan mounts."""
        return self.machine.priced.played(self.machine.scenario).images

    def _mount_seconds(self) -> float:
        """Attaching and mounting an image file; a directory needs neither."""
        if self.reading.scattered:
            return 0.0
        return self.node.mount_seconds + (self.node.loop_seconds if self.with_loop else 0.0)

    # -- the tasks' part -----------------------------------------------------------------------------------------

    def run(self) -> Generator[simpy.Event, Any, bool]:
        """Starts every task; ends when all are ready or have failed. Returns whether the node still stands."""
        private = not self.launch.prepared and self.mounted
        if (
            not self.machine.stepwise
            and self.machine.shared_cores is None
            and not self.special
            and not self.launch.by_tag
            and self.launch.tasks <= self.node.cores
            and (self.launch.shared_hold or not private)
        ):
            try:
                yield from self._grouped(private)
            except StartFailed as failed:
                self.machine.record.fail(str(failed), self.launch.tasks)
            return True
        return (yield from self._one_by_one(private))

    def _grouped(self, private: bool) -> Process:
        plan, record, row = self.machine.priced.start, self.machine.record, self.row
        now = self.environment.now
        factor = float(self.factors[0])
        started = now + np.arange(self.launch.tasks) * self.machine.scenario.slurm.fork_seconds
        opening = self.node.start_seconds
        if private:
            opening += self.node.namespace_seconds
            planner = 0.0 if self.kernel.plans else self.node.planner_seconds
            kept = self.machine.priced.kept
            cached_from = now + (opening + planner) * factor if kept else np.inf
            first = opening + plan.before_seconds + np.where(started < cached_from, planner, 0.0)
            self.kernel.plans = kept
            yield self._cpu(float(first[0]) * factor)
            if plan.image is not None:
                yield from self._hold(plan.image, factor)
            held = self.environment.now
            after = plan.after_seconds + (plan.image.seconds if plan.image else 0.0)
            environment = np.maximum(started + first * self.factors, held) + after * self.factors
            yield self._cpu(plan.after_seconds * factor)
            environment[0] = self.environment.now
        else:
            seconds = self.node.join_seconds if self.mounted else 0.0
            environment = started + (opening * self.mounted + seconds) * self.factors
            yield self._cpu(environment[0] - now)
        yield from self.reading.command(factor)
        warm = self.environment.now
        execute = plan.execute_seconds
        executed = np.maximum(environment, warm) + execute * self.factors
        yield self._cpu(executed[0] - warm)
        executed[0] = self.environment.now
        ready = executed.copy()
        if self.machine.scenario.imports.files:
            yield from self.reading.modules(factor, self.launch.tasks)
            imported = self.environment.now
            ready = np.maximum(executed + self.reading.import_seconds * self.factors, imported)
            ready[0] = imported
        record.started[row], record.environment[row] = started, environment
        record.executed[row], record.ready[row] = executed, ready
        last = float(ready.max())
        if last > self.environment.now:
            yield self._cpu(last - self.environment.now)

    def _one_by_one(self, private: bool) -> Generator[simpy.Event, Any, bool]:
        tasks = [self.environment.process(self._alone(i, private)) for i in range(self.launch.tasks)]
        yield self.environment.all_of(tasks) | self.crashed
        if self.crashed.triggered:
            for task in tasks:
                if task.is_alive:
                    task.interrupt()
            lost = sum(1 for task in tasks if task.is_alive or task.value is False)
            self.machine.record.fail("node crashed", lost)
            self.devices.clear()  # the kernel that held them is gone
            return False
        for device, holder in self.devices:
            self.kernel.loops.detach(device, holder)
        self.devices.clear()
        return True

    def stop(self) -> None:
        """The node crashes now."""
        if not self.crashed.triggered:
            self.crashed.succeed()

    def _alone(self, index: int, private: bool) -> Generator[simpy.Event, Any, bool]:
        """One task; its value is whether it got ready."""
        try:
            yield from self._task(index, private)
        except (StartFailed, LookupFailed) as failed:
            self.machine.record.fail(str(failed), 1)
            if index == 0:
                self.reason = str(failed)
                for gate in (self.held, self.warm, self.imported):
                    if not gate.triggered:
                        gate.succeed()
            return True  # accounted for
        except NodeCrashed:
            self.stop()
            return False
        except simpy.Interrupt:
            return False
        return True

    def _task(self, index: int, private: bool) -> Process:
        environment, record, row = self.environment, self.machine.record, self.row
        plan, factor, leader = self.machine.priced.start, float(self.factors[index]), index == 0
        yield self._cpu(index * self.machine.scenario.slurm.fork_seconds)
        record.started[row, index] = environment.now
        if self.launch.by_tag:
            identifier = yield from self.machine.gateway.lookup(
                self.user, self.reference, row, float(self.machine.struck.skew[self.kernel.index])
            )
            record.identifiers.setdefault(row, set()).add(identifier)
        core = _Core(self.cores)
        try:
            yield core.take()
            if private:
                yield self._cpu(self._opening_seconds_of(index) * factor)
                yield from self._charges(plan.before, factor, leader)
                if plan.image is not None:
                    yield from self._image(index, plan.image, factor, core)
                yield from self._charges(plan.after, factor, leader)
            elif self.mounted:
                yield self._cpu((self.node.start_seconds + self.node.join_seconds) * factor)
            record.environment[row, index] = environment.now
            if leader:
                yield from self.reading.command(factor)
                self.warm.succeed()
            else:
                yield from self._wait(self.warm, core)
                if private and not self.launch.shared_hold:
                    yield self._cpu(self.reading.decompress_seconds * factor)
            if plan.execute is not None:
                yield from self._charges((plan.execute,), factor, leader)
            record.executed[row, index] = environment.now
            if self.machine.scenario.imports.files:
                yield from self._import(leader, factor, core)
            record.ready[row, index] = environment.now
        finally:
            core.give()

    def _opening_seconds_of(self, index: int) -> float:
        """As the array formula has it: a start plans for itself when it begins before the leader's plan is cached."""
        if index == 0:
            self._planned = not self.kernel.plans
            opening = self.node.start_seconds + self.node.namespace_seconds
            planner = self.node.planner_seconds if self._planned else 0.0
            kept = self.machine.priced.kept
            self._plan_at = (
                self.environment.now + (opening + planner) * float(self.factors[0]) if kept else float("inf")
            )
            self.kernel.plans = kept
        begun = self.machine.record.started[self.row, index]
        late = not self._planned or begun >= self._plan_at
        return self.node.start_seconds + self.node.namespace_seconds + (0.0 if late else self.node.planner_seconds)

    def _image(self, index: int, charge: Charge, factor: float, core: _Core) -> Process:
        if not self.launch.shared_hold:
            yield from self._own_mount(index, charge, factor)
        elif index == 0:
            yield from self._hold(charge, factor)
            self.held.succeed()
        else:
            yield from self._wait(self.held, core)
            yield from self._charges((charge,), factor)

    def _own_mount(self, index: int, charge: Charge, factor: float) -> Process:
        """A loop device and a mount for this start alone: it races with the others for a free device."""
        yield from self.reading.open_image()
        holder = f"row {self.row} task {index}"
        if self.with_loop:
            self.attaching += 1
            lost = self.attaching - 1
            if lost >= self.node.loop_attempts:
                raise StartFailed(f"no loop device after {self.node.loop_attempts} lost races")
            try:
                yield self._cpu(self.node.loop_seconds * factor + lost * self.node.loop_race_seconds)
                self.devices.append((self.kernel.loops.attach(holder), holder))
            finally:
                self.attaching -= 1
        self.kernel.opened()
        yield self._cpu(0.0 if self.reading.scattered else self.node.mount_seconds * factor)
        yield from self._charges((charge,), factor, index == 0)

    def _import(self, leader: bool, factor: float, core: _Core) -> Process:
        if leader:
            yield from self.reading.modules(factor, self.launch.tasks)
            self.imported.succeed()
            return
        yield self._cpu(self.reading.import_seconds * factor)
        yield from self._wait(self.imported, core)

    def _wait(self, gate: simpy.Event, core: _Core) -> Process:
        """Waits for the leader, without a core."""
        if not gate.processed:
            core.give()
            yield gate
            yield core.take()
        if self.reason:
            raise StartFailed(self.reason)

    # -- charging ------------------------------------------------------------------------------------------------

    def _charges(self, charges: tuple[Charge, ...], factor: float, counted: bool = True) -> Process:
        """Steps one by one where each matters (or can crash the node), else together."""
        if not (self.machine.stepwise or (counted and self.crash_step >= 0)):
            yield self._cpu(sum(c.seconds for c in charges) * factor)
            return
        for charge in charges:
            yield self._cpu(charge.seconds * factor)
            if counted:
                if self.steps_done == self.crash_step:
                    raise NodeCrashed
                self.steps_done += 1

    def _cpu(self, seconds: float) -> simpy.Event:
        return self.environment.timeout(max(0.0, seconds))


class _Core:
    """One task's turn on a core, given up while it waits."""

    def __init__(self, cores: simpy.Resource) -> None:
        self._cores = cores
        self._turn: simpy.resources.resource.Request | None = None

    def take(self) -> simpy.resources.resource.Request:
        self._turn = self._cores.request()
        return self._turn

    def give(self) -> None:
        if self._turn is not None:
            if self._turn.triggered:
                self._cores.release(self._turn)
            else:
                self._turn.cancel()
            self._turn = None


def undo_mounts(machine: Machine, kernel: Kernel) -> float:
    """unsetupRoot: the mounts of the prepare plan, the last one first, as far as they were made; returns its CPU
    seconds.

    Raises LawBroken when what is on top is not what the plan says.
    """
    made = len(kernel.mounts.names())
    for mount in reversed(machine.priced.prepare.mounts[:made]):
        kernel.mounts.pop(mount)
    return made * machine.scenario.node.unmount_seconds
