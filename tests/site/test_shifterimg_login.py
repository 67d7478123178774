"""A private registry, a real one with passwords: login is what the registry says, and opens its images to their user."""

import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sim.site import Site
from tests.catalog.registry_fixture import LiveRegistry, running_registry
from tests.requires import requires, requires_root
from tests.site.conftest import NOBODY, push_busybox

pytestmark = [requires_root, pytest.mark.site, requires("docker-registry", "htpasswd", "skopeo")]
GAMES = 5
Up = Callable[..., Site]


@contextmanager
def with_password(directory: Path, port: int) -> Iterator[LiveRegistry]:
    """A registry that lets in me, with the password pass:word, and nobody else."""
    file = directory / "htpasswd"
    file.write_bytes(subprocess.run(["htpasswd", "-Bbn", "me", "pass:word"], check=True, capture_output=True).stdout)
    running = contextmanager(running_registry)
    with running(directory, port, f"auth: {{htpasswd: {{realm: here, path: {file}}}}}\n") as registry:
        yield registry


def test_login_is_what_the_registry_says_and_opens_private_images_to_their_user_alone(
    up: Up, tmp_path: Path, free_port: Callable[[], int]
) -> None:
    with with_password(tmp_path, free_port()) as registry:
        site = up(locations={"private": registry.url})
        push_busybox(site, "busybox:1")
        copy = ["skopeo", "copy", "-q", "--insecure-policy", "--dest-tls-verify=false", "--dest-creds", "me:pass:word"]
        source = f"oci:{site.directory}/oci/busybox:latest"
        subprocess.run([*copy, source, f"docker://{registry.address}/secret:1"], check=True, capture_output=True)
        home = site.directory / "scratch" / "home"
        home.mkdir()
        home.chmod(0o777)

        def ask(*words: str, typed: str | None = None, uid: int = NOBODY) -> subprocess.CompletedProcess[str]:
            mine = {"HOME": str(home)} if uid == NOBODY else {}
            return site.run_as(uid, ["shifterimg", *words], env=mine, input=typed)

        stranger = ask("pull", "private/secret:1")
        assert stranger.returncode == 1
        assert "log in with `shifterimg login`" in stranger.stderr

        wrong = ask("login", "private", typed="me\nwrong\n")
        assert wrong.returncode == 3
        assert wrong.stderr == "shifterimg: registry private does not accept the user name me with this password\n"
        assert not (home / ".udiRoot").exists()
        unknown = ask("login", "nowhere", typed="me\npass:word\n")
        assert unknown.returncode == 1
        assert "configured: private, site" in unknown.stderr

        right = ask("login", "private", typed="me\npass:word\n")
        assert (right.returncode, right.stderr) == (0, "")
        assert (home / ".udiRoot" / ".cred").read_text().startswith(f"{site.name}:private=MUNGE:")

        pulled = ask("pull", "--user", "nobody", "private/secret:1")
        assert pulled.returncode == 0, pulled.stderr
        assert site.run_as(NOBODY, ["shifter", "--image=private/secret:1", "true"]).returncode == 0
        assert ask("lookup", "private/secret:1", uid=GAMES).returncode == 1

        for file in [*(site.directory / "log").iterdir(), *(site.directory / "state").iterdir()]:
            assert b"pass:word" not in file.read_bytes(), file
