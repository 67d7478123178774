"""Takes finished images to a platform whose image directory is on other machines, by ssh and scp.

Objects are sent once, and go on where a broken connection stopped; each is checked on the far side against its SHA-256
before it gets its name, so a node never sees half a file. Record, `.meta` and link follow, each renamed into place. The hosts
of a platform share one file system: the first that answers is used. Needs of the far side a shell and coreutils.
"""

from __future__ import annotations

import hashlib
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path

from catalog.config import Platform, Ssh
from catalog.failure import PullFailed
from catalog.record import Image

_CONNECT = 10  # seconds for a connection to be made
_ALIVE = 15  # seconds of silence after which the far side is asked whether it still lives
_MISSED = (
    4  # such questions without an answer end the connection: else a machine that dies would hold the pull for ever
)
_PIECE = 1 << 20
_NO_CONNECTION = 255  # ssh(1): its own failure, as opposed to the command's


class Away(PullFailed):
    """None of a platform's hosts answers."""


class _Unreachable(Exception):
    pass


def deliver(platform: Platform, directory: Path, image: Image, file: Path) -> None:
    """Makes `image` visible on `platform`: `file` is its object below the local `directory`. Idempotent.

    Raises PullFailed; Away with the hosts and what they said.
    """
    remote = platform.image_dir
    relative = file.relative_to(directory)
    records = [directory / f"{image.id}.{suffix}" for suffix in ("json", "meta")]
    link = f"{image.id}.{image.format}"

    def steps(ssh: Ssh, host: str) -> None:
        _send_object(ssh, host, file, remote / relative)
        for record in records:
            _send_record(ssh, host, record, remote / record.name)
        fresh = shlex.quote(str(remote / f".{link}.new"))
        _run(
            ssh,
            host,
            f"ln -sfn {shlex.quote(str(relative))} {fresh} && mv -T {fresh} {shlex.quote(str(remote / link))}",
        )

    _on_a_host(platform, steps)


def withdraw(platform: Platform, image_id: str) -> None:
    """Takes an image out of the nodes' sight; its object stays until gc. Raises as `deliver`."""
    paths = " ".join(
        shlex.quote(str(platform.image_dir / f"{image_id}.{suffix}"))
        for suffix in ("squashfs", "erofs", "json", "meta")
    )

    def steps(ssh: Ssh, host: str) -> None:
        _run(ssh, host, f"rm -f {paths}")

    _on_a_host(platform, steps)


def _on_a_host(platform: Platform, steps: Callable[[Ssh, str], None]) -> None:
    assert platform.ssh is not None
    said = []
    for host in platform.ssh.hosts:
        try:
            steps(platform.ssh, host)
            return
        except _Unreachable as error:
            said.append(f"{host}: {error}")
    raise Away(f"cannot reach {platform.name}: {'; '.join(said)}")


def _send_object(ssh: Ssh, host: str, file: Path, target: Path) -> None:
    """Copies `file` unless it is there, going on at the byte where an earlier try ended."""
    quoted, folder = shlex.quote(str(target)), shlex.quote(str(target.parent))
    part = shlex.quote(str(target.with_name(f".{target.name}.part")))
    found = _run(
        ssh, host, f"mkdir -p {folder} && if [ -e {quoted} ]; then echo there; else stat -c %s {part} || echo 0; fi"
    )
    if found == "there":
        return
    size = file.stat().st_size
    done = int(found) if found.isdigit() and int(found) <= size else 0
    _stream(ssh, host, file, done, f"cat {'>>' if done else '>'} {part} && sync {part}")
    expected = _sha256(file)
    arrived = _run(ssh, host, f"sha256sum {part}").partition(" ")[0].lstrip("\\")
    if arrived != expected:
        _run(ssh, host, f"rm -f {part}")
        raise PullFailed(f"the copy of the image on {host} is not what was sent; pull again")
    _run(ssh, host, f"chmod 0444 {part} && mv -T {part} {quoted} && sync {folder}")


def _send_record(ssh: Ssh, host: str, record: Path, target: Path) -> None:
    fresh = target.with_name(f".{target.name}.new")
    _scp(ssh, host, record, fresh)
    quoted = shlex.quote(str(fresh))
    _run(ssh, host, f"chmod 0644 {quoted} && mv -T {quoted} {shlex.quote(str(target))}")


def _stream(ssh: Ssh, host: str, file: Path, offset: int, command: str) -> None:
    with file.open("rb") as source:
        source.seek(offset)
        done = subprocess.run(_ssh(ssh, host, command), stdin=source, capture_output=True)
    _judge(done, host)


def _run(ssh: Ssh, host: str, command: str) -> str:
    done = subprocess.run(_ssh(ssh, host, command), stdin=subprocess.DEVNULL, capture_output=True)
    return _judge(done, host)


def _scp(ssh: Ssh, host: str, source: Path, target: Path) -> None:
    options = [*_options(ssh, ssh.scp_options), "-P", str(ssh.port), "-q"]
    done = subprocess.run(
        ["scp", *options, "--", str(source), f"{ssh.username}@{host}:{target}"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
    )
    _judge(done, host)


def _judge(done: subprocess.CompletedProcess[bytes], host: str) -> str:
    if done.returncode == 0:
        return done.stdout.decode(errors="replace").strip()
    lines = done.stderr.decode(errors="replace").strip().splitlines()
    said = " ".join(lines[-1].split())[:300] if lines else f"status {done.returncode}"
    if done.returncode == _NO_CONNECTION:
        raise _Unreachable(said)
    raise PullFailed(f"copying to {host} failed: {said}")


def _ssh(ssh: Ssh, host: str, command: str) -> list[str]:
    return ["ssh", *_options(ssh, ssh.ssh_options), "-p", str(ssh.port), f"{ssh.username}@{host}", command]


def _options(ssh: Ssh, configured: tuple[str, ...]) -> list[str]:
    # BatchMode: a question for a password would wait for ever. Of an option that stands twice, ssh takes the first: so
    # the site's come before our times.
    options = ["-o", "BatchMode=yes", *configured, "-o", f"ConnectTimeout={_CONNECT}"]
    options += ["-o", f"ServerAliveInterval={_ALIVE}", "-o", f"ServerAliveCountMax={_MISSED}"]
    return [*options, "-i", str(ssh.key)] if ssh.key is not None else options


def _sha256(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as source:
        while piece := source.read(_PIECE):
            digest.update(piece)
    return digest.hexdigest()
