"""docs/rest.md has every route and every method, and no other."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, cast

import pytest

from catalog.routes import routes

PAGE = Path(__file__).parents[2] / "docs" / "rest.md"
METHODS = ("get", "post", "delete", "put", "patch")
ELSEWHERE = {"/api/openapi.json", "/healthz", "/metrics"}  # told in words, not in a table of requests


class Anything:
    """A gateway of which the table of routes only keeps parts."""

    def __getattr__(self, _: str) -> Any:
        return Anything()


def served() -> set[str]:
    """`METHOD /path` of each route, system, type and tag as S, T, TAG."""
    found: set[str] = set()
    for template, resource in routes(cast(Any, Anything())).items():
        path = template.replace("{system}", "S").replace("{itype}", "T").replace("{tag:path}", "TAG")
        if path not in ELSEWHERE:
            found |= {f"{method.upper()} {path}" for method in METHODS if hasattr(resource, f"on_{method}")}
    return found


def documented() -> set[str]:
    text = PAGE.read_text()
    requests = re.findall(r"^\| (?:\*\*\+\*\* )?`([A-Z]+ /[^`]*)`", text, re.MULTILINE)
    return {request.partition("?")[0] for request in requests} - {"GET /"}


def test_every_route_is_documented_and_every_documented_route_is_served() -> None:
    assert documented() == served()


@pytest.mark.parametrize(
    "field", ["status", "error", "message", "userACL", "last_pull", "progress", "authorized_locations"]
)
def test_what_clients_insist_on_is_told(field: str) -> None:
    assert field in PAGE.read_text()
