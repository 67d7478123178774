"""Fixtures of the runtime's tests."""

from collections.abc import Iterator

import pytest

from tests.requires import need
from tests.runtime import munge_daemon
from tests.runtime.munge_daemon import MungeDaemon


@pytest.fixture(scope="session")
def munged() -> Iterator[MungeDaemon]:
    """A munged that these tests share: its credentials are real, its key is nobody else's."""
    need("munged", "unmunge")
    with munge_daemon.running() as daemon:
        yield daemon
