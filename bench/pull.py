"""Rows of the pull: the whole way from a registry on loopback to a file that nodes mount, and parts of it.

The image is made of this machine's own files (bench/images.py), once for all rows; each row pulls with fresh stores. What it
is held against runs in the same row, on the same image.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import io
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from bench import Measured, row
from bench.images import oci_image, some_files
from catalog.conversion_options import ConversionOptions
from catalog.flatten import merge_layers
from catalog.pull import PulledImage
from sim.ports import reserve
from tests.catalog.registry_fixture import LiveRegistry, Puller, build, file, gz, running_registry, tar

SIZE = 600 << 20
LAYERS = 4
GOAL_SECONDS = 4.0


@functools.cache
def scratch() -> Path:
    """A directory for all rows, on the disk of the checkout; removed when the process ends."""
    place = Path(__file__).parent.parent / "build"
    place.mkdir(exist_ok=True)
    directory = Path(tempfile.mkdtemp(prefix="bench-pull-", dir=place))
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    return directory


@functools.cache
def registry() -> LiveRegistry:
    """A registry with the large image as `large:1`."""
    port = reserve()
    running = running_registry(scratch() / "registry", port.number)
    live = next(running)
    atexit.register(running.close)
    push = [
        "skopeo",
        "copy",
        "-q",
        "--dest-tls-verify=false",
        f"oci:{layout()}:image",
        f"docker://{live.address}/large:1",
    ]
    subprocess.run(push, check=True)
    return live


@functools.cache
def layout() -> Path:
    directory = scratch() / "image"
    directory.mkdir()
    return oci_image(directory, size=SIZE, layers=LAYERS)


@contextlib.contextmanager
def fresh(url: str, options: ConversionOptions | None = None) -> Iterator[Puller]:
    """A Puller with empty stores that wait for the disk, as a gateway's do."""
    directory = Path(tempfile.mkdtemp(dir=scratch()))
    puller = Puller(directory, url, options or ConversionOptions())
    puller.layers.sync = puller.images.sync = True
    try:
        yield puller
    finally:
        shutil.rmtree(directory)


def timed(work: Callable[[], PulledImage]) -> tuple[float, PulledImage]:
    started = time.perf_counter()
    done = work()
    return time.perf_counter() - started, done


def pull_once() -> tuple[float, PulledImage]:
    with fresh(registry().url) as puller:
        return timed(lambda: puller.pull("large:1"))


@row("pull.600MB", unit="s", goal=GOAL_SECONDS, better="less")
def pull_600() -> Measured:
    """Registry to durable squashfs, nothing cached but the files of the registry."""
    pull_once()
    return Measured(min(pull_once()[0] for _ in range(3)))


def by_hand(arguments: list[str]) -> float:
    """Seconds for skopeo copy + umoci unpack + mksquashfs, the way without a gateway."""
    directory = Path(tempfile.mkdtemp(dir=scratch()))
    try:
        started = time.perf_counter()
        source = f"docker://{registry().address}/large:1"
        target = f"oci:{directory}/oci:image"
        subprocess.run(["skopeo", "copy", "-q", "--src-tls-verify=false", source, target], check=True)
        unpack = ["umoci", "raw", "unpack", "--image", f"{directory}/oci:image", f"{directory}/tree"]
        subprocess.run(unpack, check=True, capture_output=True)
        squash = ["mksquashfs", f"{directory}/tree", f"{directory}/image", "-no-progress", "-quiet", *arguments]
        subprocess.run(squash, check=True, capture_output=True)
        return time.perf_counter() - started
    finally:
        shutil.rmtree(directory)


@row("pull.600MB.defaults", unit="s", goal=10.0, against="skopeo + umoci + mksquashfs")
def pull_against_defaults() -> Measured:
    mine = min(pull_once()[0] for _ in range(2))
    return Measured(mine, by_hand([]) / mine)


@row("pull.600MB.zstd", unit="s", goal=2.0, against="skopeo + umoci + mksquashfs zstd-3")
def pull_against_zstd() -> Measured:
    mine = min(pull_once()[0] for _ in range(2))
    return Measured(mine, by_hand(["-comp", "zstd", "-Xcompression-level", "3"]) / mine)


@row("pull.size", unit="MB", goal=1.05, against="mksquashfs zstd-3", better="less")
def pull_size() -> Measured:
    directory = Path(tempfile.mkdtemp(dir=scratch()))
    try:
        unpack = ["umoci", "raw", "unpack", "--image", f"{layout()}:image", f"{directory}/tree"]
        subprocess.run(unpack, check=True, capture_output=True)
        squash = ["mksquashfs", f"{directory}/tree", f"{directory}/image", "-no-progress", "-quiet", "-comp", "zstd"]
        subprocess.run([*squash, "-Xcompression-level", "3"], check=True, capture_output=True)
        theirs = (directory / "image").stat().st_size
    finally:
        shutil.rmtree(directory)
    mine = pull_once()[1].size
    return Measured(mine / 1e6, mine / theirs)


@row("pull.convert", unit="MB/s")
def pull_convert() -> Measured:
    """Layers in the store to a durable image file: contents a second."""
    with fresh(registry().url) as puller:
        image = puller.pull("large:1")
        names = [puller.layers.find_sha256(digest) or "" for digest in image.layers]
        contents = merge_layers(
            puller.layers, names, lambda data: None, ConversionOptions(), what="it", survey=False
        ).contents
        seconds = []
        for _ in range(2):
            puller.images.delete(image.object)
            seconds.append(timed(lambda: puller.pull("large:1"))[0])
    return Measured(contents / min(seconds) / 1e6)


def flatten_rate() -> tuple[float, float]:
    """Bytes and members a second, from cached layers to nowhere."""
    with fresh(registry().url) as puller:
        image = puller.pull("large:1")
        names = [puller.layers.find_sha256(digest) or "" for digest in image.layers]
        rates = []
        for _ in range(4):
            started = time.perf_counter()
            merged = merge_layers(puller.layers, names, lambda data: None, ConversionOptions(), what="it", survey=False)
            elapsed = time.perf_counter() - started
            rates.append((merged.contents / elapsed, merged.members / elapsed))
    return max(rates)


@row("flatten", unit="MB/s", goal=500.0)
def flatten_bytes() -> Measured:
    return Measured(flatten_rate()[0] / 1e6)


@row("flatten.members", unit="members/s", goal=30_000.0)
def flatten_members() -> Measured:
    return Measured(flatten_rate()[1])


@row("pull.repull.top", unit="s", goal=0.6, against="the first pull", better="less")
def pull_changed_top() -> Measured:
    """The base of 600 MB is there; the top layer of 1 MB has changed: only that one is fetched."""
    live = registry()
    base = [(layout() / "blobs/sha256" / path).read_bytes() for path in layer_blobs()]
    for number in range(2):
        live.push("top", str(number), build(*base, gz(tar(file("top", os.urandom(1 << 20))))))
    with fresh(live.url) as puller:
        first, _ = timed(lambda: puller.pull("top:0"))
        second, _ = timed(lambda: puller.pull("top:1"))
    return Measured(second, second / first)


def layer_blobs() -> list[str]:
    """The layers of the large image, the lowest first, by their files' names."""
    import json

    index = json.loads((layout() / "index.json").read_text())
    manifest = json.loads(
        (layout() / "blobs/sha256" / index["manifests"][0]["digest"].removeprefix("sha256:")).read_text()
    )
    return [layer["digest"].removeprefix("sha256:") for layer in manifest["layers"]]


@row("pull.same.content", unit="ms", goal=150.0, better="less")
def pull_same_content() -> Measured:
    """The same layers under another tag with other labels: nothing fetched, nothing converted."""
    live = registry()
    base = [(layout() / "blobs/sha256" / path).read_bytes() for path in layer_blobs()]
    live.push("same", "1", build(*base, config={"Labels": {"another": "label"}}))
    with fresh(live.url) as puller:
        puller.pull("large:1")
        return Measured(timed(lambda: puller.pull("same:1"))[0] * 1e3)


@row("pull.shared.base", unit="s", goal=1.3, against="sum of the unshared work / cores", better="less")
def pull_shared_base() -> Measured:
    """20 pulls at once of 20 images on one base of 60 MB: the base is fetched once."""
    live = registry()
    tree = io.BytesIO()
    with tarfile.open(fileobj=tree, mode="w") as archive:
        for path in some_files(60 << 20):
            archive.add(path, recursive=False)
    base = gz(tree.getvalue())
    for number in range(20):
        live.push("shared", str(number), build(base, gz(tar(file(f"own{number}", os.urandom(200_000))))))
    with fresh(live.url) as puller:  # what one image costs alone, its base included
        alone, _ = timed(lambda: puller.pull("shared:0"))
        one, _ = timed(lambda: puller.pull("shared:1"))  # with the base there: its own layer and its conversion
    with fresh(live.url) as puller:
        threads = [threading.Thread(target=puller.pull, args=(f"shared:{number}",)) for number in range(20)]
        started = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        together = time.perf_counter() - started
    # A pull alone keeps all cores busy while it converts, so twenty of them cost twenty times that.
    return Measured(together, together / (alone + 19 * one))


@row("pull.memory.5GB", unit="MB", goal=300.0, better="less")
def pull_memory() -> Measured:
    """The largest resident size while an image of 5 GB is pulled, by a process that does nothing else."""
    live = registry()
    block = os.urandom(1 << 20) + bytes(15 << 20)
    layer = scratch() / "five.tar"
    with tarfile.open(layer, "w") as archive:
        for number in range(320):
            info = tarfile.TarInfo(f"f{number}")
            info.size = len(block)
            archive.addfile(info, io.BytesIO(block))
    packed = subprocess.run(["gzip", "-1", "-c", str(layer)], check=True, capture_output=True).stdout
    layer.unlink()
    live.push("five", "1", build(packed))
    del packed
    # VmHWM, not getrusage: the latter counts what the process that started this one had in memory.
    program = (
        "import re, resource, sys; from pathlib import Path; from tests.catalog.registry_fixture import Puller\n"
        "Puller(Path(sys.argv[1]), sys.argv[2]).pull('five:1')\n"
        "own = int(re.search(r'VmHWM:\\s+(\\d+)', Path('/proc/self/status').read_text())[1])\n"
        "print(own + resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
    )
    directory = Path(tempfile.mkdtemp(dir=scratch()))
    try:
        done = subprocess.run(
            [sys.executable, "-c", program, str(directory), live.url], check=True, capture_output=True, text=True
        )
    finally:
        shutil.rmtree(directory)
    return Measured(int(done.stdout) * 1024 / 1e6)
