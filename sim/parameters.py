"""What an imagined site consists of: every number that the simulation uses, named, with its unit and its meaning.

A parameter is a field of a frozen dataclass here and nowhere else; a scenario file (`sim.scenario`) sets it by the
same name, and `shifter-sim parameters` prints this table. Times are seconds, sizes bytes, rates a second,
unless the name says more. The defaults are those of a Linux node measured on Debian 12 (see docs/simulation.md,
"Where the numbers come from").
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

MIB = 1024 * 1024
GIB = 1024 * MIB


def param(default: Any, unit: str, meaning: str) -> Any:
    """A field with its unit and meaning, kept in the field's metadata so that documentation and reports print them."""
    if isinstance(default, (dict, list)):
        return field(default_factory=lambda: type(default)(default), metadata={"unit": unit, "meaning": meaning})
    return field(default=default, metadata={"unit": unit, "meaning": meaning})


#: CPU seconds of a plan's steps, by the step's verb (`runtime.plan`), where a scenario says nothing else. `image`
#: is what every start pays to get at the node's mounted image; mounting it is `node.loop_seconds` and
#: `node.mount_seconds`. A verb that is not named costs `other`.
STEP_SECONDS: Mapping[str, float] = {
    "image": 0.05e-3,
    "local": 0.05e-3,
    "sync": 0.02e-3,
    "tmpfs": 0.04e-3,
    "mkdir": 0.01e-3,
    "write": 0.02e-3,
    "copy": 0.06e-3,
    "symlink": 0.01e-3,
    "bind": 0.03e-3,
    "overlay": 0.12e-3,
    "proc": 0.03e-3,
    "remount": 0.015e-3,
    "disk": 15e-3,
    "roothook": 2e-3,
    "pivot": 0.05e-3,
    "drop": 0.03e-3,
    "chdir": 0.003e-3,
    "userhook": 2e-3,
    "exec": 0.6e-3,
    "other": 0.002e-3,
}


@dataclass(frozen=True)
class NodeParameters:
    """One compute node and its kernel."""

    cores: int = param(64, "cores", "cores that start tasks at the same time")
    max_loop: int = param(128, "devices", "loop devices a node can have")
    loops_in_use: int = param(0, "devices", "loop devices that something else on the node holds already")
    loop_race_seconds: float = param(
        40e-6, "s", "what losing a race for a free loop device costs: one more LOOP_CTL_GET_FREE + LOOP_CONFIGURE"
    )
    loop_attempts: int = param(256, "attempts", "races that a start loses before it gives up")
    namespace_seconds: float = param(0.25e-3, "s", "unshare(2) of a mount namespace and making it private")
    mount_seconds: float = param(0.3e-3, "s", "mounting an image file")
    loop_seconds: float = param(0.2e-3, "s", "attaching a loop device to it, where one is needed")
    start_seconds: float = param(0.35e-3, "s", "the launcher itself: exec, configuration, request")
    join_seconds: float = param(0.6e-3, "s", "joining a prepared environment instead of making one, without the exec")
    planner_seconds: float = param(35e-3, "s", "the planner's CPU when no plan is cached (python -I -S and the work)")
    plan_cached: bool = param(False, "", "whether nodes have the plan cached before the launch")
    mount_contention: float = param(
        0.004, "ratio", "how much slower each mount step is for each other start on the node at the same time"
    )
    step_seconds: Mapping[str, float] = param(
        dict(STEP_SECONDS), "s", "CPU of a step by type; missing types keep their default"
    )
    unmount_seconds: float = param(0.06e-3, "s", "undoing one mount (umount2, and what it frees)")
    jitter: float = param(0.08, "sigma", "spread of every CPU time on a node (lognormal, median 1)")
    slow_probability: float = param(0.0, "probability", "that a node is a straggler")
    slow_factor: float = param(5.0, "ratio", "how much slower a straggler is")


@dataclass(frozen=True)
class ImageParameters:
    """The image that is started and what its programs read."""

    bytes: int = param(1 * GIB, "bytes", "size of the image file (compressed)")
    unpacked_bytes: int = param(3 * GIB, "bytes", "size of its files")
    mount_read_bytes: int = param(128 * 1024, "bytes", "superblock and tables that a mount reads")
    exec_read_bytes: int = param(4 * MIB, "bytes", "compressed bytes of the command and its libraries")
    exec_files: int = param(12, "files", "files that exec and the dynamic linker open")
    decompress_rate: float = param(250e6, "bytes/s", "decompression of image blocks on one core, of compressed bytes")
    layers: int = param(8, "layers", "layers that a pull fetches")


@dataclass(frozen=True)
class NetworkParameters:
    """The interconnect."""

    latency: float = param(3e-6, "s", "one way, node to server")
    node_bandwidth: float = param(12.5e9, "bytes/s", "a node's link (100 Gbit/s)")


@dataclass(frozen=True)
class FilesystemParameters:
    """The parallel file system that holds the images."""

    metadata_rate: float = param(30_000.0, "ops/s", "operations that one metadata server thread answers a second")
    metadata_threads: int = param(1, "threads", "operations that the metadata service works on at the same time")
    metadata_latency: float = param(
        150e-6, "s", "client side and network time of one metadata operation, beside the server's"
    )
    open_operations: int = param(4, "ops", "metadata operations to open one file by path (look-ups and the open)")
    shared_directory_seconds: float = param(
        20e-6, "s", "locks at the server for opening a file in a directory that all nodes share, as that of the images"
    )
    data_servers: int = param(16, "servers", "data servers (OSTs)")
    data_bandwidth: float = param(5e9, "bytes/s", "one data server, when it answers from its cache")
    disk_bandwidth: float = param(2e9, "bytes/s", "one data server, the first time that a block is read")
    data_latency: float = param(200e-6, "s", "client side and network time of one read request, beside the server's")
    read_bytes: int = param(1 * MIB, "bytes", "a read request (and the size of a stripe)")
    stripes: int = param(1, "servers", "data servers that an image file is striped over")
    client_cache: bool = param(True, "", "whether tasks on one node share the answers to metadata operations")


@dataclass(frozen=True)
class LocalParameters:
    """Storage on the node itself (a disk, or memory)."""

    latency: float = param(80e-6, "s", "one read request")
    read_bandwidth: float = param(2e9, "bytes/s", "reading")
    write_bandwidth: float = param(1e9, "bytes/s", "writing")


@dataclass(frozen=True)
class GatewayParameters:
    """The image gateway."""

    gateways: int = param(1, "gateways", "gateways that clients choose among")
    threads: int = param(16, "threads", "requests that one gateway answers at the same time (RequestThreads)")
    lookup_seconds: float = param(1.5e-3, "s", "CPU of one look-up (and one poll of a pull), munge and all")
    client_seconds: float = param(8e-3, "s", "what the asking program itself needs: start, credential, connection")
    timeout: float = param(10.0, "s", "how long a client waits for an answer before it tries again (gatewayTimeout)")
    attempts: int = param(3, "attempts", "how often a client tries before it gives up")
    poll_seconds: float = param(0.5, "s", "between two polls of a pull")


@dataclass(frozen=True)
class RegistryParameters:
    """The registry that a pull fetches from, and the conversion after it."""

    latency: float = param(0.15, "s", "manifest, token, and the start of a layer")
    bandwidth: float = param(200e6, "bytes/s", "of the link to the registry")
    parallel_layers: int = param(3, "layers", "layers fetched at the same time")
    convert_rate: float = param(200e6, "bytes/s", "conversion, of unpacked bytes")


@dataclass(frozen=True)
class SlurmParameters:
    """The workload manager."""

    submit_seconds: float = param(4e-3, "s", "the controller's work on a submission")
    controller_message_seconds: float = param(
        0.1e-3, "s", "the controller's work on a message of a node (prolog done, epilog done)"
    )
    tree_width: int = param(50, "nodes", "TreeWidth: to how many nodes each forwards a message")
    hop_seconds: float = param(1.5e-3, "s", "receiving and forwarding a message on a node")
    send_seconds: float = param(0.15e-3, "s", "sending one message more")
    prolog_slots: int = param(0, "nodes", "prologs that run at the same time; 0: all")
    prolog_seconds: float = param(4e-3, "s", "prolog's own CPU on a node, beside setupRoot")
    prepare_seconds: float = param(
        5e-3, "s", "CPU of a prolog that prepares, beside prolog_seconds and setupRoot's plan"
    )
    poll_seconds: float = param(
        0.0,
        "s",
        "an srun that allocates looks for the end of all prologs after this, twice this, ...; 0: a batch script",
    )
    step_seconds: float = param(0.0, "s", "slurmd's CPU on a node for the message that launches a step")
    stepd_seconds: float = param(15e-3, "s", "CPU of slurmstepd's start on a node")
    fork_seconds: float = param(0.4e-3, "s", "slurmstepd's start of one task: tasks of a node begin this far apart")
    epilog_seconds: float = param(4e-3, "s", "epilog's own CPU on a node, beside unsetupRoot")
    wait_for_all: bool = param(False, "", "whether no task starts before every node's prolog is done")


#: How the image reaches the nodes.
STRATEGIES = ("squashfs", "erofs", "unpacked", "broadcast", "node-cache", "none")
#: Where Python's modules are read from.
IMPORT_SOURCES = ("image", "filesystem", "node-cache")
#: What the users do.
WORKLOADS = ("launch", "array", "many", "retag", "pull-storm")


@dataclass(frozen=True)
class LaunchParameters:
    """What is started and how."""

    nodes: int = param(1000, "nodes", "nodes of a job (the machine has as many, unless `machine_nodes` says more)")
    machine_nodes: int = param(0, "nodes", "nodes of the machine; 0: as many as one job")
    tasks: int = param(64, "tasks", "tasks on each node")
    workload: str = param(
        "launch",
        "|".join(WORKLOADS),
        "one job; an array of jobs; many users and images; a tag pulled again in mid-launch; many pulls of a cold image",
    )
    prepared: bool = param(
        True, "", "prolog prepares the environment and tasks join it; false: each task makes its own"
    )
    by_tag: bool = param(
        False, "", "each start asks the gateway; false: one look-up at submission, the identifier travels with the job"
    )
    strategy: str = param("squashfs", "|".join(STRATEGIES), "how the image reaches the nodes")
    shared_hold: bool = param(True, "", "starts on a node share one mounted image; false: each start mounts its own")
    jobs: int = param(1, "jobs", "jobs of an array, or users of the other workloads")
    images: int = param(1, "images", "different images among `many` jobs")
    interval: float = param(0.0, "s", "between two submissions")
    retag_at: float = param(0.0, "s", "when the tag gets a new image (workload retag)")
    run_seconds: float = param(0.0, "s", "how long a task runs once it is up")


@dataclass(frozen=True)
class ImportParameters:
    """The start-up of an interpreter in every task. No files: no such phase."""

    files: int = param(0, "files", "modules that each task opens")
    operations: int = param(
        4, "ops", "metadata operations a module when its directory is not in an image (the search along sys.path)"
    )
    bytes: int = param(0, "bytes", "bytes that each task reads of them")
    cpu_seconds: float = param(60e-6, "s", "CPU of a module in a task (unmarshal, execute), everything cached")
    source: str = param("image", "|".join(IMPORT_SOURCES), "where the modules are")
    rounds: int = param(32, "rounds", "pieces that a node's metadata operations are cut into; more is finer and slower")


@dataclass(frozen=True)
class Fault:
    """Something that goes wrong, at a time or with a probability.

    kind: node-crash (node, step) | gateway-down | gateway-slow (factor) | metadata-stall | corrupt-image
    (probability) | loop-exhaustion (node, devices) | clock-skew (node, seconds) | slow-node (node, factor). `node`
    -1 means each node, with `probability`.
    """

    kind: str = param("node-crash", "", "what goes wrong")
    at: float = param(0.0, "s", "when it begins")
    duration: float = param(0.0, "s", "how long it lasts")
    node: int = param(-1, "index", "which node; -1: drawn with `probability`")
    probability: float = param(1.0, "probability", "that a node is struck, when `node` is -1")
    step: int = param(-1, "index", "the plan step after which a node crashes; -1: drawn")
    factor: float = param(1.0, "ratio", "how much slower")
    seconds: float = param(0.0, "s", "clock skew")
    devices: int = param(0, "devices", "loop devices taken by something else")


FAULT_KINDS = (
    "node-crash",
    "gateway-down",
    "gateway-slow",
    "metadata-stall",
    "corrupt-image",
    "loop-exhaustion",
    "clock-skew",
    "slow-node",
)


@dataclass(frozen=True)
class Scenario:
    """A site, what is launched on it, and what goes wrong."""

    name: str = "scenario"
    description: str = ""
    configuration: str = ""
    launch: LaunchParameters = field(default_factory=LaunchParameters)
    image: ImageParameters = field(default_factory=ImageParameters)
    imports: ImportParameters = field(default_factory=ImportParameters)
    node: NodeParameters = field(default_factory=NodeParameters)
    network: NetworkParameters = field(default_factory=NetworkParameters)
    filesystem: FilesystemParameters = field(default_factory=FilesystemParameters)
    local: LocalParameters = field(default_factory=LocalParameters)
    gateway: GatewayParameters = field(default_factory=GatewayParameters)
    registry: RegistryParameters = field(default_factory=RegistryParameters)
    slurm: SlurmParameters = field(default_factory=SlurmParameters)
    faults: tuple[Fault, ...] = ()

    def step_cost(self, step: str) -> float:
        """CPU seconds of a step type, after the scenario's own table, the defaults, and `other`."""
        table = self.node.step_seconds
        if step in table:
            return float(table[step])
        return float(STEP_SECONDS.get(step, table.get("other", STEP_SECONDS["other"])))


#: The sections of a scenario file, in the order in which they are printed.
SECTIONS: Mapping[str, type] = {
    "launch": LaunchParameters,
    "image": ImageParameters,
    "imports": ImportParameters,
    "node": NodeParameters,
    "network": NetworkParameters,
    "filesystem": FilesystemParameters,
    "local": LocalParameters,
    "gateway": GatewayParameters,
    "registry": RegistryParameters,
    "slurm": SlurmParameters,
}


@dataclass(frozen=True)
class Described:
    """One row of the parameter table."""

    key: str
    unit: str
    meaning: str
    default: object


def describe() -> Iterator[Described]:
    """Every parameter of every section as `section.name`, with unit, meaning and default."""
    for section, kind in SECTIONS.items():
        blank = kind()
        for f in dataclasses.fields(kind):
            yield Described(f"{section}.{f.name}", f.metadata["unit"], f.metadata["meaning"], getattr(blank, f.name))
