"""Starting and ending one daemon: readiness is the process's own socket, and an end takes its children along."""

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from sim import busybox_image, daemon, leftovers, mounts, ports
from tests.requires import requires, requires_root

SERVER = "import socket, sys; s = socket.create_server(('127.0.0.1', int(sys.argv[1]))); s.accept()"


def start(argv: list[str], tmp_path: Path) -> daemon.Daemon:
    return daemon.start("server", argv, log=tmp_path / "server.log", environment={"PATH": os.environ["PATH"]})


def test_a_daemon_is_ready_when_it_listens_itself_not_when_a_stranger_answers(tmp_path: Path) -> None:
    with ports.reserve() as port, socket.create_server(("127.0.0.1", port.number)):
        idle = start(["/bin/sleep", "1000"], tmp_path)
        try:
            assert not daemon.listens(idle, port.number)
            with pytest.raises(daemon.StartFailed, match=r"server was not ready after 0\.05 s"):
                daemon.wait_ready(idle, lambda: daemon.listens(idle, port.number), seconds=0.05)
        finally:
            daemon.end(idle)
    with ports.reserve() as port:
        server = start([sys.executable, "-c", SERVER, str(port.number)], tmp_path)
        try:
            daemon.wait_ready(server, lambda: daemon.listens(server, port.number))
        finally:
            daemon.end(server)


def test_a_daemon_that_ends_early_is_reported_with_the_last_lines_of_its_log(tmp_path: Path) -> None:
    failing = start(["/bin/sh", "-c", "seq 1 20; echo no such key: colour >&2; exit 3"], tmp_path)
    with pytest.raises(daemon.StartFailed) as raised:
        daemon.wait_ready(failing, lambda: False)
    lines = str(raised.value).splitlines()
    assert lines[0] == f"server ended before it was ready; read {tmp_path}/server.log; its last lines:"
    assert lines[-1] == "no such key: colour"
    assert "1" not in lines


def test_a_program_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(daemon.StartFailed, match="could not be started: /no/such/program: no such program"):
        start(["/no/such/program"], tmp_path)


@pytest.mark.parametrize("died_before", [False, True])
def test_end_takes_the_daemons_children_along_even_when_it_died_before(died_before: bool, tmp_path: Path) -> None:
    parent = start(["/bin/sh", "-c", "sleep 1000 & wait"], tmp_path)
    daemon.wait_ready(parent, lambda: len(list(daemon.session(parent.process.pid))) == 2)
    if died_before:
        parent.process.send(signal.SIGKILL)
        assert parent.process.wait(5)
    daemon.end(parent)
    assert list(daemon.session(parent.process.pid)) == []


def test_a_daemon_that_ignores_sigterm_is_killed(tmp_path: Path) -> None:
    stubborn = start(
        [sys.executable, "-c", "import signal; signal.signal(15, signal.SIG_IGN); signal.pause()"], tmp_path
    )
    ignores = lambda: int(status_field(stubborn.process.pid, "SigIgn"), 16) & (1 << 14) != 0  # noqa: E731 - used once
    daemon.wait_ready(stubborn, ignores)
    daemon.end(stubborn, seconds=0.2)
    assert not stubborn.process.alive()


def status_field(pid: int, name: str) -> str:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(line.split()[1] for line in lines if line.startswith(name + ":"))


def test_a_reserved_port_is_given_once_and_again_after_its_holder_was_killed() -> None:
    text = "from sim import ports; p = ports.reserve(); print(p.number, flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", text], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        number = int(holder.stdout.readline())
        with ports.reserve(number) as other:
            assert other.number != number
        holder.kill()
        holder.wait()
    with ports.reserve(number) as again:
        assert again.number == number


def test_a_hundred_reservations_differ() -> None:
    held = [ports.reserve() for _ in range(100)]
    assert len({port.number for port in held}) == 100
    for port in held:
        port.release()


@requires_root
def test_mounts_below_a_directory_are_undone_also_nested_ones_and_names_with_spaces(public_directory: Path) -> None:
    inner = public_directory / "with space"
    inner.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "none", inner], check=True)
    (inner / "nested").mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "none", inner / "nested"], check=True)
    assert leftovers.of_site(public_directory) != []
    assert mounts.unmount_below(public_directory) == [inner / "nested", inner]
    assert leftovers.of_site(public_directory) == []


def test_leftovers_name_a_process_by_its_command_line_but_not_a_neighbours(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "ab").mkdir()
    with subprocess.Popen(["tail", "-f", "/dev/null", tmp_path / "ab" / "x"], stderr=subprocess.DEVNULL) as process:
        try:
            assert leftovers.of_site(tmp_path / "a") == []
            assert [line.split(":")[0] for line in leftovers.of_site(tmp_path / "ab")] == [f"process {process.pid}"]
        finally:
            process.kill()


@requires("busybox")
def test_the_busybox_image_is_the_same_bytes_each_time_and_a_valid_layout(tmp_path: Path) -> None:
    for name in ("one", "two"):
        busybox_image.write(tmp_path / name)
    indexes = [(tmp_path / name / "index.json").read_bytes() for name in ("one", "two")]
    assert indexes[0] == indexes[1]
    [manifest] = json.loads(indexes[0])["manifests"]
    described = json.loads((tmp_path / "one" / "blobs" / manifest["digest"].replace(":", "/")).read_bytes())
    for blob in (described["config"], *described["layers"]):
        assert (tmp_path / "one" / "blobs" / blob["digest"].replace(":", "/")).stat().st_size == blob["size"]


def test_a_busybox_that_needs_libraries_or_is_absent_is_refused(tmp_path: Path) -> None:
    with pytest.raises(busybox_image.ImageNotMade, match="needs shared libraries: install busybox-static"):
        busybox_image.write(tmp_path / "image", busybox=Path("/bin/sh"))
    with pytest.raises(busybox_image.ImageNotMade, match="No such file or directory: install busybox-static"):
        busybox_image.write(tmp_path / "image", busybox=Path("/no/busybox"))
