"""What may come between while a site or a cluster starts: strangers that take a port, and interrupts."""

import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from sim import cluster as cluster_module
from sim.cluster import Cluster, ClusterError
from sim.cluster_conf import PORTS
from sim.daemon import end_session
from sim.process import Process, undisturbed
from tests.requires import requires, requires_root
from tests.runtime.munge_daemon import running


@pytest.fixture
def munge_socket() -> Iterator[Path]:
    with running() as daemon:
        yield daemon.socket


@requires_root
@requires("munged", "slurmctld", "slurmd")
@pytest.mark.slurm
@pytest.mark.parametrize("number", [0, 2], ids=["the controller's", "a node's"])
def test_a_cluster_whose_port_a_stranger_takes_at_the_last_moment_starts_on_others(
    number: int, munge_socket: Path, public_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, taken = cluster_module._free, list[int]()
    with ExitStack() as strangers:

        def free(port: int) -> bool:
            """As it is; but the first time that the port in question is found free, a stranger takes it at once."""
            found = real(port)
            if found and not taken and (port - PORTS.start) % PORTS.step == number:
                taken.append(port)
                strangers.enter_context(socket.create_server(("", port)))
            return found

        monkeypatch.setattr(cluster_module, "_free", free)
        with Cluster.up(public_directory / "slurm", munge_socket, 2) as cluster:
            assert taken and cluster.layout.port != taken[0] - number
            assert cluster.states() == {"n1": "idle", "n2": "idle"}


@requires_root
@requires("munged", "slurmctld", "slurmd")
@pytest.mark.slurm
def test_a_cluster_one_of_whose_nodes_cannot_start_says_so_at_once(munge_socket: Path, public_directory: Path) -> None:
    with pytest.raises(ClusterError, match=r"n\d ended: "):  # there is no such directory to be made the node's own
        Cluster.up(public_directory / "slurm", munge_socket, 2, private=[Path("/nowhere/at/all")])


def test_an_interrupt_waits_until_what_was_started_is_written_down() -> None:
    done = []
    with pytest.raises(KeyboardInterrupt):
        with undisturbed():
            signal.raise_signal(signal.SIGINT)
            done.append("written")
        done.append("too late")
    assert done == ["written"]
    with undisturbed():
        done.append("again")
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


def test_what_a_dead_session_leader_left_is_killed() -> None:
    """As of a node that is killed in the moment in which its first process has been made and not been tied to it yet."""
    with subprocess.Popen(
        ["sh", "-c", "sleep 1000 & echo $!; exec sleep 1000"],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as leader:
        assert leader.stdout is not None
        left, outer = Process.of(int(leader.stdout.readline())), Process.of(leader.pid)
        leader.kill()
        leader.wait()
        assert left.alive()
        end_session(outer)
        assert not left.alive()
        end_session(outer)
