"""A job that waits knows its image by the identifier alone: its look-up keeps the file, whatever becomes of the tag."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from tests.catalog.gateway_fixture import ALICE, SYSTEM, Content, ImaginedRegistry, InProcess

DAY = 86400.0


@pytest.fixture
def site(open_gateway: Any) -> InProcess:
    found: InProcess = open_gateway(
        ImaginedRegistry({"bar": Content(), "foo": Content("other")}), ImageLeaseTime="2:00:00:00"
    )
    found.pulled("bar:1", ALICE)
    found.pulled("foo:1", ALICE)
    return found


def submit(site: InProcess, tag: str = "bar:1") -> str:
    """The identifier that a job's look-up gives."""
    path = f"/api/lookup/{SYSTEM}/docker/{tag}/"
    result = site._client.simulate_get(
        path, headers={"authentication": site.minter.credential(ALICE)}, query_string="lease=1"
    )
    return str(result.json["id"])


def remove(site: InProcess, tag: str = "bar:1") -> None:
    assert site.request("DELETE", f"/api/image/{SYSTEM}/docker/{tag}/", ALICE).status_code == 200


def files(site: InProcess, identifier: str) -> list[str]:
    """What nodes see of an image."""
    directory = site.gateway.configuration.platforms[SYSTEM].image_dir
    return sorted(path.suffix for path in directory.glob(f"{identifier}.*") if path.suffix != ".lease")


def age(site: InProcess, identifier: str, days: float) -> None:
    lease: Path = site.gateway.configuration.platforms[SYSTEM].image_dir / f"{identifier}.lease"
    begun = lease.stat().st_mtime - days * DAY
    os.utime(lease, (begun, begun))


def test_the_file_stays_for_the_job_and_goes_when_the_lease_has_run_out(site: InProcess) -> None:
    image = submit(site)
    there = files(site, image)
    remove(site)
    assert files(site, image) == there != []
    assert site.request("GET", f"/api/lookup/{SYSTEM}/docker/bar:1/", ALICE).status_code == 404
    age(site, image, 1.9)
    remove(site, "foo:1")
    assert files(site, image) == there
    site.pulled("foo:1", ALICE)
    age(site, image, 0.2)
    remove(site, "foo:1")
    assert files(site, image) == []
    assert list(site.gateway.configuration.platforms[SYSTEM].image_dir.glob("*.lease")) == []


def test_the_file_of_an_image_that_expires_stays_for_the_job(site: InProcess) -> None:
    image = submit(site)
    there = files(site, image)
    assert site.request("DELETE", f"/api/expire/{SYSTEM}/docker/bar:1/", 0).json["status"] is True
    assert files(site, image) == there != []
    assert site.request("GET", f"/api/lookup/{SYSTEM}/docker/bar:1/", ALICE).status_code == 404


def test_a_look_up_that_is_not_a_jobs_keeps_nothing(site: InProcess) -> None:
    image = site.request("GET", f"/api/lookup/{SYSTEM}/docker/bar:1/", ALICE).json["id"]
    remove(site)
    assert files(site, image) == []


def test_an_old_lease_does_no_harm_to_an_image_that_still_has_its_tag(site: InProcess) -> None:
    image = submit(site)
    there = files(site, image)
    age(site, image, 3)
    remove(site, "foo:1")
    assert files(site, image) == there != []
