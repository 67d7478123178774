"""A site in a directory: it comes up whole or not at all, serves, and goes down with exactly what it started."""

import json
import os
import signal
import socket
import stat
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from sim import leftovers, ports, site_record
from sim import site as site_module
from sim.process import Process
from sim.site import Site, SiteError
from tests.requires import requires, requires_root
from tests.site.conftest import NOBODY, push_busybox

pytestmark = [requires_root, pytest.mark.site]
Up = Callable[..., Site]


def shifter_sim(*arguments: str, umask: int = 0o022) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "sim.cli", *arguments]
    return subprocess.run(argv, capture_output=True, text=True, check=False, umask=umask)


def get(url: str) -> tuple[int, bytes]:
    with urllib.request.urlopen(url) as reply:
        return reply.status, reply.read()


def record(site: Site) -> site_record.Record:
    found = site_record.load(site.directory / "run" / "site.json")
    assert found is not None
    return found


def kill_everything(site: Site) -> None:
    for daemon in record(site).daemons:
        daemon.process.send(signal.SIGKILL)
        assert daemon.process.wait(5)


@contextmanager
def stranger(port: int) -> Iterator[None]:
    """Somebody else's server on `port`."""
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", port))
        listener.listen()
        yield


def test_a_site_that_is_up_serves_credentials_images_and_the_gateway_to_any_user(up: Up) -> None:
    site = up()
    assert get(f"http://{site.registry}/v2/")[0] == 200
    assert get(site.gateway + "/")[0] == 200
    coded = site.run_as(NOBODY, ["sh", "-c", "munge -n -S $MUNGE_SOCKET | unmunge -S $MUNGE_SOCKET"])
    assert "nobody" in coded.stdout, coded.stderr
    assert site.status() == {"munged": True, "registry": True, "gateway": True}


def test_files_are_readable_by_all_whatever_the_umask_but_keys_are_not(public_directory: Path) -> None:
    directory = public_directory / "site"
    try:
        started = shifter_sim("site", "up", "--dir", str(directory), umask=0o077)
        assert started.returncode == 0, started.stderr
        for readable in ("etc/imagemanager.json", "etc/udiRoot.conf", "etc/shifter_etc_files/passwd", "bin/shifterimg"):
            assert stat.S_IMODE((directory / readable).stat().st_mode) & 0o044 == 0o044, readable
        for private in ("munge/munge.key", "etc/registry.yml"):
            assert stat.S_IMODE((directory / private).stat().st_mode) == 0o600, private
        for entered in ("", "bin", "etc", "images", "libexec", "run", "var/udiMount"):
            assert stat.S_IMODE((directory / entered).stat().st_mode) & 0o055 == 0o055, entered
        launcher = (directory / "bin" / "shifter").stat()
        assert (launcher.st_uid, stat.S_IMODE(launcher.st_mode)) == (0, 0o4755)
        configuration = (directory / "etc" / "udiRoot.conf").stat()
        assert (configuration.st_uid, stat.S_IMODE(configuration.st_mode)) == (0, 0o644)
    finally:
        shifter_sim("site", "down", "--dir", str(directory))


def test_env_makes_a_shell_that_knows_the_site(up: Up) -> None:
    site = up()
    printed = shifter_sim("site", "env", "--dir", str(site.directory)).stdout
    values = "$SHIFTER_SITE $SHIFTER_REGISTRY $SHIFTER_GATEWAY $MUNGE_SOCKET"
    script = f"{printed}\necho {values}; command -v shifter; command -v shifterimg"
    shell = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=True).stdout.split()
    assert shell == [
        str(site.directory),
        site.registry,
        site.gateway,
        str(site.munge_socket),
        str(site.directory / "bin" / "shifter"),
        str(site.directory / "bin" / "shifterimg"),
    ]


def test_status_names_a_part_that_ended_and_up_mends_the_site(up: Up) -> None:
    site = up()
    whole = shifter_sim("site", "status", "--dir", str(site.directory))
    assert whole.returncode == 0
    assert site.gateway in whole.stdout
    registry = next(daemon for daemon in record(site).daemons if daemon.name == "registry")
    registry.process.send(signal.SIGKILL)
    registry.process.wait(5)
    broken = shifter_sim("site", "status", "--dir", str(site.directory))
    assert broken.returncode == 1
    assert [line.split()[:2] for line in broken.stdout.splitlines()[:3]] == [
        ["munged", "up"],
        ["registry", "ENDED"],
        ["gateway", "up"],
    ]
    assert all(up().status().values())


@requires("slurmctld", "slurmd", "srun")
def test_nodes_come_up_with_the_site_run_jobs_and_can_be_killed_and_started(up: Up) -> None:
    site = up(nodes=2)
    directory = str(site.directory)
    names = site.run_as(NOBODY, ["srun", "--nodes=2", "hostname"])
    assert sorted(names.stdout.split()) == ["n1", "n2"], names.stderr
    assert "node n2      idle" in shifter_sim("site", "status", "--dir", directory).stdout
    assert "SLURM_CONF" in shifter_sim("site", "env", "--dir", directory).stdout
    first = Process.of(site.cluster().pid("n2"))
    assert shifter_sim("site", "kill-node", "--dir", directory, "n2").returncode == 0
    assert not first.alive()
    assert shifter_sim("site", "start-node", "--dir", directory, "n2").returncode == 0
    assert site.cluster().pid("n2") != first.pid
    unknown = shifter_sim("site", "kill-node", "--dir", directory, "n9")
    assert (unknown.returncode, unknown.stderr) == (1, "shifter-sim: no node n9: this cluster has n1 to n2\n")


def test_two_sites_run_side_by_side_with_nothing_in_common(up: Up) -> None:
    one, two = up("one"), up("two", name="second")
    assert len({one.registry, two.registry, one.gateway, two.gateway}) == 4
    push_busybox(one, "only/here:1")
    assert "only/here" in get(f"http://{one.registry}/v2/_catalog")[1].decode()
    assert "only/here" not in get(f"http://{two.registry}/v2/_catalog")[1].decode()
    credential = one.run_as(NOBODY, ["sh", "-c", "munge -n -S $MUNGE_SOCKET"]).stdout
    foreign = two.run_as(NOBODY, ["sh", "-c", "unmunge -S $MUNGE_SOCKET"], input=credential)
    assert foreign.returncode != 0
    one.down()
    assert all(two.status().values())


def test_after_kill_9_of_everything_the_site_comes_up_again_with_its_images_and_ports(up: Up) -> None:
    site = up()
    push_busybox(site, "kept:1")
    kill_everything(site)
    again = up()
    assert (again.registry, again.gateway) == (site.registry, site.gateway)
    assert "kept" in get(f"http://{again.registry}/v2/_catalog")[1].decode()
    assert all(again.status().values())


def test_up_twice_is_one_site_and_another_name_is_refused(up: Up) -> None:
    site = up()
    daemons = record(site).daemons
    assert up() == site
    assert record(site).daemons == daemons
    with pytest.raises(SiteError, match=r"is up as mycluster.*take it down first"):
        up(name="other")


def test_two_simultaneous_ups_of_one_directory_make_one_site(public_directory: Path) -> None:
    argv = [sys.executable, "-m", "sim.cli", "site", "up", "--dir", str(public_directory / "site")]
    both = [subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    printed = [process.communicate(timeout=60)[0] for process in both]
    try:
        assert [process.returncode for process in both] == [0, 0]
        assert printed[0] == printed[1]
    finally:
        Site.take_down(public_directory / "site")


def test_down_ends_every_process_and_can_be_repeated(up: Up) -> None:
    site = up()
    site.down()
    assert leftovers.after(site.directory) == []
    site.down()
    gone = shifter_sim("site", "status", "--dir", str(site.directory))
    assert gone.returncode == 1
    assert (
        gone.stderr == f"shifter-sim: no site is up in {site.directory}: shifter-sim site up --dir {site.directory}\n"
    )


def test_down_spares_a_stranger_that_got_a_daemons_pid(up: Up) -> None:
    site = up()
    with subprocess.Popen(["sleep", "1000"], start_new_session=True) as bystander:
        try:
            before = record(site)
            now = Process.of(bystander.pid)
            aged = replace(before.daemons[0], process=replace(now, ticks=now.ticks - 1))
            site_record.save(replace(before, daemons=(*before.daemons, aged)), site.directory / "run" / "site.json")
            site.down()
            assert bystander.poll() is None
        finally:
            bystander.kill()


@pytest.mark.parametrize("named_by", ["site", "link"])
def test_down_unmounts_what_lies_below_the_directory(up: Up, public_directory: Path, named_by: str) -> None:
    (public_directory / "link").symlink_to("site")
    site = up(named_by)
    point = site.directory / "var" / "loopMount"
    subprocess.run(["mount", "-t", "tmpfs", "none", point], check=True)
    site.down()
    assert not os.path.ismount(point)


def test_a_gateway_that_cannot_start_is_explained_by_its_log_and_leaves_nothing(up: Up) -> None:
    site = up()
    site.down()
    file = site.directory / "etc" / "imagemanager.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "WorkerThreads": "many"}))
    with pytest.raises(SiteError) as raised:
        up()
    assert "gateway ended before it was ready" in str(raised.value)
    assert str(site.directory / "log" / "gateway.log") in str(raised.value)
    assert "WorkerThreads" in str(raised.value)
    assert leftovers.after(site.directory) == []


def test_a_configuration_that_a_person_changed_is_kept_and_gets_new_ports_when_the_old_ones_are_taken(up: Up) -> None:
    site = up()
    site.down()
    file = site.directory / "etc" / "imagemanager.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "PullUpdateTimeout": 7}))
    with stranger(int(site.registry.split(":")[1])), stranger(int(site.gateway.rpartition(":")[2])):
        again = up()
        assert again.registry != site.registry
        assert again.gateway != site.gateway
        assert all(again.status().values())
    written = json.loads(file.read_text())
    assert written["PullUpdateTimeout"] == 7
    assert written["Locations"]["site"]["url"] == f"http://{again.registry}"
    assert f"imageGateway={again.gateway}\n" in (site.directory / "etc" / "udiRoot.conf").read_text()


def test_a_port_that_is_taken_at_the_last_moment_is_replaced_by_another(
    up: Up, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ports.reserve() as port, stranger(port.number):
        given = [port]

        def reserve(wanted: int | None = None) -> ports.Port:
            return given.pop() if given else ports.reserve(wanted)

        monkeypatch.setattr(site_module, "reserve", reserve)
        site = up()
        assert site.registry != f"127.0.0.1:{port.number}"
        assert all(site.status().values())


def test_munged_listens_where_it_is_told_and_one_that_answers_there_is_shared(up: Up, public_directory: Path) -> None:
    munge_socket = public_directory / "munge.socket"
    first = up("first", munge_socket=munge_socket)
    assert first.munge_socket == munge_socket
    second = up("second", munge_socket=munge_socket)
    assert list(second.status()) == ["registry", "gateway"]
    second.down()
    assert first.run_as(NOBODY, ["munge", "-n", "-S", str(munge_socket)]).returncode == 0


def test_a_directory_that_users_cannot_reach_is_refused_by_name(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    with pytest.raises(SiteError, match="may not be entered by other users"):
        Site.up(closed / "site")


def test_a_directory_too_long_for_a_socket_is_refused(public_directory: Path) -> None:
    with pytest.raises(SiteError, match="too long for a socket"):
        Site.up(public_directory / ("x" * 100))


def test_without_root_it_says_so_in_one_line(public_directory: Path) -> None:
    child = os.fork()
    if child == 0:  # in a fork, so that the interpreter need not be reachable for nobody
        os.setuid(NOBODY)
        try:
            Site.up(public_directory / "site")
        except SiteError as error:
            os._exit(0 if "needs root" in str(error) else 1)
        os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.parametrize("action", ["env", "status", "down"])
def test_a_directory_without_a_site_is_named(action: str, public_directory: Path) -> None:
    done = shifter_sim("site", action, "--dir", str(public_directory))
    assert done.returncode == 1
    assert done.stderr.startswith("shifter-sim: ")
    assert str(public_directory) in done.stderr
    assert len(done.stderr.splitlines()) == 1
