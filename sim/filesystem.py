"""Where bytes come from: the parallel file system's metadata and data servers, and a node's own storage.

Every method is a simulation process that ends when the caller has what it asked for. A file's blocks lie round
robin on `stripes` data servers from one chosen by the file's name; the first reader of a block waits for the disk,
later ones for the server's cache. What a node has read stays in its page cache (`Kernel.cached`), which the callers
look after.
"""

from __future__ import annotations

import zlib

import simpy

from sim.parameters import Scenario
from sim.station import Process, Station, Window


class Filesystem:
    """The stations of one parallel file system, and the local storage of each node."""

    def __init__(
        self, environment: simpy.Environment, scenario: Scenario, station: type[Station], stalls: tuple[Window, ...]
    ) -> None:
        p = scenario.filesystem
        self.environment = environment
        self.parameters = p
        self.network = scenario.network
        self.local = scenario.local
        self.pieces = scenario.imports.rounds if station is Station else 0  # 0: every request by itself
        self.metadata = station(environment, "metadata server", p.metadata_threads, stalls)
        self.data = [station(environment, f"data server {i}") for i in range(p.data_servers)]
        self.opens = 0
        self._read: set[tuple[str, int]] = set()

    def operations(self, count: int, seconds: float = 0.0) -> Process:
        """`count` metadata operations, sent together; `seconds` of lock time on top of the server's work."""
        p = self.parameters
        yield from self.metadata.visit(count / p.metadata_rate + seconds, count)
        yield self.environment.timeout(p.metadata_latency + 2 * self.network.latency)

    def open(self) -> Process:
        """A file of the parallel file system is opened by its path."""
        self.opens += 1
        yield from self.operations(self.parameters.open_operations, self.parameters.shared_directory_seconds)

    def paced(self, operations: int, clients: int) -> Process:
        """`operations` one after the other by each of `clients` on a node, each waiting for its answer.

        The time is what the queue makes of it, and at least what one client needs alone.
        """
        p = self.parameters
        began = self.environment.now
        yield from self.metadata.visit(operations * clients / p.metadata_rate, operations * clients)
        alone = operations * (1 / p.metadata_rate + p.metadata_latency + 2 * self.network.latency)
        left = began + alone - self.environment.now
        if left > 0:
            yield self.environment.timeout(left)

    def read(self, file: str, size: int, offset: int = 0) -> Process:
        """`size` bytes of a file from `offset` on, in requests of `read_bytes`, one after the other."""
        p = self.parameters
        first = zlib.crc32(file.encode()) % p.data_servers
        requests = -(-size // p.read_bytes)
        at = offset // p.read_bytes
        together = max(1, -(-requests // self.pieces)) if self.pieces else 1
        done = 0
        while done < requests:
            count = min(together, requests - done)
            length = min(count * p.read_bytes, size - done * p.read_bytes)
            block = (at + done) // together
            server = (first + block % p.stripes) % p.data_servers
            cold = (file, at + done) not in self._read
            self._read.add((file, at + done))
            rate = p.disk_bandwidth if cold else p.data_bandwidth
            yield from self.data[server].visit(length / rate, count, length)
            yield self.environment.timeout(
                count * (p.data_latency + 2 * self.network.latency) + length / self.network.node_bandwidth
            )
            done += count

    def small_reads(self, file: str, number: int, size: int, index: int) -> Process:
        """`number` small files of `size` bytes together: the piece `index` of a big set, on one data server each."""
        p = self.parameters
        key = (file, index)
        rate = p.data_bandwidth if key in self._read else p.disk_bandwidth
        self._read.add(key)
        server = (zlib.crc32(file.encode()) + index) % p.data_servers
        yield from self.data[server].visit(size / rate, number, size)
        yield self.environment.timeout(
            number * (p.data_latency + 2 * self.network.latency) + size / self.network.node_bandwidth
        )

    def local_read(self, size: int, requests: int = 1) -> Process:
        """Bytes from the node's own storage."""
        yield self.environment.timeout(requests * self.local.latency + size / self.local.read_bandwidth)

    def copy_to_node(self, file: str, size: int) -> Process:
        """A whole file onto the node's own storage, written while it is read."""
        began = self.environment.now
        yield from self.open()
        yield from self.read(file, size)
        left = began + size / self.local.write_bandwidth - self.environment.now
        if left > 0:
            yield self.environment.timeout(left)

    def stations(self) -> list[Station]:
        """Every station of the file system."""
        return [self.metadata, *self.data]
