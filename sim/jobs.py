"""A job's way through the machine: submission, allocation, prolog, step launch, tasks, epilog."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import Any

import numpy as np
import simpy

from sim.draws import Floats
from sim.fanout import broadcast_seconds, message_times
from sim.gateway import LookupFailed
from sim.kernel import Kernel, StartFailed
from sim.machine import Machine
from sim.record import JobRecord
from sim.starts import NodeCrashed, Starts, undo_mounts
from sim.station import Process


@dataclass(frozen=True)
class JobSpec:
    """What a user submits: when (seconds), as whom, and which image. `pull` asks the gateway to pull first."""

    at: float
    user: int
    reference: str
    pull: bool = False


class Job:
    """One job on the machine. `index` is its number, its rows in the record start at index * nodes."""

    def __init__(self, machine: Machine, index: int, spec: JobSpec) -> None:
        self.machine = machine
        self.environment = machine.environment
        self.scenario = machine.scenario
        self.spec = spec
        self.index = index
        count = self.scenario.launch.nodes
        self.count = count
        self.record = JobRecord(index, index * count, count, spec.at)
        machine.record.jobs.append(self.record)
        sigma = self.scenario.node.jitter
        self.node_factors = machine.draws.spread("nodes", sigma, (count, 4), index)
        self.task_factors = machine.draws.spread("tasks", sigma, (count, self.scenario.launch.tasks), index)
        self.step = self.environment.event()
        self.prologs_left = count
        self.all_prologs = self.environment.event()
        self.kernels: list[Kernel] = []
        self.speeds: Floats = np.ones(count)

    def run(self) -> Process:
        """The whole job."""
        yield self.environment.timeout(self.spec.at)
        self.record.submitted = self.environment.now
        tasks = self.count * self.scenario.launch.tasks
        try:
            identifier = yield from self._look_up()
        except LookupFailed as failed:
            self.record.failure = str(failed)
            self.machine.record.fail(str(failed), tasks)
            self.machine.over = self.environment.now
            return
        self.record.identifier = identifier
        self.record.looked_up = self.environment.now
        yield from self.machine.controller.visit(self.scenario.slurm.submit_seconds)
        yield from self._allocate()
        if self.scenario.launch.strategy == "broadcast":
            yield from self._broadcast(identifier)
        offsets = message_times(self.scenario, self.speeds)
        nodes = [
            self.machine.start(self._node(i, self.environment.now + float(offsets[i]), identifier))
            for i in range(self.count)
        ]
        if self.scenario.slurm.poll_seconds:
            self.machine.start(self._poll())
        yield self.environment.all_of(nodes)
        self.record.ended = self.environment.now
        yield self.environment.timeout(self.scenario.launch.run_seconds)
        offsets = message_times(self.scenario, self.speeds)
        ends = [
            self.machine.start(self._epilog(i, self.environment.now + float(offsets[i]), identifier))
            for i in range(self.count)
        ]
        yield self.environment.all_of(ends)
        self.machine.over = self.environment.now

    def _look_up(self) -> Generator[simpy.Event, Any, str]:
        """What happens at submission: one look-up for the whole job, or none when each start asks for itself."""
        gateway, spec = self.machine.gateway, self.spec
        if self.scenario.launch.strategy == "none":
            return ""
        if spec.pull:
            yield from gateway.pull(spec.user, spec.reference, self.index)
        if self.scenario.launch.by_tag:
            return spec.reference
        return (yield from gateway.lookup(spec.user, spec.reference, self.index, self.machine.struck.submit_skew))

    def _allocate(self) -> Process:
        with self.machine.scheduler.request() as turn:  # one job at a time collects nodes: first come, first served
            yield turn
            while len(self.machine.free) < self.count:
                yield self.machine.returned
            self.kernels = [self.machine.kernels[self.machine.free.popleft()] for _ in range(self.count)]
        self.kernels.sort(key=lambda kernel: kernel.index)
        self.speeds = np.array([kernel.speed for kernel in self.kernels])
        self.record.allocated = self.environment.now

    def _broadcast(self, identifier: str) -> Process:
        """One node reads the image, the tree brings it to the others."""
        if all(identifier in kernel.copies for kernel in self.kernels):
            return
        size = self.scenario.image.bytes
        yield from self.machine.filesystem.open()
        yield from self.machine.filesystem.read(identifier, size)
        yield self.environment.timeout(broadcast_seconds(self.scenario, self.count, size))
        for kernel in self.kernels:
            kernel.copies.add(identifier)

    def _node(self, index: int, at: float, identifier: str) -> Process:
        environment, record, row = self.environment, self.machine.record, self.record.rows + index
        kernel = self.kernels[index]
        kernel.begin_job()
        yield environment.timeout(at - environment.now)
        record.prolog_begin[row] = environment.now
        starts = Starts(
            self.machine,
            kernel,
            row,
            self.task_factors[index] * kernel.speed,
            identifier,
            self.spec.user,
            self.spec.reference,
        )
        crash_at = float(self.machine.struck.crash_at[kernel.index])
        if np.isfinite(crash_at) and crash_at >= environment.now:
            self.machine.start(self._crash(starts, crash_at))
        elif np.isfinite(crash_at) and kernel.jobs == 1:
            starts.stop()  # it was gone before its first job came, which is the one to find out
        try:
            yield from self._prolog(index, row, starts)
            yield from self._launch_step(index, row)
            stands = yield from starts.run()
            if not stands:
                raise NodeCrashed
        except NodeCrashed:
            self._lost(index, row, kernel)
        except StartFailed as failed:
            record.fail(str(failed), self.scenario.launch.tasks)
            self._prolog_over(index)

    def _prolog(self, index: int, row: int, starts: Starts) -> Process:
        factor = float(self.node_factors[index, 0]) * self.kernels[index].speed
        if self.machine.prologs is None:
            yield from self._prolog_body(starts, factor)
        else:
            with self.machine.prologs.request() as slot:
                yield slot
                yield from self._prolog_body(starts, factor)
        self.machine.record.prolog_end[row] = self.environment.now
        self.machine.start(self.machine.controller.visit(self.scenario.slurm.controller_message_seconds))
        self._prolog_over(index)

    def _prolog_body(self, starts: Starts, factor: float) -> Process:
        prepares = self.scenario.launch.prepared and self.scenario.launch.strategy != "none"
        seconds = self.scenario.slurm.prolog_seconds + (self.scenario.slurm.prepare_seconds if prepares else 0.0)
        yield from self._node_cpu(seconds * factor)
        try:
            if prepares:
                yield from starts.prepare(factor)
            if starts.crashed.triggered:
                raise NodeCrashed
        except NodeCrashed:
            self.machine.record.fail("node crashed", self.scenario.launch.tasks)
            raise

    def _prolog_over(self, index: int) -> None:
        """A node's prolog ended, well or not: the batch script starts with the first node's."""
        self.prologs_left -= 1
        if self.prologs_left == 0 and not self.all_prologs.triggered:
            self.all_prologs.succeed()
        if index == 0 and not self.step.triggered and not self.scenario.slurm.poll_seconds:
            self.machine.start(self._create_step())

    def _poll(self) -> Process:
        """An srun that made the allocation itself asks whether all nodes are ready, ever more rarely."""
        asked = 0
        while self.prologs_left:
            asked += 1
            yield self.environment.timeout(asked * self.scenario.slurm.poll_seconds)
        yield from self._create_step()

    def _create_step(self) -> Process:
        """The batch script on the first node runs srun: one message to the controller, then the tree."""
        if self.scenario.slurm.wait_for_all and not self.all_prologs.triggered:
            yield self.all_prologs
        yield from self.machine.controller.visit(self.scenario.slurm.submit_seconds)
        self.record.step = self.environment.now
        if not self.step.triggered:
            self.step.succeed(message_times(self.scenario, self.speeds) + self.environment.now)

    def _launch_step(self, index: int, row: int) -> Process:
        times = yield self.step
        left = float(times[index]) - self.environment.now
        if left > 0:
            yield self.environment.timeout(left)
        self.machine.record.message[row] = self.environment.now
        factor = float(self.node_factors[index, 1]) * self.kernels[index].speed
        if self.scenario.slurm.step_seconds:
            yield from self._node_cpu(self.scenario.slurm.step_seconds * factor)
        yield from self._node_cpu(self.scenario.slurm.stepd_seconds * factor)
        self.machine.record.stepd_end[row] = self.environment.now

    def _node_cpu(self, seconds: float) -> Process:
        """CPU of the node's own daemons: on a machine that emulates all nodes it queues for the same cores."""
        cores = self.machine.shared_cores
        if cores is None:
            yield self.environment.timeout(seconds)
            return
        with cores.request() as core:
            yield core
            yield self.environment.timeout(seconds)

    def _crash(self, starts: Starts, at: float) -> Process:
        yield self.environment.timeout(at - self.environment.now)
        starts.stop()

    def _lost(self, index: int, row: int, kernel: Kernel) -> None:
        kernel.crash()
        self.machine.record.crashed_nodes += 1
        if np.isnan(self.machine.record.prolog_end[row]):
            self._prolog_over(index)

    def _epilog(self, index: int, at: float, identifier: str) -> Process:
        environment, record, row = self.environment, self.machine.record, self.record.rows + index
        kernel, p = self.kernels[index], self.scenario.slurm
        yield environment.timeout(at - environment.now)
        record.epilog_begin[row] = environment.now
        factor = float(self.node_factors[index, 2]) * kernel.speed
        seconds = p.epilog_seconds
        if not kernel.crashed:
            seconds += undo_mounts(self.machine, kernel)
            if identifier in kernel.holds:
                seconds += self.scenario.node.unmount_seconds
        yield from self._node_cpu(seconds * factor)
        if not kernel.crashed and identifier in kernel.holds:
            kernel.drop(identifier)
        record.epilog_end[row] = environment.now
        yield from self.machine.controller.visit(p.controller_message_seconds)
        self.machine.give_back(kernel.index)
