"""Fixtures of the tests against a real site: one of the test's own, or one for a whole module where tests only add to it."""

import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sim import busybox_image, leftovers
from sim.site import Site
from tests.requires import need, need_root

NOBODY = 65534
SITE_TOOLS = ("munged", "docker-registry", "skopeo", "gcc", "mksquashfs", "tar2sqfs")


@pytest.fixture(scope="module")
def shared_directory() -> Iterator[Path]:
    """Like `public_directory`, for a module."""
    need_root()
    need(*SITE_TOOLS)
    directory = Path(tempfile.mkdtemp(prefix="shifter-test-", dir="/tmp"))
    directory.chmod(0o755)
    yield directory
    shutil.rmtree(directory)


@pytest.fixture(scope="module")
def shared_site(shared_directory: Path) -> Iterator[Site]:
    """A site that a module's tests share, with `busybox:1` in its registry; nothing may be left of it at the end."""
    with Site.up(shared_directory / "site") as site:
        push_busybox(site, "busybox:1")
        yield site
    assert leftovers.after(shared_directory) == []


@pytest.fixture
def up(public_directory: Path) -> Iterator[Callable[..., Site]]:
    """Bring sites up below the test's own directory, by name; they are taken down, and nothing may be left of them."""
    need_root()
    need(*SITE_TOOLS)
    started: list[Site] = []

    def bring(directory: str = "site", **options: object) -> Site:
        site = Site.up(public_directory / directory, **options)  # type: ignore[arg-type]  # options are Site.up's own
        started.append(site)
        return site

    yield bring
    for site in started:
        site.down()
    assert leftovers.after(public_directory) == []


def push_busybox(site: Site, name: str) -> None:
    """Put an image of this machine's busybox into the site's registry."""
    layout = site.directory / "oci" / "busybox"
    if not layout.exists():
        busybox_image.write(layout)
    site.push(f"{layout}:latest", name)
