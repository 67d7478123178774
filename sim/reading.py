"""What a start reads: the image when it is mounted, the command and its libraries, an interpreter's modules.

On each node the first task (the leader) reads what is cold; the others wait for the pages that it reads. These
processes are the leader's.
"""

from __future__ import annotations

import simpy

from sim.kernel import Kernel, StartFailed
from sim.machine import Machine
from sim.station import Process


class Reading:
    """The reads of one node for one image (its identifier names the file)."""

    def __init__(self, machine: Machine, kernel: Kernel, image: str, corrupt: bool) -> None:
        self.machine = machine
        self.kernel = kernel
        self.image = image
        self.corrupt = corrupt
        self.scenario = machine.scenario
        self.files = machine.filesystem
        self.strategy = self.scenario.launch.strategy
        self.local = self.strategy in ("broadcast", "node-cache")
        #: whether a program's files are opened one by one on the parallel file system
        self.scattered = self.strategy in ("unpacked", "none")
        source = self.scenario.imports.source
        self.source = "filesystem" if self.scattered and source == "image" else source

    def open_image(self) -> Process:
        """The image (or the directory it was unpacked to) is opened and its tables read. Raises StartFailed."""
        if self.strategy == "node-cache" and self.image not in self.kernel.copies:
            yield from self.files.copy_to_node(self.image, self.scenario.image.bytes)
            self.kernel.copies.add(self.image)
        if self.corrupt:
            raise StartFailed("image object is corrupt: the mount finds no valid superblock")
        if self.local:
            yield from self.files.local_read(self.scenario.image.mount_read_bytes)
            return
        yield from self.files.open()
        if not self.scattered:
            yield from self.files.read(self.image, self.scenario.image.mount_read_bytes)

    def command(self, speed: float) -> Process:
        """The command and its libraries, if this node has not read them before."""
        image = self.scenario.image
        if self.image in self.kernel.cached:
            return
        if self.scattered:
            yield from self.files.paced(image.exec_files * self.scenario.filesystem.open_operations, 1)
            size = round(image.exec_read_bytes * image.unpacked_bytes / max(1, image.bytes))
            yield from self.files.read(self.image + "/command", size)
        else:
            if self.local:
                requests = -(-image.exec_read_bytes // self.scenario.filesystem.read_bytes)
                yield from self.files.local_read(image.exec_read_bytes, requests)
            else:
                yield from self.files.read(self.image, image.exec_read_bytes, image.mount_read_bytes)
            yield self._cpu(self.decompress_seconds * speed)
        self.kernel.cached.add(self.image)

    @property
    def decompress_seconds(self) -> float:
        """CPU seconds that the command costs in a mount that has never been read."""
        return self.scenario.image.exec_read_bytes / self.scenario.image.decompress_rate

    @property
    def import_seconds(self) -> float:
        """CPU seconds of all modules in one task, everything cached."""
        return self.scenario.imports.files * self.scenario.imports.cpu_seconds

    def modules(self, speed: float, clients: int) -> Process:
        """The modules of an interpreter as the leader reads them, its own CPU included."""
        p = self.scenario.imports
        key = f"{self.image}/modules"
        cpu = p.cpu_seconds * speed
        if key in self.kernel.cached and self.source != "filesystem":
            yield self._cpu(p.files * cpu)
            return
        if self.source == "image":
            yield from self._from_image(cpu, speed)
        elif self.source == "node-cache":
            if key not in self.kernel.copies:
                yield from self.files.copy_to_node(key, p.bytes)
                self.kernel.copies.add(key)
            yield from self.files.local_read(p.bytes, p.files)
            yield self._cpu(p.files * cpu)
        else:
            yield from self._from_filesystem(cpu, clients, key in self.kernel.cached)
        self.kernel.cached.add(key)

    def _from_image(self, cpu: float, speed: float) -> Process:
        p, image = self.scenario.imports, self.scenario.image
        if self.local:
            yield from self.files.local_read(p.bytes, -(-p.bytes // self.scenario.filesystem.read_bytes))
        else:
            yield from self.files.read(self.image, p.bytes, image.mount_read_bytes + image.exec_read_bytes)
        yield self._cpu(p.bytes / image.decompress_rate * speed + p.files * cpu)

    def _from_filesystem(self, cpu: float, clients: int, known: bool) -> Process:
        p = self.scenario.imports
        cache = self.scenario.filesystem.client_cache
        pieces = p.files if self.machine.stepwise else min(p.rounds, p.files)
        done = 0
        for piece in range(pieces):
            number = (piece + 1) * p.files // pieces - done
            if not (known and cache):
                yield from self.files.paced(number * p.operations, 1 if cache else clients)
            if not known:
                size = p.bytes * number // p.files
                yield from self.files.small_reads("modules", number, size, piece)
            yield self._cpu(number * cpu)
            done += number

    def _cpu(self, seconds: float) -> simpy.Event:
        return self.machine.environment.timeout(seconds)
