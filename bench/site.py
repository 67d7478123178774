"""How long a person waits for a site, and for the main job on it."""

import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bench import Measured, row
from sim.site import Site


@row("site.up", unit="s", goal=2.0, better="less")
def up() -> Measured:
    """`site up` in an empty directory until everything serves; the median of three."""
    seconds = []
    for _ in range(3):
        directory = Path(tempfile.mkdtemp(prefix="shifter-bench-", dir="/tmp"))
        directory.chmod(0o755)
        try:
            started = time.perf_counter()
            with Site.up(directory):
                seconds.append(time.perf_counter() - started)
        finally:
            shutil.rmtree(directory)
    return Measured(sorted(seconds)[1])


@row("site.run", unit="s", goal=15.0, better="less")
def run() -> Measured:
    """The whole demonstration, as `make run` does it: site, image, push, pull, three containers, history, down."""
    done = subprocess.run([sys.executable, "-m", "sim.cli", "demo"], capture_output=True, text=True, check=True)
    found = re.search(r"^done in ([0-9.]+) s$", done.stdout, re.MULTILINE)
    if not found:
        raise ValueError("the demonstration did not say how long it took")
    return Measured(float(found[1]))
