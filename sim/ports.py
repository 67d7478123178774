"""Free TCP ports for several sites and test processes at once, without two of them getting the same one.

The usual trick (bind port 0, close, hand the number on) has a race: between close and use anyone may take it. Here a
port is reserved by binding an abstract Unix socket that bears its number: the kernel gives a name to one process only
and frees it when that process ends, however it ends. The numbers lie below the range from which the kernel takes local
ports of outgoing connections, so no client socket takes one either. A program that does not ask here may still bind a
reserved port: whoever starts a server tries again with another one (`sim.site` does).
"""

import random
import socket
from pathlib import Path
from types import TracebackType
from typing import Self

LOWEST = 15000
EPHEMERAL_RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")


class NoFreePort(Exception):
    """Every port of the range is reserved or in use."""


class Port:
    """A reserved port; `number` is ours among all who reserve here until `release`, or the end of the process."""

    def __init__(self, number: int, holder: socket.socket) -> None:
        self.number = number
        self._holder = holder

    def release(self) -> None:
        """Give the number back; may be called twice."""
        self._holder.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


def reserve(wanted: int | None = None) -> Port:
    """Reserve a free port of 127.0.0.1: `wanted` if it is free, else any other. Raises NoFreePort."""
    highest = int(EPHEMERAL_RANGE.read_text().split()[0]) - 1
    if highest <= LOWEST + 100:
        highest = 65535
    numbers = random.sample(range(LOWEST, highest + 1), k=min(500, highest + 1 - LOWEST))
    for number in ([wanted] if wanted else []) + numbers:
        holder = socket.socket(socket.AF_UNIX)
        try:
            holder.bind(f"\0shifter-port-{number}")
            _try_bind(number)
        except OSError:
            holder.close()
            continue
        return Port(number, holder)
    raise NoFreePort(f"no free port between {LOWEST} and {highest}: end some servers (`ss -tlnp` shows them)")


def _try_bind(number: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(("127.0.0.1", number))
