"""Rows of the store: how fast names are computed, and how much a put costs beside a plain copy that waits for the disk."""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from bench import Measured, row
from cas.store import Store


def best(work: Callable[[], object], times: int = 3) -> float:
    """Seconds of the fastest run."""
    found = []
    for _ in range(times):
        started = time.perf_counter()
        work()
        found.append(time.perf_counter() - started)
    return min(found)


def noise(path: Path, size: int) -> None:
    block = os.urandom(16 << 20)
    with path.open("wb") as file:
        for _ in range(size // len(block)):
            file.write(block)


@row("fasthash", unit="GB/s", goal=0.9, against="b3sum")
def fasthash() -> Measured:
    """Both commands, from start to end, on a cached file of 2 GiB."""
    size = 2 << 30
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "file"
        noise(path, size)
        ours = [str(Path(__file__).parent.parent / ".venv/bin/fasthash"), str(path)]
        theirs = ["b3sum", str(path)]
        for command in (ours, theirs):
            subprocess.run(command, check=True, capture_output=True)
        mine, other = float("inf"), float("inf")
        for _ in range(4):  # in turn: a noisy machine is noisy for both
            mine = min(mine, best(lambda: subprocess.run(ours, check=True, capture_output=True), 1))
            other = min(other, best(lambda: subprocess.run(theirs, check=True, capture_output=True), 1))
    return Measured(size / mine / 1e9, other / mine)


@row("store.put", unit="MB/s", goal=0.8, against="cp + fsync")
def store_put() -> Measured:
    """A file of 512 MiB into the store: copied, hashed both ways, durable."""
    size = 512 << 20
    with tempfile.TemporaryDirectory(dir=Path(__file__).parent.parent / "build") as directory:
        source = Path(directory) / "file"
        noise(source, size)
        store = Store(Path(directory) / "store")
        copy = Path(directory) / "copy"
        mine, other = float("inf"), float("inf")
        for _ in range(4):
            started = time.perf_counter()
            name = store.put_file(source).name
            mine = min(mine, time.perf_counter() - started)
            store.delete(name)
            started = time.perf_counter()
            subprocess.run(["cp", "--reflink=never", str(source), str(copy)], check=True)
            fd = os.open(copy, os.O_RDONLY)
            os.fsync(fd)
            os.close(fd)
            other = min(other, time.perf_counter() - started)
            copy.unlink()
    return Measured(size / mine / 1e6, other / mine)
