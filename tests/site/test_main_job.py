"""The main job through the real programs: push, pull, run as an ordinary user; and the demonstration that shows it."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from sim.site import Site
from tests.requires import requires_root
from tests.site.conftest import NOBODY, push_busybox

pytestmark = [requires_root, pytest.mark.site]
Up = Callable[..., Site]


@pytest.fixture(scope="module")
def site(shared_site: Site) -> Site:
    """The module's site, with busybox:1 pulled."""
    pulled = shared_site.run_as(NOBODY, ["shifterimg", "pull", "busybox:1"])
    assert pulled.returncode == 0, pulled.stdout + pulled.stderr
    return shared_site


def shifter(site: Site, *arguments: str, input: str | None = None) -> subprocess.CompletedProcess[str]:
    return site.run_as(NOBODY, ["shifter", "--image=busybox:1", *arguments], input=input)


def test_a_pulled_image_is_listed_and_lies_under_images(site: Site) -> None:
    listed = site.run_as(NOBODY, ["shifterimg", "images"]).stdout
    assert re.search(r"^mycluster +docker +READY +[0-9a-f]{10} .* busybox:1 *$", listed, re.MULTILINE), listed
    identifier = site.run_as(NOBODY, ["shifterimg", "lookup", "busybox:1"]).stdout.strip()
    link = site.directory / "images" / f"{identifier}.squashfs"
    assert link.is_symlink()
    assert link.resolve().is_relative_to(site.directory / "images" / "cas")


def test_an_ordinary_user_runs_a_command_of_the_image_as_themselves(site: Site) -> None:
    assert 'NAME="BusyBox"' in shifter(site, "cat", "/etc/os-release").stdout
    assert shifter(site, "id", "-u").stdout == f"{NOBODY}\n"


@pytest.mark.parametrize(("command", "status"), [("exit 42", 42), ("kill -9 $$", -9), ("true", 0)])
def test_the_exit_status_is_the_commands(site: Site, command: str, status: int) -> None:
    assert shifter(site, "sh", "-c", command).returncode == status


def test_a_volume_is_written_in_the_container_and_read_outside(site: Site) -> None:
    volume = site.directory / "scratch" / "volume"
    volume.mkdir()
    volume.chmod(0o777)
    done = shifter(site, f"--volume={volume}:/data", "sh", "-c", "echo from inside > /data/note")
    assert done.returncode == 0, done.stderr
    assert (volume / "note").read_text() == "from inside\n"
    assert (volume / "note").stat().st_uid == NOBODY


def test_standard_input_reaches_the_command(site: Site) -> None:
    assert shifter(site, "wc", "-c", input="twelve bytes").stdout.strip() == "12"


def test_an_unknown_image_is_refused_with_one_line(site: Site) -> None:
    done = site.run_as(NOBODY, ["shifter", "--image=no/such:1", "true"])
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert "no/such:1" in done.stderr


def test_a_tag_that_the_registry_does_not_have_fails_the_pull_with_the_reason(site: Site) -> None:
    done = site.run_as(NOBODY, ["shifterimg", "pull", "absent:1"])
    assert done.returncode == 1
    assert "absent" in done.stdout + done.stderr


def test_history_says_who_pulled(site: Site) -> None:
    done = site.run_as(0, ["shifter-admin", "history", "--image", "busybox:1"], env=programs())
    assert done.returncode == 0, done.stderr
    assert "nobody" in done.stdout


def test_two_simultaneous_pulls_download_each_layer_once(up: Up) -> None:
    site = up()
    push_busybox(site, "once:1")
    log = site.log("registry")
    begin = log.stat().st_size
    environment = {**site.environment(), "PATH": f"{site.bin}:/usr/bin:/bin"}
    pulls = [
        subprocess.Popen(
            ["shifterimg", "pull", "once:1"], env=environment, user=user, group=user, stdout=subprocess.PIPE, text=True
        )
        for user in (NOBODY, 1)
    ]
    printed = [pull.communicate(timeout=60)[0] for pull in pulls]
    assert [pull.returncode for pull in pulls] == [0, 0], printed
    requests = re.findall(r'"GET /v2/once/blobs/(sha256:[0-9a-f]{64}) ', log.read_text()[begin:])
    assert requests, "the registry's log shows no download"
    assert sorted(requests) == sorted(set(requests))


def programs() -> dict[str, str]:
    return {"PATH": f"{Path(sys.executable).parent}:/usr/sbin:/usr/bin:/sbin:/bin"}


def demo(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "sim.cli", "demo", *arguments]
    environment = {**os.environ, **environment}
    return subprocess.run(argv, capture_output=True, text=True, check=False, timeout=120, env=environment)


def demo_directory(output: str) -> Path:
    found = re.search(r"site up --dir (\S+)", output)
    assert found, output
    return Path(found[1])


def test_the_demonstration_shows_each_step_and_leaves_nothing() -> None:
    done = demo()
    assert done.returncode == 0, done.stdout + done.stderr
    for shown in (
        "$ shifterimg pull busybox:latest",
        "$ shifter --image=busybox:latest cat /etc/os-release",
        'NAME="BusyBox"',
        "uid=",
        "written in the container",
        "left behind: no mount, no loop device, no process",
    ):
        assert shown in done.stdout
    assert not demo_directory(done.stdout).exists()


@pytest.mark.slurm
def test_the_demonstration_with_nodes_shows_a_job_on_them() -> None:
    done = demo("--nodes", "2")
    assert done.returncode == 0, done.stdout + done.stderr
    assert {line for line in done.stdout.splitlines() if re.match(r"n\d: NAME=", line)} == {
        'n1: NAME="BusyBox"',
        'n2: NAME="BusyBox"',
    }
    assert "no mount, no loop device, no process" in done.stdout


def test_the_demonstration_pulls_a_named_image_from_its_registry(up: Up) -> None:
    elsewhere = up("elsewhere")
    push_busybox(elsewhere, "library/alpine:latest")
    done = demo("--image", "hub.example/library/alpine:latest", "--location-url", f"http://{elsewhere.registry}")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "$ shifter --image=hub.example/library/alpine:latest id" in done.stdout


def test_the_demonstration_runs_the_image_as_the_user_who_called_sudo_and_keeps_a_named_directory(
    public_directory: Path,
) -> None:
    done = demo("--dir", str(public_directory / "site"), SUDO_UID="1")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("Commands marked $ run as daemon (uid 1), those marked # as root.\n")
    assert "uid=1(daemon)" in done.stdout
    assert f"kept: {public_directory}/site " in done.stdout
    assert (public_directory / "site" / "scratch" / "daemon" / "note").exists()


def test_a_failing_demonstration_says_why_and_leaves_nothing(up: Up) -> None:
    elsewhere = up("elsewhere")
    done = demo("--image", "hub.example/no/such:1", "--location-url", f"http://{elsewhere.registry}")
    assert done.returncode == 1
    assert "FAILED: shifterimg pull hub.example/no/such:1: exit status 1" in done.stderr
    assert "left behind: no mount, no loop device, no process" in done.stdout
    assert not demo_directory(done.stdout).exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_demonstration_takes_its_site_down(number: signal.Signals) -> None:
    argv = [sys.executable, "-u", "-m", "sim.cli", "demo"]
    with subprocess.Popen(
        argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    ) as run:
        assert run.stdout is not None
        output = ""
        for line in run.stdout:
            output += line
            if line.startswith("# skopeo"):
                os.killpg(run.pid, number)
                break
        output += run.stdout.read()
    assert run.returncode == 130, output
    assert "left behind: no mount, no loop device, no process" in output
    assert not demo_directory(output).exists()
