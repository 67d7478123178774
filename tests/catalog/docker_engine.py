"""A Docker engine of the test's own, and database images made from this machine's programs: nothing is downloaded.

The engine keeps everything below one directory and makes no network: containers use the host's, on free ports.
testcontainers starts and ends the containers.
"""

from __future__ import annotations

import io
import os
import select
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import docker
import pymongo
from testcontainers.core.container import DockerContainer
from testcontainers.core.wait_strategies import LogMessageWaitStrategy

from sim.ports import reserve
from tests.requires import find, lack, need, need_root


@contextmanager
def docker_engine() -> Iterator[docker.DockerClient]:
    """A dockerd that ends with the block, with all that it made; DOCKER_HOST names it meanwhile."""
    need_root()
    need("dockerd")
    directory = Path(tempfile.mkdtemp(prefix="shifter-docker-", dir="/tmp"))
    socket = f"unix://{directory}/docker.sock"
    log = directory / "log"
    before = {name: os.environ.get(name) for name in ("DOCKER_HOST", "TESTCONTAINERS_RYUK_DISABLED")}
    with log.open("wb") as output:
        daemon = subprocess.Popen(
            ["dockerd", "--host", socket, "--data-root", str(directory / "data"), "--exec-root", str(directory / "exec"),
             "--pidfile", str(directory / "pid"), "--storage-driver", "vfs", "--bridge", "none", "--iptables=false"],
            stdout=output, stderr=output, stdin=subprocess.DEVNULL,
        )  # fmt: skip
    try:
        _until_it_listens(directory / "docker.sock", daemon, log)
        # The reaper of testcontainers is an image of its own, which cannot be pulled; the engine's end reaps here.
        os.environ |= {"DOCKER_HOST": socket, "TESTCONTAINERS_RYUK_DISABLED": "true"}
        client = docker.DockerClient(base_url=socket)
        try:
            yield client
        finally:
            client.close()
    finally:
        for name, value in before.items():
            os.environ.pop(name, None) if value is None else os.environ.update({name: value})
        daemon.terminate()  # ends its containers and its containerd first
        daemon.wait()
        for line in Path("/proc/self/mounts").read_text().splitlines():
            if line.split()[1].startswith(
                f"{directory}/"
            ):  # the engine leaves the network namespace it gave containers
                subprocess.run(["umount", line.split()[1]], check=True)
        shutil.rmtree(directory)


@contextmanager
def contained_ferretdb(engine: docker.DockerClient) -> Iterator[str]:
    """FerretDB in a container that holds nothing else; yields its mongodb:// URI."""
    need("ferretdb")
    program = find("ferretdb")
    assert program is not None
    _import(engine, "shifter-test/ferretdb", [(Path(program), "/ferretdb")], ["/data"])
    with reserve() as port:
        port.release()
        uri = f"mongodb://127.0.0.1:{port.number}/"
        container = DockerContainer("shifter-test/ferretdb:latest")
        container.with_kwargs(network_mode="host").with_command(["/ferretdb", f"127.0.0.1:{port.number}", "/data"])
        with container:
            client: pymongo.MongoClient[dict[str, object]] = pymongo.MongoClient(uri, serverSelectionTimeoutMS=30000)
            client.admin.command("ping")  # waits until there is a server to select
            client.close()
            yield uri


@contextmanager
def contained_postgres(engine: docker.DockerClient) -> Iterator[str]:
    """This machine's PostgreSQL in a container; yields the URI of an empty database in it."""
    versions = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"))
    if not versions:
        lack("this machine has no PostgreSQL server: run `make build`")
    home = versions[-1].parent.parent
    busybox = find("busybox")
    if busybox is None:
        lack("this machine has no busybox: run `make build`")
    programs = [home / "bin" / name for name in ("postgres", "initdb", "pg_ctl")]
    trees = [home / "lib", Path("/usr/share/postgresql") / home.name, Path("/usr/share/postgresql-common")]
    trees += [Path("/usr/share/zoneinfo"), Path("/usr/lib/locale/C.utf8")]
    plain = [path for tree in trees for path in tree.rglob("*") if path.is_file()]
    libraries = _libraries([*programs, *(path for path in plain if path.suffix == ".so")])
    files = [(path, str(path)) for path in [*programs, *plain, *libraries]]
    _import(engine, "shifter-test/postgres", [*files, (Path(str(busybox)), "/bin/sh")], ["/data", "/tmp"])
    with reserve() as port:
        port.release()
        bin_directory = home / "bin"
        script = (
            f"{bin_directory}/initdb -D /data/db -A trust -U shifter --no-sync -E UTF8 --locale=C >/dev/null && "
            f"exec {bin_directory}/postgres -D /data/db -p {port.number} -k /tmp -h 127.0.0.1 -c fsync=off"
        )
        container = DockerContainer("shifter-test/postgres:latest").with_command(["/bin/sh", "-c", script])
        container.with_kwargs(network_mode="host", user="1:1")  # initdb refuses root
        container.waiting_for(LogMessageWaitStrategy("database system is ready to accept connections"))
        with container:
            yield f"postgresql://shifter:unused@127.0.0.1:{port.number}/postgres"


def _import(engine: docker.DockerClient, name: str, files: Sequence[tuple[Path, str]], directories: list[str]) -> None:
    """An image of one layer: `files` (where here, where there), and empty directories that anybody may write to."""
    whole = io.BytesIO()
    with tarfile.open(fileobj=whole, mode="w") as archive:
        parents = {str(parent): 0o755 for _, there in files for parent in Path(there).parents}
        for path, mode in sorted({"/etc": 0o755, **parents, **dict.fromkeys(directories, 0o1777)}.items()):
            member = tarfile.TarInfo("." + path)
            member.type, member.mode = tarfile.DIRTYPE, mode
            archive.addfile(member)
        passwd = b"root:x:0:0::/:/bin/sh\ndaemon:x:1:1::/:/bin/sh\n"
        member = tarfile.TarInfo("etc/passwd")
        member.size = len(passwd)
        archive.addfile(member, io.BytesIO(passwd))
        for here, there in dict.fromkeys(files):
            member = archive.gettarinfo(here.resolve(), there.lstrip("/"))
            member.type = tarfile.REGTYPE  # what are hard links here may not all be in the image
            member.size = here.stat().st_size
            with here.open("rb") as content:
                archive.addfile(member, content)
    engine.api.import_image_from_data(whole.getvalue(), repository=name, tag="latest")


def _libraries(programs: Iterable[Path]) -> list[Path]:
    """What the dynamic linker loads for these, the linker itself included."""
    found: set[Path] = set()
    for program in programs:
        lines = subprocess.run(["ldd", program], capture_output=True, text=True, check=False).stdout.split()
        found.update(Path(word) for word in lines if word.startswith("/"))
    return sorted(found)


def _until_it_listens(socket: Path, daemon: subprocess.Popen[bytes], log: Path) -> None:
    """Waits until the engine answers; raises AssertionError with its log when it ends instead."""
    descriptor = os.pidfd_open(daemon.pid)
    try:
        for _ in range(600):
            client = None
            try:
                client = docker.DockerClient(base_url=f"unix://{socket}")
                client.ping()
                return
            except (docker.errors.DockerException, OSError):
                ended, _, _ = select.select([descriptor], [], [], 0.1)
                if ended:
                    break
            finally:
                if client is not None:
                    client.close()
    finally:
        os.close(descriptor)
    raise AssertionError(f"the Docker engine does not answer: {log.read_text()[-2000:]}")
