"""Measures single kernel operations of a container start on this machine: binds, tmpfs, overlay, loop devices, mounts.

Run as `python -m sim.probe IMAGE DIRECTORY` as root in a mount namespace of its own (`unshare --mount --propagation
private`), where `steps` starts it; prints one JSON object: operation -> list of seconds. Everything happens on a
tmpfs in DIRECTORY that goes away with the namespace. The system calls are made directly (mount(2), umount2(2), ioctl
LOOP_CONFIGURE of loop(4)), so that no program's start is in the figures.
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import shutil
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

MS_RDONLY, MS_NOSUID, MS_NODEV, MS_REMOUNT, MS_BIND = 1, 2, 4, 32, 4096
MNT_DETACH = 2
LOOP_CTL_GET_FREE, LOOP_CONFIGURE = 0x4C82, 0x4C0A
LO_FLAGS_READ_ONLY, LO_FLAGS_AUTOCLEAR = 1, 4
REPEATS = 200
MOUNTS = 30  # of an image: each costs a loop device


class ProbeFailed(Exception):
    """A measurement could not be made; the text says which and why."""


def steps(image: Path, directory: Path) -> Mapping[str, list[float]]:
    """Seconds of each operation, measured in a namespace of its own, on a tmpfs in `directory`. Raises ProbeFailed."""
    probe = [sys.executable, "-m", "sim.probe", str(image), str(directory)]
    argv = ["unshare", "--mount", "--propagation", "private", *probe]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        last = done.stderr.strip().splitlines()[-1:] or ["no reason given"]
        raise ProbeFailed(f"measuring plan steps: {last[0]} (needs root)")
    found: Mapping[str, list[float]] = json.loads(done.stdout)
    return found


class Kernel:
    """mount(2) and umount2(2)."""

    def __init__(self) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)

    def mount(self, source: str, target: str, kind: str, flags: int, data: str = "") -> None:
        arguments = (source.encode(), target.encode(), kind.encode(), ctypes.c_ulong(flags), data.encode())
        self._check(self._libc.mount(*arguments), f"mount {kind or 'bind'} at {target}")

    def umount(self, target: str) -> None:
        self._check(self._libc.umount2(target.encode(), MNT_DETACH), f"umount {target}")

    def _check(self, result: int, what: str) -> None:
        if result != 0:
            number = ctypes.get_errno()
            raise OSError(number, f"{what}: {os.strerror(number)}")


def timed(operation: Callable[[int], object], repeats: int = REPEATS) -> list[float]:
    """Seconds of each of `repeats` calls with 0, 1, 2 ..."""
    out = []
    for i in range(repeats):
        began = time.perf_counter()
        operation(i)
        out.append(time.perf_counter() - began)
    return out


def attach(image: Path) -> int:
    """A loop device on the image, read-only, gone when its last user is; returns its open descriptor."""
    control = os.open("/dev/loop-control", os.O_RDWR | os.O_CLOEXEC)
    backing = os.open(image, os.O_RDONLY | os.O_CLOEXEC)
    try:
        while True:
            number = fcntl.ioctl(control, LOOP_CTL_GET_FREE)
            device = os.open(f"/dev/loop{number}", os.O_RDONLY | os.O_CLOEXEC)
            # struct loop_config: fd, block_size, struct loop_info64 (lo_flags at byte 52 of it), reserved
            config = bytearray(304)
            struct.pack_into("=II", config, 0, backing, 0)
            struct.pack_into("=I", config, 8 + 52, LO_FLAGS_READ_ONLY | LO_FLAGS_AUTOCLEAR)
            try:
                fcntl.ioctl(device, LOOP_CONFIGURE, bytes(config))
            except BlockingIOError:
                os.close(device)
            except OSError as error:
                os.close(device)
                if error.errno != 16:  # EBUSY: another was quicker; the next free one
                    raise
            else:
                return device
    finally:
        os.close(backing)
        os.close(control)


def measure(image: Path, directory: Path) -> dict[str, list[float]]:
    """All measurements, on a tmpfs of this namespace in `directory`."""
    kernel = Kernel()
    base = tempfile.mkdtemp(prefix="probe-", dir=directory)
    kernel.mount("probe", base, "tmpfs", 0, "mode=755")
    try:
        return dict(_measure(kernel, Path(base), image))
    finally:
        kernel.umount(base)
        Path(base).rmdir()


def _measure(kernel: Kernel, base: Path, image: Path) -> Iterator[tuple[str, list[float]]]:
    for directory in ("source", "lower", "upper", "image"):
        (base / directory).mkdir()
    (base / "file").write_text("x" * 500)
    yield "mkdir", timed(lambda i: (base / f"d{i}").mkdir(0o755))
    yield "symlink", timed(lambda i: (base / f"l{i}").symlink_to("usr/bin"))
    yield "write", timed(lambda i: (base / f"w{i}").write_text("x" * 200))
    yield "copy", timed(lambda i: shutil.copyfile(base / "file", base / f"c{i}"))
    yield "bind", timed(lambda i: kernel.mount(str(base / "source"), str(base / f"d{i}"), "", MS_BIND))
    flags = MS_BIND | MS_REMOUNT | MS_NOSUID | MS_NODEV
    yield "remount", timed(lambda i: kernel.mount("", str(base / f"d{i}"), "", flags))
    yield "unmount", timed(lambda i: kernel.umount(str(base / f"d{i}")))
    yield "tmpfs", timed(lambda i: kernel.mount("tmpfs", str(base / f"d{i}"), "tmpfs", MS_NOSUID))
    for i in range(REPEATS):
        kernel.umount(str(base / f"d{i}"))
    layers = f"lowerdir={base}/upper:{base}/lower"
    yield "overlay", timed(lambda i: kernel.mount("etc", str(base / f"d{i}"), "overlay", MS_RDONLY, layers), 50)
    for i in range(50):
        kernel.umount(str(base / f"d{i}"))
    yield "proc", timed(lambda i: kernel.mount("proc", str(base / f"d{i}"), "proc", 0), 50)
    for i in range(50):
        kernel.umount(str(base / f"d{i}"))
    yield from _image(kernel, str(base / "image"), image)


def _image(kernel: Kernel, target: str, image: Path) -> Iterator[tuple[str, list[float]]]:
    loops, mounts, unmounts = [], [], []
    for _ in range(MOUNTS):
        began = time.perf_counter()
        device = attach(image)
        attached = time.perf_counter()
        kernel.mount(
            str(Path(f"/proc/self/fd/{device}").readlink()), target, "squashfs", MS_RDONLY | MS_NOSUID | MS_NODEV
        )
        mounted = time.perf_counter()
        os.close(device)
        closed = time.perf_counter()
        kernel.umount(target)
        loops.append(attached - began)
        mounts.append(mounted - attached)
        unmounts.append(time.perf_counter() - closed)
    yield "loop", loops
    yield "mount", mounts
    yield "unmount-image", unmounts


def main() -> int:
    """Prints the measurements as JSON; one line on stderr and status 1 when one fails."""
    try:
        print(json.dumps(measure(*map(Path, sys.argv[1:3]))))
    except OSError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
