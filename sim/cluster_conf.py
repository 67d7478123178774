"""The files of an emulated Slurm cluster: slurm.conf, plugstack.conf, cgroup.conf, the nodes' hosts file, and what a node runs.

Pure text from a description: nothing is started and nothing is looked up here. Every node is one slurmd on a
port of its own (Debian builds Slurm with MULTIPLE_SLURMD) and has an address of its own in 127.0.0.0/8, so that
programs which find each other by node name, sshd above all, work among nodes that share one network namespace.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

PORTS = range(6_144, 14_976, 272)
"""First ports that a cluster may take, each with 272 to itself, below those of sim.ports and of outgoing connections."""


# What a node runs as its first process. slurmd is started again when a signal ended it (a test that kills
# slurmd alone, as a package update would); any other end of it ends the node.
NODE = """
node=$1 hosts=$2 python=$3 let_go=$4; shift 4
hostname "$node" && mount --bind "$hosts" /etc/hosts || exit 1
if grep -q ^/dev/loop /proc/mounts; then "$python" -I -S -c "$let_go"; fi
for directory; do mount -t tmpfs -o mode=0755 "node-$node" "$directory" || exit 1; done
while :; do
    slurmd -D -N "$node" & wait $!
    [ $? -gt 128 ] || exit 0
done
"""

# Images that others on this machine have mounted are let go: a node would keep their loop devices busy. umount(8) reads the
# whole table of mounts for each, which takes minutes where hundreds of images are mounted and 64 nodes start.
LET_GO = r"""
import ctypes, re
for line in open("/proc/mounts", "rb").read().splitlines():
    device, point = line.split()[:2]
    if device.startswith(b"/dev/loop"):
        point = re.sub(rb"\\([0-7]{3})", lambda escaped: bytes([int(escaped[1], 8)]), point)
        ctypes.CDLL(None).umount2(point, 2)  # MNT_DETACH
"""


@dataclass(frozen=True)
class Layout:
    """Where a cluster's files lie, and what it consists of."""

    directory: Path
    nodes: int
    port: int  # of slurmctld; node nK listens on port + K
    host: str  # the machine's short host name
    munge_socket: Path
    cpus: int = 2  # a node
    plugstack: str = ""  # the text of plugstack.conf
    extra: Mapping[str, str] = field(default_factory=dict)  # keys of slurm.conf, over the ones below

    @property
    def slurm_conf(self) -> Path:
        return self.directory / "etc" / "slurm.conf"

    def names(self) -> list[str]:
        return [f"n{k}" for k in range(1, self.nodes + 1)]

    def address(self, node: str) -> str:
        """The loopback address of a node: the second byte is the cluster's, so that clusters side by side do
        not meet.
        """
        number = int(node[1:])
        return f"127.{20 + (self.port - PORTS.start) // PORTS.step}.{number // 250}.{number % 250 + 1}"


def slurm_conf(layout: Layout) -> str:
    """The text of slurm.conf (man slurm.conf). Scheduling is as quick as Slurm allows: a cluster of tests, not
    of users.
    """
    d = layout.directory
    values = {
        "ClusterName": "emulated",
        "SlurmctldHost": f"{layout.host}(127.0.0.1)",
        "SlurmctldPort": str(layout.port),
        "SlurmdPort": str(layout.port),
        "SlurmUser": "root",
        "SlurmdUser": "root",
        "AuthType": "auth/munge",
        "CredType": "cred/munge",
        # A requeued job waits until the credentials of its first run have expired: 120 s by default.
        "AuthInfo": f"socket={layout.munge_socket}" + (",cred_expire=5" if layout.nodes <= 8 else ""),
        "StateSaveLocation": f"{d}/state",
        "SlurmdSpoolDir": f"{d}/spool/%n",
        "SlurmctldPidFile": f"{d}/run/slurmctld.pid",
        "SlurmdPidFile": f"{d}/run/slurmd.%n.pid",
        "SlurmctldLogFile": f"{d}/log/slurmctld.log",
        "SlurmdLogFile": f"{d}/log/slurmd.%n.log",
        "ProctrackType": "proctrack/linuxproc",
        "TaskPlugin": "task/none",
        "JobAcctGatherType": "jobacct_gather/none",
        "MpiDefault": "none",
        "SelectType": "select/cons_tres",
        "SelectTypeParameters": "CR_CPU",
        "SchedulerParameters": "sched_min_interval=0,batch_sched_delay=0,bf_interval=2,requeue_delay=0",
        "ReturnToService": "2",
        "KillWait": "2",
        "CompleteWait": "0",
        "MessageTimeout": "10" if layout.nodes <= 8 else "60",  # 64 nodes on two cores answer slowly
        "SlurmdTimeout": "10",
        "TreeWidth": "16",
        "PropagateResourceLimits": "NONE",
        "SlurmdParameters": "config_overrides",
        "PrologFlags": "Alloc,Contain",
        "PlugStackConfig": f"{d}/etc/plugstack.conf",
    }
    values.update(layout.extra)
    lines = [f"{key}={value}" for key, value in values.items()]
    lines += [
        f"NodeName={name} NodeHostname={layout.host} NodeAddr={layout.address(name)} Port={layout.port + number}"
        f" CPUs={layout.cpus} RealMemory=1000 State=UNKNOWN"
        for number, name in enumerate(layout.names(), start=1)
    ]
    lines.append("PartitionName=ci Nodes=ALL Default=YES MaxTime=INFINITE State=UP OverSubscribe=NO")
    return "\n".join(lines) + "\n"


def hosts(layout: Layout, machine: str) -> str:
    """The nodes' /etc/hosts: the machine's own text, then a line a node."""
    lines = [f"{layout.address(name)} {name}" for name in layout.names()]
    return machine.rstrip("\n") + "\n" + "\n".join(lines) + "\n"
