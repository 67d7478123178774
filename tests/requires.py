"""What a test needs from the machine, said where the test is: `@requires("mksquashfs", "munged")` or `requires_root`.

A missing tool skips the test on a person's machine, and fails it with CI=true: there the build installs everything, so
a skipped test would be a hole that nobody sees. Decide here only; a test never looks at CI itself.
"""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

BUILT = str(Path(__file__).parent.parent / "build" / "bin")
SYSTEM_DIRECTORIES = ("/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin")


def in_ci() -> bool:
    """Whether a missing tool is a failure: CI is set to something other than nothing, 0 or false."""
    return os.environ.get("CI", "").lower() not in ("", "0", "false")


def find(tool: str) -> str | None:
    """The path of `tool`: what `make test` built, else from PATH, else from the system's directories (sbin too)."""
    places = (BUILT, os.environ.get("PATH", os.defpath), *SYSTEM_DIRECTORIES)
    return shutil.which(tool, path=os.pathsep.join(places))


def lack(reason: str) -> None:
    """End the running test because the machine lacks something: skipped, or failed with CI=true."""
    if in_ci():
        pytest.fail(f"{reason} (CI=true: not skipped)", pytrace=False)
    pytest.skip(reason)


def need(*tools: str) -> None:
    """Like `requires`, for use inside a fixture or a test."""
    missing = [tool for tool in tools if find(tool) is None]
    if missing:
        lack(f"this machine has no {', '.join(missing)}: run `make build`")


def need_root() -> None:
    """End the running test unless it runs as root: mounts, setuid files and munged's key need it."""
    if os.geteuid() != 0:
        lack("needs root")


def requires(*tools: str) -> Callable[[Callable[..., object]], Callable[..., object]]:
    """Mark a test or a class as needing these programs: `@requires("mksquashfs", "munged")`."""
    mark: Callable[[Callable[..., object]], Callable[..., object]] = pytest.mark.requires(*tools)
    return mark


requires_root = pytest.mark.requires_root
