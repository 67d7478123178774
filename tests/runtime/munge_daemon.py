"""A munged of a test's own, with its own key and socket, and what its credentials say (by `unmunge`)."""

import secrets
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Opened:
    """What a credential carries: the payload and the ids that munged saw."""

    payload: bytes
    uid: int
    gid: int


@dataclass(frozen=True)
class MungeDaemon:
    socket: Path

    def open(self, credential: str) -> Opened:
        """Decode a credential; fails the test when munged refuses it."""
        done = subprocess.run(
            ["unmunge", "-S", self.socket, "-k", "UID,GID", "-N"], input=credential.encode(), capture_output=True
        )
        assert done.returncode == 0, done.stderr + done.stdout
        fields, _, payload = done.stdout.partition(b"\n\n")
        numbers = {line.split(b":")[0]: line.split(b":")[1].strip() for line in fields.splitlines()}
        return Opened(payload, int(numbers[b"UID"]), int(numbers[b"GID"]))


@contextmanager
def running() -> Iterator[MungeDaemon]:
    """Start munged in a directory of its own that others may enter, and end it; it ends with us even if we are killed."""
    directory = Path(tempfile.mkdtemp(prefix="shifter-munge-", dir="/tmp"))
    directory.chmod(0o755)
    key = directory / "munge.key"
    key.write_bytes(secrets.token_bytes(128))
    key.chmod(0o400)
    try:
        with serving(directory) as address:
            yield MungeDaemon(address)
    finally:
        shutil.rmtree(directory)


@contextmanager
def serving(directory: Path) -> Iterator[Path]:
    """A munged with the key, and at the socket, that `directory` holds; ended after. The socket."""
    address = directory / "munge.socket"
    options = ["--key-file", directory / "munge.key", "--log-file", directory / "munged.log"]
    options += ["--pid-file", directory / "munged.pid", "--seed-file", directory / "seed"]
    command = ["setpriv", "--pdeathsig", "TERM", "munged", "--foreground", "-S", address, *options]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as daemon:
        try:
            while not _listens(address):
                with suppress(subprocess.TimeoutExpired):
                    daemon.wait(0.01)
                    raise AssertionError(f"munged ended: {(directory / 'munged.log').read_text()}")
            yield address
        finally:
            daemon.terminate()


def _listens(address: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as connection:
        return connection.connect_ex(str(address)) == 0
