"""shifterimg and the real gateway: what an ordinary user types and sees, from the first pull to the last removal."""

import json
import re
import shutil
import signal
import socket
import subprocess
from collections.abc import Callable

import pytest

from sim import site_record
from sim.process import Process
from sim.site import Site
from tests.requires import find, requires, requires_root
from tests.site.conftest import NOBODY, push_busybox

pytestmark = [requires_root, pytest.mark.site]
GAMES = 5  # another ordinary user, of every Debian
Up = Callable[..., Site]


def ask(site: Site, *words: str, uid: int = NOBODY, **options: object) -> subprocess.CompletedProcess[str]:
    return site.run_as(uid, ["shifterimg", *words], **options)  # type: ignore[arg-type]  # options are run_as's own


def good(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture
def name(shared_site: Site, request: pytest.FixtureRequest) -> str:
    """A tag in the registry that is this test's alone."""
    tag = f"test/{re.sub('[^a-z0-9]+', '-', request.node.name.lower())[:80]}:1"
    push_busybox(shared_site, tag)
    return tag


def test_a_pulled_image_is_looked_up_and_listed(shared_site: Site, name: str) -> None:
    lines = good(ask(shared_site, "pull", name)).splitlines()
    stamp = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d"
    assert all(re.fullmatch(rf"{stamp} Pulling Image: docker:{name}, status: [A-Z]+", line) for line in lines)
    assert lines[-1].endswith("READY")
    identifier = good(ask(shared_site, "lookup", name))
    assert re.fullmatch(r"[0-9a-f]{64}\n", identifier)
    listed = [line for line in good(ask(shared_site, "images")).splitlines() if line.rstrip().endswith(name)]
    assert len(listed) == 1
    assert re.fullmatch(rf"mycluster  docker     READY    {identifier[:10]}   {stamp} {name:<30}", listed[0])


def test_a_tag_that_the_registry_lacks_fails_with_the_registrys_words(shared_site: Site) -> None:
    done = ask(shared_site, "pull", "nosuch:1")
    assert done.returncode == 1
    assert re.fullmatch(r"shifterimg: docker:nosuch:1 failed: .*nosuch:1.*manifest unknown.*\n", done.stderr)
    queue = good(ask(shared_site, "queue"))
    assert re.search(r"^FAILURE +nosuch:1  .*manifest unknown", queue, re.MULTILINE)


def test_an_image_is_pulled_and_looked_up_by_digest(shared_site: Site, name: str) -> None:
    inspect = ["skopeo", "inspect", "--tls-verify=false", "--raw", f"docker://{shared_site.registry}/{name}"]
    manifest = subprocess.run(inspect, capture_output=True, check=True).stdout
    digest = subprocess.run(["sha256sum"], input=manifest, capture_output=True, check=True).stdout[:64].decode()
    pinned = f"{name.removesuffix(':1')}@sha256:{digest}"
    good(ask(shared_site, "pull", pinned))
    assert good(ask(shared_site, "lookup", pinned)).strip() == digest


def test_a_private_image_is_seen_by_those_named_and_by_nobody_else(shared_site: Site, name: str) -> None:
    good(ask(shared_site, "pull", "--user", "nobody", name))
    assert ask(shared_site, "lookup", name, uid=NOBODY).returncode == 0
    other = ask(shared_site, "lookup", name, uid=GAMES)
    assert (other.returncode, other.stdout) == (1, "")
    assert "no such image, or it is not visible to you" in other.stderr
    assert name not in good(ask(shared_site, "images", uid=GAMES))


def test_acl_opens_an_image_to_another_user_and_closes_it_again(shared_site: Site, name: str) -> None:
    good(ask(shared_site, "pull", "--user", "nobody", name))
    shown = good(ask(shared_site, "acl", name, "--user", "games"))
    assert "games (5)" in shown
    assert "nobody (65534)" in shown  # its owner stays
    assert ask(shared_site, "lookup", name, uid=GAMES).returncode == 0
    assert good(ask(shared_site, "acl", name, "--public")) == f"docker:{name}: public\n"
    assert ask(shared_site, "lookup", name, uid=1).returncode == 0


def test_another_user_changes_and_removes_nothing(shared_site: Site, name: str) -> None:
    good(ask(shared_site, "pull", name))
    for words in (["rm", name], ["acl", name, "--user", "games"]):
        refused = ask(shared_site, *words, uid=GAMES)
        assert refused.returncode == 3, refused.stdout + refused.stderr
        assert refused.stderr.count("\n") == 1
    assert ask(shared_site, "lookup", name).returncode == 0


def test_the_owner_removes_an_image(shared_site: Site, name: str) -> None:
    good(ask(shared_site, "pull", name))
    assert good(ask(shared_site, "rm", name)) == f"removed docker:{name}\n"
    assert ask(shared_site, "lookup", name).returncode == 1


def test_only_an_administrator_expires_and_brings_back(shared_site: Site, name: str) -> None:
    good(ask(shared_site, "pull", name))
    assert ask(shared_site, "expire", name).returncode == 3
    assert good(ask(shared_site, "expire", name, uid=0)) == f"expired docker:{name}\n"
    assert ask(shared_site, "lookup", name).returncode == 1
    assert ask(shared_site, "restore", name).returncode == 3
    assert good(ask(shared_site, "restore", name, uid=0)) == f"restored docker:{name}\n"
    assert ask(shared_site, "lookup", name).returncode == 0


@requires("mksquashfs", "skopeo")
@pytest.mark.parametrize("form", ["squashfs", "oci-layout", "docker-archive"])
def test_a_users_file_becomes_an_image_that_runs(shared_site: Site, form: str) -> None:
    push_busybox(shared_site, "busybox:1")
    layout = shared_site.directory / "oci" / "busybox"
    directory = shared_site.directory / "scratch" / form
    directory.mkdir()
    if form == "squashfs":
        file = directory / "tool.squashfs"
        (directory / "tree" / "bin").mkdir(parents=True)
        shutil.copy2(find("busybox") or "busybox", directory / "tree" / "bin" / "sh")
        command = ["mksquashfs", directory / "tree", file, "-quiet", "-no-progress", "-all-root"]
    elif form == "docker-archive":
        file = directory / "tool.tar"
        command = ["skopeo", "copy", "-q", "--insecure-policy", f"oci:{layout}:latest", f"docker-archive:{file}:tool:1"]
    else:
        file, command = directory / "layout", ["cp", "-r", layout, directory / "layout"]
    subprocess.run(command, check=True, capture_output=True)
    subprocess.run(["chown", "-R", f"{NOBODY}:{NOBODY}", directory], check=True)
    lines = good(ask(shared_site, "import", str(file), f"custom:{form}:1")).splitlines()
    assert re.search(rf"Importing Image: custom:{form}:1, status: READY$", lines[-1])
    assert re.search(rf"^mycluster  custom     READY .* {form}:1 *$", good(ask(shared_site, "images")), re.MULTILINE)
    run = shared_site.run_as(NOBODY, ["shifter", f"--image=custom:{form}:1", "/bin/sh", "-c", "echo it runs"])
    assert run.stdout == "it runs\n", run.stderr


def test_a_file_that_is_not_there_is_not_imported(shared_site: Site) -> None:
    refused = ask(shared_site, "import", "/no/such/tool.squashfs", "custom:absent:1")
    assert refused.returncode == 1
    assert re.fullmatch(r"shifterimg: .*/no/such/tool\.squashfs.*\n", refused.stderr), refused.stderr


def test_history_tells_who_pulled_what_and_the_list_as_it_was(shared_site: Site, name: str) -> None:
    good(ask(shared_site, "pull", name))
    told = json.loads(good(ask(shared_site, "history", name, "--json")))
    ready = next(event["time"] for event in told if event["action"] == "ready")
    good(ask(shared_site, "rm", name))
    told = json.loads(good(ask(shared_site, "history", name, "--json")))
    assert [event["action"] for event in told if event["action"] != "stage"] == ["pull", "ready", "removed"]
    assert {event["user"] for event in told if event["action"] in ("pull", "removed")} == {"nobody"}
    lines = good(ask(shared_site, "history", name)).splitlines()
    assert len(lines) == 3
    assert all(re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[+-]\d\d:\d\d nobody ", line) for line in lines)
    assert name not in good(ask(shared_site, "images"))
    assert name in good(ask(shared_site, "images", "--as-of", str(ready)))
    newest = json.loads(good(ask(shared_site, "history", name, "--json", "--limit", "1")))
    assert [event["action"] for event in newest] == ["removed"]


def test_history_of_a_private_image_is_its_users_alone(shared_site: Site, name: str) -> None:
    good(ask(shared_site, "pull", "--user", "nobody", name))
    assert name in good(ask(shared_site, "history", name))
    assert name not in good(ask(shared_site, "history", name, uid=GAMES))
    assert name not in good(ask(shared_site, "history", "--limit", "1000", uid=GAMES))
    assert name in good(ask(shared_site, "history", name, uid=0))  # an administrator
    bad = ask(shared_site, "history", "--since", "yesterday")
    assert bad.returncode == 1
    assert bad.stderr.startswith("shifterimg: since: 'yesterday' is not a time; write ")


def test_a_gateway_that_is_away_is_passed_over(shared_site: Site, name: str) -> None:
    good(ask(shared_site, "pull", name))
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))  # nobody listens
        away = f"http://127.0.0.1:{bound.getsockname()[1]}"
        for _ in range(6):  # they are asked in a random order
            two = configured(shared_site, imageGateway=f"{away} {shared_site.gateway}")
            good(ask(shared_site, "lookup", name, env=two))
        done = ask(shared_site, "lookup", name, env=configured(shared_site, imageGateway=away))
    assert (done.returncode, done.stdout) == (4, "")
    assert done.stderr == f"shifterimg: cannot reach the image gateway: {away}: connection refused\n"


def test_a_system_that_the_gateway_does_not_know_is_named(shared_site: Site) -> None:
    elsewhere = configured(shared_site, system="elsewhere")
    for words in (["images"], ["pull", "busybox:1"], ["queue"]):
        done = ask(shared_site, *words, env=elsewhere)
        assert done.returncode == 1
        assert re.fullmatch(r"shifterimg: .*elsewhere.*\n", done.stderr), done.stderr


def configured(site: Site, **changed: str) -> dict[str, str]:
    """Write a copy of the site's udiRoot.conf with some keys changed; the environment that names it."""
    lines = (site.directory / "etc" / "udiRoot.conf").read_text().splitlines()
    kept = [line for line in lines if line.partition("=")[0].strip() not in changed]
    file = site.directory / "scratch" / "other.conf"
    file.write_text("\n".join([*kept, *(f"{key}={value}" for key, value in changed.items())]) + "\n")
    return {"SHIFTER_UDIROOT_CONF": str(file)}


def test_a_pull_survives_a_gateway_that_is_killed_and_comes_back(up: Up) -> None:
    site = up()
    push_busybox(site, "slow:1")
    registry, gateway = (daemon_of(site, name) for name in ("registry", "gateway"))
    registry.send(signal.SIGSTOP)  # so that the pull is under way as long as we want
    environment = {**site.environment(), "PATH": f"{site.bin}:/usr/bin:/bin"}
    pull = subprocess.Popen(
        ["shifterimg", "pull", "slow:1"], executable=site.bin / "shifterimg", user=NOBODY, env=environment, cwd="/",
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert pull.stdout is not None
    first = pull.stdout.readline()
    assert "status: " in first
    gateway.send(signal.SIGKILL)
    while "does not answer, trying again" not in pull.stdout.readline():
        pass
    registry.send(signal.SIGCONT)
    up()  # the same directory: what had died is started again
    out, err = pull.communicate(timeout=60)
    assert pull.returncode == 0, out + err
    assert out.rstrip().endswith("status: READY")


def daemon_of(site: Site, name: str) -> Process:
    record = site_record.load(site.directory / "run" / "site.json")
    assert record is not None
    return next(daemon.process for daemon in record.daemons if daemon.name == name)
