"""The emulated cluster by itself, no containers: nodes that are real to Slurm, crash alone, come back, leave nothing."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from sim.cluster import Cluster, ClusterError, until
from sim.process import Process
from tests.requires import requires, requires_root
from tests.runtime.munge_daemon import running

pytestmark = [pytest.mark.slurm, requires("slurmctld", "slurmd", "munged"), requires_root]


@pytest.fixture
def munge_socket() -> Iterator[Path]:
    with running() as daemon:
        yield daemon.socket


def loops_of(directory: Path) -> str:
    listed = subprocess.run(
        ["losetup", "--list", "--noheadings", "--output", "BACK-FILE"], capture_output=True, text=True
    )
    return "\n".join(line for line in listed.stdout.splitlines() if str(directory) in line)


def processes_of(directory: Path) -> list[str]:
    """The command lines of this machine's processes that mention the directory or run with its SLURM_CONF."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and int(entry.name) != os.getpid():
                command, environment = (entry / "cmdline").read_bytes(), (entry / "environ").read_bytes()
                if b"munged" not in command and str(directory).encode() in command + environment:
                    found.append(command.decode())
        except OSError:  # gone meanwhile, or not to be looked at
            continue
    return found


def test_nodes_have_own_hostname_mounts_processes_and_addresses(public_directory: Path, munge_socket: Path) -> None:
    private = public_directory / "private"
    private.mkdir()
    with Cluster.up(public_directory / "slurm", munge_socket, 3, private=[private]) as cluster:
        assert sorted(cluster.command("srun", "-N3", "hostname").split()) == ["n1", "n2", "n3"]
        for name in ("n1", "n2"):
            assert cluster.on_node(name, ["sh", "-c", f"echo {name} > {private}/who"]).returncode == 0
        assert cluster.on_node("n1", ["cat", str(private / "who")]).stdout == "n1\n"
        assert cluster.on_node("n3", ["ls", str(private)]).stdout == ""
        assert list(private.iterdir()) == [], "what a node writes there is not seen outside"
        seen = cluster.on_node("n1", ["sh", "-c", "cat /proc/1/cmdline; ls /proc"]).stdout
        assert "n1" in seen and str(os.getpid()) not in seen.split()
        addresses = {cluster.on_node("n1", ["getent", "hosts", name]).stdout.split()[0] for name in ("n1", "n2", "n3")}
        assert len(addresses) == 3 and all(address.startswith("127.") for address in addresses)


def test_a_killed_node_goes_with_mounts_tasks_and_loop_devices_and_comes_back(
    public_directory: Path, munge_socket: Path
) -> None:
    private, disk = public_directory / "private", public_directory / "disk"
    private.mkdir()
    subprocess.run(["truncate", "-s", "4M", str(disk)], check=True)
    subprocess.run(["mkfs.ext4", "-q", str(disk)], check=True)
    with Cluster.up(public_directory / "slurm", munge_socket, 2, private=[private]) as cluster:
        assert cluster.on_node("n2", ["mount", "-o", "loop", str(disk), str(private)]).returncode == 0
        assert str(disk) in loops_of(public_directory)
        cluster.kill_node("n2")
        until(lambda: loops_of(public_directory) == "", "the loop device is free")
        with pytest.raises(ClusterError, match="node n2 is not running"):
            cluster.on_node("n2", ["true"])
        with pytest.raises(ClusterError, match="no node n9: this cluster has n1 to n2"):
            cluster.kill_node("n9")
        cluster.start_node("n2")
        assert cluster.command("srun", "-w", "n2", "hostname") == "n2\n"
        with pytest.raises(ClusterError, match="n2 runs already"):
            cluster.start_node("n2")


def test_nodes_do_not_keep_the_mounts_of_others(public_directory: Path, munge_socket: Path) -> None:
    disk, mounted = public_directory / "disk", public_directory / "with space"
    mounted.mkdir()
    subprocess.run(["truncate", "-s", "4M", str(disk)], check=True)
    subprocess.run(["mkfs.ext4", "-q", str(disk)], check=True)
    subprocess.run(["mount", "-o", "loop", str(disk), str(mounted)], check=True)
    try:
        with Cluster.up(public_directory / "slurm", munge_socket, 2) as cluster:
            assert "with" not in cluster.on_node("n2", ["cat", "/proc/mounts"]).stdout
            subprocess.run(["umount", str(mounted)], check=True)
            until(lambda: loops_of(public_directory) == "", "the loop device is free")
    finally:
        subprocess.run(["umount", str(mounted)], check=False, capture_output=True)


def test_another_process_finds_the_cluster_and_takes_it_down(public_directory: Path, munge_socket: Path) -> None:
    started = Cluster.up(public_directory / "slurm", munge_socket, 2)
    try:
        found = Cluster.at(public_directory / "slurm")
        assert found == started
    finally:
        found.down()
    assert processes_of(public_directory) == []
    found.down()  # twice is no error
    with pytest.raises(ClusterError, match="no cluster in"):
        Cluster.at(public_directory / "slurm")


def test_a_cluster_whose_processes_were_killed_comes_up_again_in_its_directory(
    public_directory: Path, munge_socket: Path
) -> None:
    directory = public_directory / "slurm"
    first = Cluster.up(directory, munge_socket, 2)
    controller = Process.load(directory / "run" / "slurmctld.process")
    assert controller is not None
    subprocess.run(["kill", "-KILL", str(controller.pid)], check=True)
    with Cluster.up(directory, munge_socket, 2) as second:
        assert set(second.states()) == {"n1", "n2"}
        assert second.command("srun", "-N2", "true") == ""
    assert first.layout.directory == second.layout.directory
    assert processes_of(public_directory) == []


def test_two_clusters_run_side_by_side(public_directory: Path, munge_socket: Path) -> None:
    with (
        Cluster.up(public_directory / "a", munge_socket, 1) as a,
        Cluster.up(public_directory / "b", munge_socket, 2) as b,
    ):
        assert a.layout.port != b.layout.port
        assert a.layout.address("n1") != b.layout.address("n1")
        assert (set(a.states()), set(b.states())) == ({"n1"}, {"n1", "n2"})


def test_a_cluster_that_cannot_start_says_why_and_leaves_nothing(public_directory: Path, munge_socket: Path) -> None:
    with pytest.raises(ClusterError, match=r"slurmctld does not run: .*NoSuchKey"):
        Cluster.up(public_directory / "slurm", munge_socket, 2, extra={"NoSuchKey": "1"})
    assert processes_of(public_directory) == []
    for nodes in (0, 257):
        with pytest.raises(ClusterError, match="1 to 256 nodes"):
            Cluster.up(public_directory / "slurm", munge_socket, nodes)


def test_slurmd_alone_restarts_within_its_node(public_directory: Path, munge_socket: Path) -> None:
    with Cluster.up(public_directory / "slurm", munge_socket, 1) as cluster:
        first = cluster.pid("n1")
        log = cluster.layout.directory / "log" / "slurmd.n1.log"
        starts = log.read_text().count("slurmd started")
        cluster.restart_slurmd("n1")
        until(lambda: log.read_text().count("slurmd started") == starts + 1, "slurmd starts again")
        assert cluster.pid("n1") == first
        assert cluster.command("srun", "hostname") == "n1\n"


def test_64_nodes_come_up_run_a_job_and_go_without_a_trace(public_directory: Path, munge_socket: Path) -> None:
    cluster = Cluster.up(public_directory / "slurm", munge_socket, 64)
    try:
        assert sorted(cluster.command("srun", "-N64", "hostname").split()) == sorted(cluster.layout.names())
    finally:
        cluster.down()
    assert processes_of(public_directory) == []
