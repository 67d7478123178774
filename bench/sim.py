"""Simulated launches: how long the simulation itself takes, and how far it is from what is measured."""

import subprocess
import sys
import tempfile
from pathlib import Path

from bench import Measured, row
from sim import emulation, validate

#: A run of its own, so that its memory is its own: prints seconds and MiB.
RUN = """
import resource, sys, time
from sim import launch, scenario
began = time.process_time()  # one thread that waits for nothing: its CPU is its time on a machine that does nothing else
outcome = launch.simulate(scenario.load("centre-10000"), int(sys.argv[1]))
seconds = time.process_time() - began
assert outcome.ready_tasks == int(sys.argv[1]) * 64
print(seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""


def simulate(nodes: int) -> tuple[float, float]:
    """Seconds and MiB of a launch of 64 tasks a node in a new process."""
    out = subprocess.run([sys.executable, "-c", RUN, str(nodes)], check=True, capture_output=True, text=True).stdout
    seconds, mebibytes = out.split()
    return float(seconds), float(mebibytes)


@row("sim.10k", unit="s", goal=10, better="less")
def ten_thousand() -> Measured:
    """10,000 nodes x 64 tasks x the full plan; a run above 2 GiB is no result."""
    seconds, mebibytes = simulate(10_000)
    if mebibytes > 2048:
        raise RuntimeError(f"sim.10k took {mebibytes:.0f} MiB: more than 2 GiB")
    return Measured(seconds)


@row("sim.100k", unit="s", goal=120, better="less")
def hundred_thousand() -> Measured:
    """100,000 nodes x 64 tasks x the full plan."""
    return Measured(simulate(100_000)[0])


@row("sim.linear", unit="s/s", goal=1.5, better="less")
def linear() -> Measured:
    """Ten times the nodes against ten times the time: 1 is linear in nodes."""
    small, large = simulate(4_000)[0], simulate(40_000)[0]
    return Measured(large / (10 * small))


@row("sim.validate", unit="ratio", goal=0.15, better="less")
def validation() -> Measured:
    """Median error of predicted against measured launches on 1 to 64 emulated nodes, in one run on this machine."""
    directory = Path(tempfile.mkdtemp(prefix="shifter-bench-", dir="/tmp"))
    directory.chmod(0o755)
    try:
        with emulation.workbench(directory / "bench", max(validate.NODES)) as bench:
            return Measured(validate.validate(bench).median_error)
    finally:
        directory.rmdir()
