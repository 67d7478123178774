"""Jobs on a cluster of 64 emulated nodes: what a container adds to a step and to an allocation, and what it costs the site.

Two cores carry all 64 nodes here, so times are held against the same job without a container, in turn, in one run. Loop
devices and requests are counted, and must be right, not small.
"""

import atexit
import functools
import shutil
import socket
import socketserver
import statistics
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from bench import row
from sim import busybox_image
from sim.cluster import Cluster, until
from sim.site import Site
from tests.runtime.munge_daemon import running
from tests.site.slurm_opens import opens

USER = 33  # www-data
NODES = 64
SQUASHFS, EROFS = "busybox:1", "busybox:erofs"
ROUNDS = 7
PROLOG_SECONDS = 0.015  # allowed for each node and core, beside 1.5 times a prolog that does nothing
CORES = 2


@functools.cache
def site() -> Site:
    """The cluster that all rows share, with SQUASHFS and EROFS pulled, each in its format; taken down at exit."""
    directory = Path(tempfile.mkdtemp(prefix="shifter-bench-", dir="/tmp"))
    directory.chmod(0o755)
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    first = Site.up(directory / "site")
    with (directory / "site" / "etc" / "udiRoot.conf").open("a") as conf:
        conf.write("holdLinger=0\n")
    busybox_image.write(directory / "oci")
    pull(first, directory, SQUASHFS)
    first.down()
    manager = directory / "site" / "etc" / "imagemanager.json"
    manager.write_text(manager.read_text().replace('"DefaultImageFormat": "squashfs"', '"DefaultImageFormat": "erofs"'))
    found = Site.up(directory / "site", nodes=NODES)
    atexit.register(found.down)
    # The same content under another digest: an image has one format.
    subprocess.run(
        ["umoci", "config", "--image", f"{directory}/oci:latest", "--config.label", "format=erofs"], check=True
    )
    pull(found, directory, EROFS)
    return found


def pull(site: Site, directory: Path, name: str) -> None:
    site.push(f"{directory}/oci:latest", name)
    pulled = site.run_as(USER, ["shifterimg", "pull", name])
    assert pulled.returncode == 0, pulled.stderr


def image_file(name: str) -> Path:
    """The file that nodes mount: a link, whose name tells the format."""
    identifier = run(["shifterimg", "lookup", name]).strip()
    return next((site().directory / "images").glob(f"{identifier}.*fs"))


def cluster() -> Cluster:
    return Cluster.at(site().directory / "slurm")


def run(argv: Sequence[str]) -> str:
    """The output of a user's command, which must succeed and complain of nothing but of waiting its turn."""
    done = site().run_as(USER, list(argv), cwd=site().directory / "scratch", timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def idle() -> None:
    cluster().wait_idle(cluster().layout.names(), 120)


def seconds(argv: Sequence[str]) -> float:
    idle()
    begin = time.perf_counter()
    run(argv)
    return time.perf_counter() - begin


def loops() -> int:
    listed = subprocess.run(["losetup", "-l", "-n", "-O", "BACK-FILE"], capture_output=True, text=True, check=True)
    return sum(str(site().directory) in line for line in listed.stdout.splitlines())


@functools.cache
def cluster_alone() -> tuple[float, float]:
    """Seconds until 64 nodes are idle, and until a cluster of them is gone; the median of three each."""
    up, down = [], []
    with running() as munge:
        for _ in range(3):
            directory = Path(tempfile.mkdtemp(prefix="shifter-bench-", dir="/tmp"))
            directory.chmod(0o755)
            try:
                begin = time.perf_counter()
                found = Cluster.up(directory / "slurm", munge.socket, NODES)
                ready = time.perf_counter()
                found.down()
                up.append(ready - begin)
                down.append(time.perf_counter() - ready)
            finally:
                shutil.rmtree(directory)
    return statistics.median(up), statistics.median(down)


@row("slurm.up.64", unit="s", goal=5.0, better="less")
def up() -> tuple[float, None]:
    """From nothing to 64 idle nodes."""
    return cluster_alone()[0], None


@row("slurm.down.64", unit="s", goal=5.0, better="less")
def down() -> tuple[float, None]:
    """Until every process of 64 nodes has ended."""
    return cluster_alone()[1], None


@row("slurm.step.64", unit="s", goal=1.15, against="srun -N64 true in the same allocation", better="less")
def step() -> tuple[float, float]:
    """A step of one task a node that joins the prepared environment."""
    script = f"""
for i in $(seq {ROUNDS}); do
    a=$(date +%s%N); srun -N{NODES} /bin/true; b=$(date +%s%N); srun -N{NODES} shifter /bin/true; c=$(date +%s%N)
    echo $((b - a)) $((c - b))
done
"""
    idle()
    output = run(["salloc", "-Q", f"-N{NODES}", "--exclusive", f"--image={SQUASHFS}", "sh", "-c", script])
    bare, contained = zip(*(map(int, line.split()) for line in output.splitlines()), strict=True)
    return min(contained) / 1e9, min(contained) / min(bare)  # the least disturbed of each


@row(
    "slurm.prolog.64", unit="s", goal=1.0, better="less",
    against="1.5 x the allocation without an image + 15 ms a node and core",
)  # fmt: skip
def prolog() -> tuple[float, float]:
    """Allocation, prolog on all nodes, an empty step: with an image and without, in turn."""
    bare, prepared = [], []
    for _ in range(ROUNDS):
        bare.append(seconds(["srun", f"-N{NODES}", "--exclusive", "/bin/true"]))
        prepared.append(seconds(["srun", f"-N{NODES}", "--exclusive", f"--image={SQUASHFS}", "/bin/true"]))
    took = statistics.median(prepared)
    return took, took / (1.5 * statistics.median(bare) + PROLOG_SECONDS * NODES / CORES)


@contextmanager
def counted() -> Iterator[list[bytes]]:
    """A forwarder before the gateway that keeps each request's first line."""
    target = urlsplit(site().gateway)
    seen: list[bytes] = []

    class Forward(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            with socket.create_connection((target.hostname or "", target.port or 0)) as gateway:
                data = self.request.recv(65536)
                seen.append(data.split(b"\r\n")[0])
                gateway.sendall(data.replace(b"keep-alive", b"close"))
                while part := gateway.recv(65536):
                    self.request.sendall(part)

    conf = site().directory / "etc" / "udiRoot.conf"
    text = conf.read_text()
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Forward) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        conf.write_text(text.replace(site().gateway, f"http://127.0.0.1:{server.server_address[1]}"))
        try:
            yield seen
        finally:
            conf.write_text(text)
            server.shutdown()


@row("slurm.requests.64", unit="requests", goal=1, better="less")
def requests() -> tuple[float, None]:
    """What one job of 64 nodes asks of the gateway, from submission to end."""
    idle()
    with counted() as seen:
        run(["srun", f"-N{NODES}", "--exclusive", f"--image={SQUASHFS}", "shifter", "/bin/true"])
    return len(seen), None


@row("slurm.opens.64", unit="per node", goal=1, better="less")
def image_opens() -> tuple[float, None]:
    """How often nodes open the image file, from the prolog to the epilog of a job with two steps of four tasks a node."""
    idle()
    script = f"srun -O -n{4 * NODES} shifter /bin/true; srun -O -n{4 * NODES} shifter /bin/true"
    with opens(image_file(SQUASHFS)) as seen:
        run(["salloc", "-Q", f"-N{NODES}", "--exclusive", f"--image={SQUASHFS}", "sh", "-c", script])
        idle()
    return len(seen) / NODES, None


@row("slurm.loops.64", unit="per node", goal=1, better="less")
def loop_devices() -> tuple[float, None]:
    """Loop devices of a job with four tasks a node at work."""
    return loops_at_work(SQUASHFS), None


@row("slurm.loops.erofs", unit="per node", goal=0, better="less")
def loop_devices_erofs() -> tuple[float, None]:
    """The same with an EROFS image, which Linux mounts from its file from 6.12 on."""
    assert image_file(EROFS).suffix == ".erofs"
    return loops_at_work(EROFS), None


def loops_at_work(image: str) -> float:
    """Loop devices for each node while a job of all is at work."""
    idle()
    scratch = site().directory / "scratch"
    script = f"srun -O -n{4 * NODES} shifter /bin/true; touch {scratch}/ready; while [ ! -e {scratch}/go ]; do sleep 0.05; done"
    job = run(
        ["sbatch", "--parsable", "-o/dev/null", f"-N{NODES}", "--exclusive", f"--image={image}", f"--wrap={script}"]
    ).strip()
    until((scratch / "ready").exists, f"job {job} runs", 120)
    found = loops()
    (scratch / "go").touch()
    until(lambda: not run(["squeue", "-h", "-j", job]), f"job {job} ends", 120)
    for name in ("ready", "go"):
        (scratch / name).unlink()
    return found / NODES


@row("slurm.loops.after", unit="devices", goal=0, better="less")
def loop_devices_after() -> tuple[float, None]:
    """Loop devices after the epilogs, where the site lets no image linger."""
    run(["srun", f"-N{NODES}", "--exclusive", f"--image={SQUASHFS}", "shifter", "/bin/true"])
    idle()
    return loops(), None


@row("slurm.tasks.256", unit="failures", goal=0, better="less")
def tasks() -> tuple[float, None]:
    """256 tasks that start at once on 16 nodes, each in a container."""
    idle()
    inner = ["srun", "-n256", "-O", "shifter", "sh", "-c", "grep ^ID /etc/os-release"]
    output = run(["salloc", "-Q", "-N16", "--exclusive", f"--image={SQUASHFS}", *inner])
    return 256 - output.count("ID=busybox"), None
