"""Fixtures that every room's tests share: a directory others can reach, ports nobody else gets, tools that must exist."""

import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from sim.ports import reserve
from tests.requires import need, need_root

# A shell that starts the tests in the background lets them ignore Ctrl-C, and so would every program that they start.
for number in (signal.SIGINT, signal.SIGQUIT):
    if signal.getsignal(number) == signal.SIG_IGN:
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)


@pytest.fixture(autouse=True)
def _required_tools(request: pytest.FixtureRequest) -> None:
    for mark in request.node.iter_markers("requires"):
        need(*mark.args)
    if request.node.get_closest_marker("requires_root"):
        need_root()


@pytest.fixture
def public_directory() -> Iterator[Path]:
    """A fresh directory under /tmp, mode 0755 so that unprivileged users reach it (tmp_path is 0700); removed after."""
    directory = Path(tempfile.mkdtemp(prefix="shifter-test-", dir="/tmp"))
    directory.chmod(0o755)
    yield directory
    shutil.rmtree(directory)


@pytest.fixture
def free_port() -> Iterator[Callable[[], int]]:
    """A function; each call gives a TCP port that no other test gets until this one ends."""
    with ExitStack() as stack:
        yield lambda: stack.enter_context(reserve()).number
