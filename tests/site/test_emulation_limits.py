"""The emulation at its limit, with real mounts: 1,024 loop devices, 128 nodes, 64 crashes at once; then nothing is left.

SHIFTER_TEST_SCALE (default 1) multiplies the numbers: 0.1 is for a small machine.
"""

import hashlib
import io
import json
import os
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from cas.store import Store
from sim import leftovers
from sim.cluster import Cluster, until
from sim.site import Site
from tests.requires import requires, requires_root
from tests.site.conftest import NOBODY, push_busybox

pytestmark = [requires_root, pytest.mark.site, pytest.mark.slow]
Up = Callable[..., Site]
SCALE = float(os.environ.get("SHIFTER_TEST_SCALE", "1"))
WAITS = 'echo in; read line; echo "$line"'


def scaled(number: int) -> int:
    return max(2, int(number * SCALE))


def loops(site: Site) -> int:
    return sum(line.startswith("loop device") for line in leftovers.of_site(site.directory))


def containers(site: Site) -> int:
    """How many of the commands below run; the machine's loop devices may be fewer, as starts of one image share them."""
    return sum(line.endswith(": sleep 1000") for line in leftovers.of_site(site.directory))


def pulled(site: Site) -> str:
    """The identifier of busybox:1, pushed and pulled."""
    push_busybox(site, "busybox:1")
    assert site.run_as(NOBODY, ["shifterimg", "pull", "busybox:1"]).returncode == 0
    return site.run_as(NOBODY, ["shifterimg", "lookup", "busybox:1"]).stdout.strip()


def copies(site: Site, identifier: str, number: int) -> list[str]:
    """`number` different images, each the given one with other bytes behind its end: a node must not take two for one."""
    images = site.directory / "images"
    record = json.loads((images / f"{identifier}.json").read_text())
    content = (images / f"{identifier}.squashfs").read_bytes()
    store = Store(images / "cas", sync=False)
    made = []
    for count in range(number):
        stored = store.put_stream(io.BytesIO(content + f"{count:4096}".encode()))
        name = hashlib.sha256(stored.name.encode()).hexdigest()
        described = {**record, "id": name, "object": stored.name, "size": stored.size}
        (images / f"{name}.json").write_text(json.dumps(described))
        (images / f"{name}.squashfs").symlink_to(os.path.relpath(store.path(stored.name), images))
        made.append(name)
    return made


def test_1024_different_images_run_at_once_each_on_a_loop_device_of_its_own(up: Up) -> None:
    site = up()
    identifiers = copies(site, pulled(site), scaled(1024))
    environment = {**site.environment(), "PATH": f"{site.bin}:/usr/bin:/bin"}
    running = [
        subprocess.Popen(
            ["shifter", f"--image=id:{identifier}", "sh", "-c", WAITS],
            env=environment,
            user=NOBODY,
            group=NOBODY,
            cwd="/",
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for identifier in identifiers
    ]
    try:
        started = [process.stdout.readline() for process in running if process.stdout]
        assert started == ["in\n"] * len(identifiers)
        assert loops(site) == len(identifiers)
    finally:
        answers = [process.communicate("out\n")[0] for process in running]
    assert answers == ["out\n"] * len(identifiers)
    site.down()
    assert leftovers.after(site.directory) == []


@requires("slurmctld", "srun")
def test_containers_start_on_128_nodes_and_64_nodes_that_crash_at_once_leave_nothing(up: Up) -> None:
    nodes, crashes = min(scaled(128), 256), min(scaled(64), 128)
    site = up(nodes=nodes)
    image = f"--image=id:{pulled(site)}"
    environment = {**site.environment(), "PATH": f"{site.bin}:/usr/bin:/bin"}
    job = subprocess.Popen(
        ["srun", f"--nodes={nodes}", "--no-kill", "shifter", image, "sh", "-c", "echo in; exec sleep 1000"],
        env=environment,
        user=NOBODY,
        group=NOBODY,
        cwd="/",
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert job.stdout is not None
        assert [job.stdout.readline() for _ in range(nodes)] == ["in\n"] * nodes
        cluster = Cluster.at(site.directory / "slurm")
        assert containers(site) == nodes
        with ThreadPoolExecutor(crashes) as together:
            list(together.map(cluster.kill_node, [f"n{number}" for number in range(1, crashes + 1)]))
        # a node's processes are gone when its killing returns; the kernel frees what they held a moment later
        until(lambda: containers(site) == nodes - crashes, "the containers of the crashed nodes are gone")
    finally:
        job.kill()
        job.communicate()
    site.down()
    assert leftovers.after(site.directory) == []
