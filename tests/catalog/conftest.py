"""Fixtures of the pull pipeline's tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.catalog.gateway_fixture import minter, munged, open_gateway, site
from tests.catalog.registry_fixture import LiveRegistry, Puller, running_registry
from tests.requires import need

__all__ = ["live_registry", "minter", "munged", "open_gateway", "puller", "site"]


@pytest.fixture(scope="session")
def live_registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveRegistry]:
    """A real registry, shared by the tests of a worker process: each uses repository names of its own."""
    need("docker-registry")
    from sim.ports import reserve

    with reserve() as port:
        yield from running_registry(tmp_path_factory.mktemp("registry"), port.number)


@pytest.fixture
def puller(tmp_path: Path, live_registry: LiveRegistry) -> Puller:
    return Puller(tmp_path, live_registry.url)
