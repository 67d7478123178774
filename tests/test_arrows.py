"""The arrows between rooms (docs/architecture.md): nodes carry no wheels, and a room is understood without those above."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROOMS = ("cas", "catalog", "runtime", "wlm", "sim")
ROOMS_ALLOWED = {
    "cas": {"cas"},
    "catalog": {"catalog", "cas"},
    "runtime": {"runtime"},
    "wlm": {"wlm", "runtime"},
    "sim": set(ROOMS),
}
# None: any library. What a library brings along is its own matter.
LIBRARIES_ALLOWED: dict[str, set[str] | None] = {
    "cas": {"blake3"},
    "catalog": None,
    "runtime": set(),
    "wlm": set(),
    "sim": None,
}


def imports(source: Path) -> Iterator[tuple[int, str]]:
    """(line, top-level package) of every import in `source`, those inside functions too; relative ones name their room."""
    for node in ast.walk(ast.parse(source.read_text(), filename=str(source))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name.split(".")[0]
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                yield node.lineno, source.relative_to(ROOT).parts[0]
            else:
                yield node.lineno, (node.module or "").split(".")[0]
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in (
            "__import__",
            "importlib.import_module",
            "import_module",
        ):
            for argument in node.args[:1]:
                if isinstance(argument, ast.Constant) and isinstance(argument.value, str):
                    yield node.lineno, argument.value.split(".")[0]


def wrong_arrows(room: str, files: list[Path]) -> list[str]:
    wrong = []
    for file in files:
        for line, package in imports(file):
            if package in sys.stdlib_module_names or package in ROOMS_ALLOWED[room]:
                continue
            libraries = LIBRARIES_ALLOWED[room]
            if (
                package in ROOMS
                or package in ("tests", "bench")
                or (libraries is not None and package not in libraries)
            ):
                wrong.append(f"{file}:{line}: {room} may not import {package}")
    return wrong


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_only_what_its_arrows_allow(room: str) -> None:
    files = sorted((ROOT / room).rglob("*.py"))
    assert files, f"no files in {room}/: is this the repository's top?"
    assert wrong_arrows(room, files) == []


@pytest.mark.parametrize(
    ("room", "text"),
    [
        ("runtime", "import requests"),
        ("runtime", "def f():\n    from cas.store import Store"),
        ("cas", "import catalog.config"),
        ("cas", "import falcon"),
        ("catalog", "from runtime import plan"),
        ("wlm", "import importlib\nimportlib.import_module('sim.site')"),
        ("catalog", "from tests import requires"),
    ],
)
def test_a_wrong_arrow_is_found(room: str, text: str, tmp_path: Path) -> None:
    file = tmp_path / "wrong.py"
    file.write_text(text)
    assert len(wrong_arrows(room, [file])) == 1
