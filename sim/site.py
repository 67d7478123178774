"""A whole site under one directory: munged, an OCI registry, the gateway, and the programs of a node. All real.

`Site.up` returns when everything serves; `down` ends exactly what `up` started, known by pid and start time, and undoes the
mounts below the directory. The directory keeps images, events and the registry's content, so the site comes up again with
them: after `down`, after a crash, after kill -9 of everything. Several sites run side by side. Needs root, because a
node's programs do. Not for production: one machine, no TLS, daemons that nobody supervises.
"""

import fcntl
import os
import shutil
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Self

import wlm.install
from runtime.install import InstallFailed, install
from sim import daemon, site_files, site_record
from sim.cluster import Cluster, ClusterError
from sim.daemon import Daemon, StartFailed
from sim.mounts import unmount_below
from sim.ports import reserve
from sim.process import undisturbed
from sim.site_files import Endpoints, Layout
from sim.site_record import Record

SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
ATTEMPTS = 5  # with another port, when a stranger took the one we had reserved
SOCKET_PATH_LIMIT = 107  # bytes of a Unix socket's path, unix(7)
NAME = "mycluster"


class SiteError(Exception):
    """A site could not be brought up, found or used; the text says why and what to do next."""


@dataclass(frozen=True)
class Site:
    """A running site. `registry` is host:port, `gateway` a URL, `bin` holds a node's programs."""

    directory: Path
    name: str
    registry: str
    gateway: str
    munge_socket: Path
    nodes: int

    @property
    def bin(self) -> Path:
        return self.directory / "bin"

    @classmethod
    def up(
        cls,
        directory: Path,
        *,
        name: str = NAME,
        nodes: int = 0,
        munge_socket: Path | None = None,
        locations: Mapping[str, str] | None = None,
        spank: str = "",
        slurm_conf: Mapping[str, str] | None = None,
    ) -> "Site":
        """Start a site in `directory` (made if absent) and return when it serves; a site that is up already is returned.

        `nodes` > 0 starts a Slurm cluster of so many emulated nodes too. `munge_socket` is where the site's munged listens
        (default: below the directory); when a munged answers there already, that one is used and left alone.
        `locations` are further registries for imagemanager.json, name -> URL. With nodes, `spank` are the arguments of
        the plugin in plugstack.conf ("enable_sshd=1") and `slurm_conf` keys of slurm.conf that differ from the cluster's
        own. Raises SiteError; then nothing of it runs.
        """
        directory = directory.resolve()
        _check(directory, munge_socket)
        layout = Layout(directory)
        try:
            layout.make_directories()
        except OSError as error:
            raise SiteError(f"cannot make a site in {directory}: {error.strerror}: choose another --dir") from error
        with _locked(layout):
            record = _load(layout)
            if record and _is_whole(record):
                if (name, nodes) != (record.name, record.nodes):
                    raise SiteError(
                        f"the site in {directory} is up as {record.name} with {record.nodes} nodes: take it down first"
                    )
                return cls._of(layout, record)
            if record:
                record = _take_down(layout, record)
            try:
                record = _start(layout, record, name, nodes, munge_socket, locations or {})
                if nodes:
                    _start_cluster(layout, record, spank, slurm_conf or {})
                return cls._of(layout, record)
            except BaseException as error:
                left = _load(layout)
                if left:
                    _take_down(layout, left)
                if isinstance(error, StartFailed | ClusterError | InstallFailed | ValueError | OSError):
                    raise SiteError(f"the site in {directory} did not come up: {error}") from error
                raise

    @classmethod
    def at(cls, directory: Path) -> "Site":
        """The site that is up in `directory`. Raises SiteError when none is."""
        layout = Layout(directory.resolve())
        record = _load(layout)
        if record is None or not record.daemons:
            raise SiteError(f"no site is up in {directory}: shifter-sim site up --dir {directory}")
        return cls._of(layout, record)

    @classmethod
    def _of(cls, layout: Layout, record: Record) -> "Site":
        endpoints = _endpoints(record)
        return cls(
            layout.directory, record.name, endpoints.registry, endpoints.gateway, record.munge_socket, record.nodes
        )

    def down(self) -> None:
        """End what `up` started and unmount what lies below the directory; may be called twice. Files stay."""
        self.take_down(self.directory)

    @staticmethod
    def take_down(directory: Path) -> None:
        """Like `down`, for whatever still runs of the site in `directory`. Raises SiteError when there never was one."""
        layout = Layout(directory.resolve())
        if not layout.record.exists():
            raise SiteError(f"there is no site in {directory}")
        with _locked(layout):
            record = _load(layout)
            if record:
                _take_down(layout, record)

    def cluster(self) -> Cluster:
        """The site's Slurm cluster. Raises ClusterError when it was brought up without nodes."""
        return Cluster.at(self.directory / "slurm")

    def log(self, daemon_name: str) -> Path:
        """Where a daemon ("munged", "registry", "gateway") logs to."""
        return Layout(self.directory).log(daemon_name)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.down()

    def status(self) -> dict[str, bool]:
        """Each daemon's name, in the order of start, and whether it runs."""
        record = _load(Layout(self.directory))
        return {item.name: item.process.alive() for item in record.daemons} if record else {}

    def environment(self) -> dict[str, str]:
        """What a shell needs to use the site; `shifter-sim site env` prints it. PATH has a node's programs first."""
        programs = Path(sys.executable).parent
        found = {
            "PATH": f"{self.bin}:{programs}:{os.environ.get('PATH', SYSTEM_PATH)}",
            "SHIFTER_GATEWAY": self.gateway,
            "SHIFTER_REGISTRY": self.registry,
            "SHIFTER_SITE": str(self.directory),
            "MUNGE_SOCKET": str(self.munge_socket),
            "GWCONFIG": str(Layout(self.directory).imagemanager),
        }
        if self.nodes:
            found.update(self.cluster().environment())
        return found

    def run_as(
        self,
        uid: int,
        argv: Sequence[str],
        *,
        gid: int | None = None,
        groups: Sequence[int] = (),
        env: Mapping[str, str] | None = None,
        cwd: Path | str = "/",
        input: str | None = None,
        timeout: float = 300.0,
    ) -> subprocess.CompletedProcess[str]:
        """Run a program as `uid` on the site, as a user at its prompt would: argv[0] is looked for in the site's PATH.

        `gid` defaults to `uid`, `groups` are the supplementary ones, `env` is added to a small environment of the site's
        own (not the caller's). Output is text; the exit status is the caller's to look at. Raises TimeoutExpired.
        """
        environment = {**self.environment(), "PATH": f"{self.bin}:{SYSTEM_PATH}", "HOME": "/", "LANG": "C.UTF-8"}
        return subprocess.run(
            list(argv),
            user=uid,
            group=uid if gid is None else gid,
            extra_groups=list(groups),
            env={**environment, **(env or {})},
            cwd=cwd,
            input=input,
            stdin=subprocess.DEVNULL if input is None else None,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    def push(self, oci_layout: str, name: str) -> None:
        """Copy the image of an OCI layout (`/path[:tag]`) to the site's registry as `name`, for example "bar:1".

        Raises SiteError with the reason.
        """
        target = f"docker://{self.registry}/{name}"
        argv = [
            "skopeo",
            "copy",
            "--quiet",
            "--insecure-policy",
            "--dest-tls-verify=false",
            f"oci:{oci_layout}",
            target,
        ]
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise SiteError(f"cannot push {oci_layout} as {name}: {done.stderr.strip().splitlines()[-1:]}")


def _check(directory: Path, munge_socket: Path | None) -> None:
    if os.geteuid() != 0:
        raise SiteError("a site needs root (mounts, a setuid launcher, munged's key): run it with sudo")
    missing = [tool for tool in ("munged", "docker-registry") if not shutil.which(tool, path=SYSTEM_PATH)]
    if missing:
        raise SiteError(f"this machine has no {', '.join(missing)}: run `make build`")
    longest = munge_socket or directory / "run" / "munge.socket"
    if len(os.fsencode(longest)) > SOCKET_PATH_LIMIT:
        raise SiteError(f"{longest} is too long for a socket ({SOCKET_PATH_LIMIT} bytes): choose a shorter directory")
    if unfit := [character for character in " :;\n" if character in str(directory)]:
        raise SiteError(f"{directory} contains {unfit[0]!r}, which udiRoot.conf cannot hold: choose another directory")
    for parent in reversed(directory.parents):
        if parent.is_dir() and not parent.stat().st_mode & stat.S_IXOTH:
            raise SiteError(
                f"{parent} may not be entered by other users, who must reach the site: choose a directory elsewhere"
                f" (such as /tmp/site) or chmod o+x {parent}"
            )


@contextmanager
def _locked(layout: Layout) -> Iterator[None]:
    """One command at a time changes a site; the kernel drops the lock when its holder dies."""
    layout.lock.parent.mkdir(parents=True, exist_ok=True)
    with layout.lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _load(layout: Layout) -> Record | None:
    try:
        return site_record.load(layout.record)
    except ValueError as error:
        raise SiteError(str(error)) from error


def _start(
    layout: Layout,
    old: Record | None,
    name: str,
    nodes: int,
    munge_socket: Path | None,
    locations: Mapping[str, str],
) -> Record:
    record = Record(
        name=name,
        registry_port=old.registry_port if old else 0,
        gateway_port=old.gateway_port if old else 0,
        munge_socket=munge_socket or layout.directory / "run" / "munge.socket",
        nodes=nodes,
        locations={**(old.locations if old else {}), **locations},
    )
    if not _answers(record.munge_socket):
        record = _start_munged(layout, record)
    record = _with_port(layout, record, "registry")
    record = _with_port(layout, record, "gateway")
    install(prefix=layout.directory, config=layout.udiroot)
    return record


def _start_cluster(layout: Layout, record: Record, spank: str, slurm_conf: Mapping[str, str]) -> None:
    plugin = wlm.install.build(prefix=layout.directory)
    Cluster.up(
        layout.directory / "slurm",
        record.munge_socket,
        record.nodes,
        private=(layout.directory / "var" / "udiMount", layout.directory / "var" / "loopMount"),
        plugstack=wlm.install.plugstack(plugin, layout.udiroot, spank),
        extra=slurm_conf,
    )


def _keep(layout: Layout, record: Record, *started: Daemon) -> Record:
    record = replace(record, daemons=record.daemons + started)
    site_record.save(record, layout.record)
    return record


def _is_whole(record: Record) -> bool:
    return bool(record.daemons) and all(item.process.alive() for item in record.daemons)


def _endpoints(record: Record) -> Endpoints:
    return Endpoints(
        record.name, record.registry_port, record.gateway_port, record.munge_socket, dict(record.locations)
    )


def _take_down(layout: Layout, record: Record) -> Record:
    cluster = layout.directory / "slurm"
    if (cluster / "cluster.json").exists():
        Cluster.at(cluster).down()
    for item in reversed(record.daemons):
        daemon.end(item)
    unmount_below(layout.directory)
    record = replace(record, daemons=(), nodes=0)
    site_record.save(record, layout.record)
    return record


def _answers(munge_socket: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(munge_socket))
        except OSError:
            return False
    return True


def _daemon_environment() -> dict[str, str]:
    """What daemons get: no variable of the caller's but the proxies, through which a gateway may have to pull."""
    proxies = {key: value for key, value in os.environ.items() if key.lower().endswith("_proxy")}
    return {"PATH": f"{Path(sys.executable).parent}:{SYSTEM_PATH}", "HOME": "/", "LANG": "C.UTF-8", **proxies}


def _start_munged(layout: Layout, record: Record) -> Record:
    site_files.write_munge_key(layout)
    run, munge = layout.directory / "run", layout.directory / "munge"
    argv = [
        shutil.which("munged", path=SYSTEM_PATH) or "munged",
        "--foreground",
        "--force",  # munged doubts paths below directories that others may write to, such as /tmp
        f"--socket={record.munge_socket}",
        f"--key-file={layout.munge_key}",
        f"--pid-file={run / 'munged.pid'}",
        f"--seed-file={munge / 'munged.seed'}",
        f"--log-file={munge / 'munged.log'}",
        "--num-threads=4",
    ]
    with undisturbed():
        started = daemon.start("munged", argv, log=layout.log("munged"), environment=_daemon_environment())
        kept = _keep(layout, record, started)
    daemon.wait_ready(started, lambda: _answers(record.munge_socket))
    return kept


def _with_port(layout: Layout, record: Record, name: str) -> Record:
    """Start the registry or the gateway on its last port, or on another one when a stranger has that."""
    for attempt in range(1, ATTEMPTS + 1):
        last = record.registry_port if name == "registry" else record.gateway_port
        with reserve(last if attempt == 1 else None) as port:
            if name == "registry":
                record = replace(record, registry_port=port.number)
            else:
                record = replace(record, gateway_port=port.number)
            site_files.write(layout, _endpoints(record))
            try:
                return _start_listening(layout, record, name, port.number)
            except StartFailed as error:
                if attempt == ATTEMPTS or "address already in use" not in error.log_text.lower():
                    raise
    raise AssertionError("the last attempt returns or raises")


def _start_listening(layout: Layout, record: Record, name: str, port: int) -> Record:
    with undisturbed():
        started = daemon.start(name, _argv(layout, name), log=layout.log(name), environment=_daemon_environment())
        kept = _keep(layout, record, started)
    try:
        daemon.wait_ready(started, lambda: daemon.listens(started, port))
    except StartFailed:
        daemon.end(started)
        raise
    return kept


def _argv(layout: Layout, name: str) -> list[str]:
    if name == "registry":
        return [shutil.which("docker-registry", path=SYSTEM_PATH) or name, "serve", str(layout.registry_config)]
    return [str(Path(sys.executable).parent / "shifter-gateway"), "--config", str(layout.imagemanager)]
