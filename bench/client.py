"""What a user waits for at the prompt: `shifterimg lookup` against a running site, held against Python's own start.

Measured as an unprivileged user, in turn with an interpreter that does nothing, so that a ratio means the same on a busy
machine. The original client, in C, took 22 ms on the machine where this was planned.
"""

import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

from bench import Measured, row
from sim import busybox_image
from sim.site import Site

ROUNDS = int(os.environ.get("SHIFTER_BENCH_ROUNDS", "100")) // 2
NOBODY = 65534


@row("shifterimg.lookup", unit="ms", goal=2.5, against="python3 -IS -c pass", better="less")
def lookup() -> Measured:
    """A look-up by tag: start, munge, one request, one line."""
    directory = Path(tempfile.mkdtemp(prefix="shifter-bench-", dir="/tmp"))
    directory.chmod(0o755)
    try:
        with Site.up(directory / "site") as site:
            busybox_image.write(site.directory / "oci")
            site.push(f"{site.directory}/oci:latest", "busybox:1")
            site.run_as(NOBODY, ["shifterimg", "pull", "busybox:1"]).check_returncode()
            environment = {**site.environment(), "PATH": f"{site.bin}:/usr/bin:/bin"}
            times: dict[str, list[float]] = {"asked": [], "nothing": []}
            for _ in range(ROUNDS):
                times["asked"].append(_run([f"{site.bin}/shifterimg", "lookup", "busybox:1"], environment))
                times["nothing"].append(_run(["/usr/bin/python3", "-IS", "-c", "pass"], environment))
    finally:
        shutil.rmtree(directory)
    asked, nothing = (sorted(found)[len(found) // 4] for found in times.values())
    return Measured(asked * 1000, asked / nothing)


def _run(command: list[str], environment: dict[str, str]) -> float:
    begin = time.perf_counter()
    subprocess.run(
        command, env=environment, user=NOBODY, group=NOBODY, extra_groups=[], check=True, capture_output=True
    )
    return time.perf_counter() - begin
