"""Database servers for tests, started and ended by them: PostgreSQL, and FerretDB, which speaks MongoDB's protocol."""

from __future__ import annotations

import os
import pwd
import select
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pymongo
from pymongo.errors import PyMongoError

from sim.ports import reserve
from tests.requires import find, lack, need, need_root


def _postgres_programs() -> Path:
    versions = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"))
    if not versions:
        lack("this machine has no PostgreSQL server: run `make build`")
    return versions[-1].parent


@dataclass(frozen=True)
class Postgres:
    """A PostgreSQL of the test's own. uri: of an empty database in it."""

    uri: str
    start: Callable[[], None]
    stop: Callable[[], None]


@contextmanager
def running_postgres() -> Iterator[Postgres]:
    """A fresh PostgreSQL on a free port, which the test may stop and start."""
    need_root()
    programs = _postgres_programs()
    account = pwd.getpwnam("postgres")
    directory = Path(tempfile.mkdtemp(prefix="shifter-postgres-", dir="/tmp"))
    os.chown(directory, account.pw_uid, account.pw_gid)
    data = directory / "data"

    def run(*command: str, check: bool = True) -> None:
        subprocess.run(
            command, user=account.pw_uid, group=account.pw_gid, extra_groups=[], cwd=directory, check=check,
            capture_output=True, env={"PATH": os.environ["PATH"], "LC_ALL": "C"},
        )  # fmt: skip

    control = str(programs / "pg_ctl")
    try:
        run(str(programs / "initdb"), "-D", str(data), "-A", "trust", "-U", "shifter", "--no-sync", "-E", "UTF8")
        with reserve() as port:
            options = f"-p {port.number} -k {directory} -h 127.0.0.1 -c fsync=off"

            def start() -> None:
                run(control, "-D", str(data), "-w", "-l", str(directory / "log"), "-o", options, "start")

            def stop() -> None:
                run(control, "-D", str(data), "-w", "-m", "immediate", "stop")

            port.release()
            start()
            try:
                yield Postgres(f"postgresql://shifter:unused@127.0.0.1:{port.number}/postgres", start, stop)
            finally:
                run(control, "-D", str(data), "-w", "-m", "immediate", "stop", check=False)
    finally:
        shutil.rmtree(directory)


@contextmanager
def postgres() -> Iterator[str]:
    """A fresh PostgreSQL on a free port; yields the URI of an empty database in it."""
    with running_postgres() as server:
        yield server.uri


@contextmanager
def ferretdb() -> Iterator[str]:
    """A fresh FerretDB with an SQLite file on a free port; yields its mongodb:// URI."""
    need("ferretdb")
    program = find("ferretdb")
    assert program is not None
    directory = Path(tempfile.mkdtemp(prefix="shifter-ferretdb-", dir="/tmp"))
    with reserve() as port:
        port.release()
        log = (directory / "log").open("wb")
        process = subprocess.Popen(
            [program, f"127.0.0.1:{port.number}", str(directory)],
            stdout=log, stderr=log, cwd=directory,
        )  # fmt: skip
        uri = f"mongodb://127.0.0.1:{port.number}/"
        try:
            _until_it_answers(uri, process, directory / "log")
            yield uri
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait()
            log.close()
            shutil.rmtree(directory)


def _until_it_answers(uri: str, process: subprocess.Popen[bytes], log: Path) -> None:
    descriptor = os.pidfd_open(process.pid)
    try:
        end = time.monotonic() + 30
        while time.monotonic() < end:
            client: pymongo.MongoClient[dict[str, object]] = pymongo.MongoClient(uri, serverSelectionTimeoutMS=200)
            try:
                client.admin.command("ping")
                return
            except PyMongoError:
                ended, _, _ = select.select([descriptor], [], [], 0.05)
                if ended:
                    break
            finally:
                client.close()
    finally:
        os.close(descriptor)
    raise AssertionError(f"FerretDB does not answer: {log.read_text()}")
