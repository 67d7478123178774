"""`shifter-admin store`, on a site whose image was really pulled: counts, checks, cleans, repairs, carries away and takes in."""

from __future__ import annotations

import io
import json
import os
import pty
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import blake3
import pytest

from cas.store import Store
from catalog import publish as publishing
from catalog.acl import PUBLIC
from catalog.admin import main
from catalog.application import Catalog, open_factory
from catalog.config import load
from catalog.pull import pull
from catalog.pull_job import options_for
from catalog.record import Image
from catalog.reference import Reference, RegistryReference
from tests.catalog.lying_registry import LyingRegistry, lying
from tests.catalog.registry_fixture import Watcher, build, file, gz, tar
from tests.requires import requires

pytestmark = requires("tar2sqfs")

IMAGE = build(gz(tar(file("base", random.Random(1).randbytes(100_000)))), gz(tar(file("top", b"1"))))
Admin = Callable[..., tuple[int, str, str]]


class Site:
    """A configuration, and an image of it in catalog and stores."""

    def __init__(self, directory: Path, registry: LyingRegistry) -> None:
        directory.mkdir(exist_ok=True)
        self.file = directory / "imagemanager.json"
        document = {
            "StateDirectory": str(directory / "state"),
            "CacheDirectory": str(directory / "cache"),
            "ExpandDirectory": str(directory / "expand"),
            "DefaultImageLocation": "site",
            "Locations": {"site": {"remotetype": "dockerv2", "url": registry.url}},
            "Platforms": {"cluster": {"accesstype": "local", "local": {"imageDir": str(directory / "images")}}},
        }
        self.file.write_text(json.dumps(document))
        self.configuration = load(self.file)
        (directory / "state").mkdir(exist_ok=True)
        self.layers = Store(directory / "cache", sync=False)
        self.directory = directory / "images"
        self.images = Store(self.directory / "cas", sync=False)

    def pull(self, *, anonymous: bool = True) -> Image:
        """Pulls docker:a:1 and puts it into the catalog."""
        platform = self.configuration.platforms["cluster"]
        location = self.configuration.locations["site"]
        options = options_for(self.configuration, platform)
        pulled = pull(
            RegistryReference("a", "1", None), location, platform, None, self.layers, self.images, Watcher(), options
        )
        image = Image(**{**vars(Image.of(pulled)), "anonymous": anonymous})
        catalog = Catalog(open_factory(self.configuration.store), time.time)
        try:
            reference = Reference("cluster", "docker", "a:1")
            catalog.change(reference, lambda it: it.tag_as(image, PUBLIC, time.time(), uid=7, user="ann"))
        finally:
            catalog.close()
        publishing.publish(self.directory, self.images, image, PUBLIC)
        return image

    def admin(self, capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
        capsys.readouterr()
        status = main(["--config", str(self.file), "store", *words])
        said = capsys.readouterr()
        return status, said.out, said.err


@pytest.fixture
def registry() -> Iterator[LyingRegistry]:
    with lying(IMAGE) as registry:
        yield registry


@pytest.fixture
def site(tmp_path: Path, registry: LyingRegistry) -> Site:
    return Site(tmp_path / "site", registry)


@pytest.fixture
def admin(site: Site, capsys: pytest.CaptureFixture[str]) -> Admin:
    return lambda *words: site.admin(capsys, *words)


def rot(store: Store, name: str) -> None:
    store.path(name).chmod(0o644)
    store.path(name).write_bytes(b"rotten")
    store.path(name).chmod(0o444)


def age(store: Store, seconds: float = 10 * 86400) -> None:
    for name in store.names():
        path = store.path(name)
        os.utime(path, (path.stat().st_mtime - seconds,) * 2)


def test_stats_count_by_kind_and_owner(site: Site, admin: Admin) -> None:
    image = site.pull()
    site.images.put_stream(io.BytesIO(b"nobody's"))
    layers, images = json.loads(admin("stats", "--json")[1])
    assert layers["by_kind"].keys() == {"layer", "manifest"}
    assert layers["by_kind"]["layer"][0] == layers["by_kind"]["manifest"][0] == 2
    assert images["by_kind"] == {"squashfs": [1, image.size], "unreferenced": [1, 8]}
    assert images["by_owner"] == {"7": [1, image.size]}
    assert images["dedup"] == 1.0
    status, table, _ = admin("stats")
    assert status == 0
    assert "uid 7" in table


def test_gc_takes_what_no_image_needs(site: Site, admin: Admin) -> None:
    image = site.pull()
    unwanted = site.images.put_stream(io.BytesIO(b"nobody's")).name
    for store in (site.layers, site.images):
        age(store)
    assert f"would remove 1 objects, {8} B" in admin("gc", "--dry-run")[1]
    assert site.images.contains(unwanted)
    assert admin("gc")[0] == 0
    assert not site.images.contains(unwanted)
    assert site.images.contains(image.object)
    assert len(list(site.layers.names())) == 4


def test_gc_keeps_what_nodes_can_see_even_if_the_catalog_knows_nothing(site: Site, admin: Admin) -> None:
    image = site.pull()
    (site.configuration.state_directory / "events.sqlite").unlink()
    (site.configuration.state_directory / "images.sqlite").unlink(missing_ok=True)
    age(site.images)
    admin("gc")
    assert site.images.contains(image.object)
    publishing.withdraw(site.directory, image.id)
    admin("gc")
    assert not site.images.contains(image.object)
    assert list((site.images.root / "conversions").iterdir()) == []


def test_a_budget_takes_layers_and_leaves_manifests(site: Site, admin: Admin) -> None:
    image = site.pull()
    age(site.layers)
    assert admin("gc", "--cache-limit", "1K")[0] == 0
    assert all(site.layers.find_sha256(digest) is None for digest in image.layers[:1])
    assert site.layers.find_sha256(image.id) is not None
    site.pull()  # the image file is still there


def test_fsck_finds_and_repairs(site: Site, admin: Admin) -> None:
    image = site.pull()
    assert admin("fsck") == (0, "", "sound\n")
    site.images.path(image.object).chmod(0o666)
    status, out, _ = admin("fsck")
    assert status == 1
    assert "has the mode 666, not 444" in out
    assert admin("fsck", "--repair")[0] == 0
    assert admin("fsck")[0] == 0


def test_scrub_fetches_again_what_the_registry_still_has(site: Site, admin: Admin) -> None:
    image = site.pull()
    layer = site.layers.find_sha256(image.layers[0])
    assert layer is not None
    for store, name in ((site.layers, layer), (site.images, image.object)):
        rot(store, name)
    status, out, err = admin("scrub")
    assert status == 0
    assert f"object {layer} is damaged: fetched again" in out
    assert f"object {image.object} is damaged: fetched again" in out
    for store, name in ((site.layers, layer), (site.images, image.object)):
        store.open_verified(name).close()
    assert "1 damaged" in err
    assert admin("scrub")[2].count(" 0 damaged") == 2


def test_scrub_shows_a_bar_on_a_terminal_and_none_elsewhere(site: Site) -> None:
    site.pull()
    command = [sys.executable, "-m", "catalog.admin", "--config", str(site.file), "store", "scrub"]
    leader, follower = pty.openpty()
    try:
        done = subprocess.run(
            command, stdout=subprocess.DEVNULL, stderr=follower, check=True, env={**os.environ, "TERM": "xterm"}
        )
        os.set_blocking(leader, False)
        shown = os.read(leader, 1 << 16)
    finally:
        os.close(leader)
        os.close(follower)
    assert done.returncode == 0
    assert b"scrub layers" in shown
    assert b"100%" in shown
    plain = subprocess.run(command, capture_output=True, check=True).stderr
    assert b"100%" not in plain
    assert b"0 damaged" in plain


def test_scrub_says_what_is_lost(site: Site, admin: Admin, registry: LyingRegistry) -> None:
    image = site.pull()
    rot(site.images, image.object)
    registry.image = build()
    registry.image.blobs.clear()
    status, out, _ = admin("scrub")
    assert status == 1
    assert "set aside; docker:a:1 cannot be pulled again: registry site" in out


def test_scrub_does_not_fetch_what_was_private(site: Site, admin: Admin) -> None:
    image = site.pull(anonymous=False)
    rot(site.images, image.object)
    assert "set aside; docker:a:1 is not public: pull it again" in admin("scrub")[1]


@pytest.mark.parametrize("trust", [(), ("--trusted",)], ids=["made anew", "as it is"])
def test_export_and_import_carry_an_image_to_another_site(
    site: Site,
    admin: Admin,
    tmp_path: Path,
    registry: LyingRegistry,
    capsys: pytest.CaptureFixture[str],
    trust: tuple[str, ...],
) -> None:
    image = site.pull()
    out = tmp_path / "carried"
    assert admin("export", "a:1", str(out))[0] == 0
    assert sorted(os.listdir(out)) == ["blobs", "image.squashfs", "index.json", "oci-layout", "shifter.json"]
    other = Site(tmp_path / "other", registry)
    registry.requests.clear()
    assert other.admin(capsys, "import", *trust, str(out))[:2] == (0, f"docker:a:1: {image.id}\n")
    assert registry.requests == []
    assert (other.directory / f"{image.id}.squashfs").read_bytes() == site.images.path(image.object).read_bytes()
    assert json.loads((other.directory / f"{image.id}.json").read_text())["public"] is True
    assert admin("export", "a:1", str(out))[2] == f"shifter-admin: {out} exists already: name a new directory\n"


def test_a_damaged_export_is_refused(
    site: Site, admin: Admin, tmp_path: Path, registry: LyingRegistry, capsys: pytest.CaptureFixture[str]
) -> None:
    site.pull()
    admin("export", "a:1", str(tmp_path / "carried"))
    with (tmp_path / "carried/image.squashfs").open("ab") as image:
        image.write(b"more")
    other = Site(tmp_path / "other", registry)
    status, _, err = other.admin(capsys, "import", "--trusted", str(tmp_path / "carried"))
    assert status == 1
    assert "image.squashfs is damaged" in err
    assert list(other.images.names()) == []


def test_a_forged_image_file_does_not_come_in_under_the_names_of_true_layers(
    site: Site, admin: Admin, tmp_path: Path, registry: LyingRegistry, capsys: pytest.CaptureFixture[str]
) -> None:
    """Else who gives an administrator a medium would decide what everybody gets who pulls these layers later."""
    image = site.pull()
    carried = tmp_path / "carried"
    admin("export", "a:1", str(carried))
    forged = b"hsqs with a present in it"
    (carried / "image.squashfs").write_bytes(forged)
    record = json.loads((carried / "shifter.json").read_text())
    record["image"].update(object=blake3.blake3(forged).hexdigest(), size=len(forged))
    (carried / "shifter.json").write_text(json.dumps(record))
    other = Site(tmp_path / "other", registry)
    assert other.admin(capsys, "import", str(carried))[0] == 0
    assert list(other.images.names()) == [image.object]


def test_an_export_with_the_file_of_another_image_is_refused_and_that_image_stays(
    site: Site, admin: Admin, tmp_path: Path
) -> None:
    image = site.pull()
    carried = tmp_path / "carried"
    admin("export", "a:1", str(carried))
    record = json.loads((carried / "shifter.json").read_text())
    record["image"]["object"] = "0" * 64
    (carried / "shifter.json").write_text(json.dumps(record))
    (site.images.root / "conversions" / record["key"]).unlink()  # as at a site that never converted these layers
    status, _, err = admin("import", "--trusted", str(carried))
    assert status == 1
    assert "image.squashfs is damaged" in err
    assert err.count("\n") == 1
    site.images.open_verified(image.object).close()
    assert os.listdir(site.images.root / "tmp") == []


@pytest.mark.parametrize("content", [None, b"", b"[]", b"5", b"{}", b'{"name": 1, "key": 2, "image": 3}', b"\xff"])
def test_what_is_no_export_is_called_so_in_one_line(
    site: Site, admin: Admin, tmp_path: Path, content: bytes | None
) -> None:
    site.pull()
    (tmp_path / "other").mkdir()
    if content is not None:
        (tmp_path / "other/shifter.json").write_bytes(content)
    status, _, err = admin("import", str(tmp_path / "other"))
    assert (status, err.count("\n")) == (1, 1)
    assert err.startswith(f"shifter-admin: {tmp_path}/other is no exported image: ")
    assert str(tmp_path) not in err.partition("is no exported image: ")[2]


def test_a_private_image_does_not_become_public_by_being_carried(
    site: Site, admin: Admin, tmp_path: Path, registry: LyingRegistry, capsys: pytest.CaptureFixture[str]
) -> None:
    site.pull(anonymous=False)
    admin("export", "a:1", str(tmp_path / "carried"))
    other = Site(tmp_path / "other", registry)
    status, _, err = other.admin(capsys, "import", str(tmp_path / "carried"))
    assert (status, "--public lets everybody" in err) == (1, True)
    assert other.admin(capsys, "import", "--public", str(tmp_path / "carried"))[0] == 0


def test_export_of_what_is_not_there(site: Site, admin: Admin, tmp_path: Path) -> None:
    site.pull()
    status, _, err = admin("export", "b:1", str(tmp_path / "x"))
    assert (status, err.startswith("shifter-admin: no image docker:b:1 on cluster")) == (1, True)
    for name in list(site.layers.names()):
        site.layers.delete(name)
    assert "is not in the cache any more: pull the image again" in admin("export", "a:1", str(tmp_path / "x"))[2]
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("scrub", "--rate", "0"), "'0' is no size"),
        (("scrub", "--rate=-5M"), "'-5M' is no size"),
        (("scrub", "--rate", "infG"), "'infG' is no size"),
        (("scrub", "--seconds", "nan"), "'nan' is no time"),
        (("gc", "--cache-limit", "-1"), "'-1' is no size"),
        (("gc", "--cache-limit", "5Q"), "'5Q' is no size"),
        (("gc", "--grace", "-1"), "'-1' is no time"),
        (("gc", "--grace", "inf"), "'inf' is no time"),
        (("gc", "--grace", "soon"), "'soon' is no time"),
    ],
)
def test_sizes_and_times_that_are_none(
    site: Site, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], reason: str
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--config", str(site.file), "store", *words])
    assert ended.value.code == 2
    assert reason in capsys.readouterr().err
