"""The library's conformance suite on database servers in containers, as a site runs them: started by testcontainers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from uuid import uuid4

import docker
import pytest
from eventsourcing.persistence import ApplicationRecorder
from eventsourcing.tests.persistence import ApplicationRecorderTestCase

from catalog.config import EventStoreChoice
from tests.catalog.docker_engine import contained_ferretdb, contained_postgres, docker_engine
from tests.catalog.test_stores import _LogCases

pytestmark = pytest.mark.xdist_group("docker")  # one engine serves all


@pytest.fixture(scope="module")
def engine() -> Iterator[docker.DockerClient]:
    with docker_engine() as client:
        yield client


@pytest.fixture(scope="module")
def uris(engine: docker.DockerClient) -> Iterator[dict[str, str]]:
    with ExitStack() as stack:
        yield {
            "postgresql": stack.enter_context(contained_postgres(engine)),
            "mongodb": stack.enter_context(contained_ferretdb(engine)),
        }


@pytest.fixture
def _contained(request: pytest.FixtureRequest, uris: dict[str, str]) -> None:
    kind = request.cls.kind
    request.instance.choice = EventStoreChoice(kind, uris[kind], f"t{uuid4().hex[:12]}")


@pytest.mark.usefixtures("_contained")
class TestPostgresInAContainer(_LogCases, ApplicationRecorderTestCase[ApplicationRecorder]):
    kind = "postgresql"


@pytest.mark.usefixtures("_contained")
class TestMongoInAContainer(_LogCases, ApplicationRecorderTestCase[ApplicationRecorder]):
    kind = "mongodb"

    def test_concurrent_no_conflicts(self) -> None:
        """Takes minutes on FerretDB, which has no index over lists; test_stores.py has the same, smaller."""
