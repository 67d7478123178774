"""The administrator's guide names every key that the configuration's reader knows, and every command and metric."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from catalog import admin
from catalog.conversion_options import ConversionOptions

ROOT = Path(__file__).parents[2]
GUIDE = (ROOT / "docs" / "administration.md").read_text()
NAMED = set(re.findall(r"`(?:shifter-admin )?([\w-]+)", GUIDE))


def keys() -> set[str]:
    """The keys in the reader's sources: arguments of a section's methods, and the tables of limits."""
    found: set[str] = set()
    for name in ("config.py", "config_pull.py"):
        text = (ROOT / "catalog" / name).read_text()
        found |= set(re.findall(r'\b(?:top|part|place)\.(?!ignored)\w+\(\s*"(\w+)"', text))
        for ignored in re.findall(r"\.ignored\(([^)]*)\)", text):
            found |= set(re.findall(r'"(\w+)"', ignored))
        found |= set(re.findall(r'"([A-Z]\w+)": "', text))
    return found


def test_there_are_keys_to_look_for() -> None:
    assert {"CacheDirectory", "imageDir", "LayerBytes", "sslcacert", "Broker"} <= keys()


def test_every_key_is_told() -> None:
    words = set(re.findall(r"\w+", GUIDE))
    assert keys() - words == set()


def test_every_metric_is_told() -> None:
    served = set(re.findall(r'"(shifter_\w+)"', (ROOT / "catalog" / "rest_health.py").read_text()))
    assert served - NAMED == set()


def test_every_command_that_it_names_exists(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        admin.main(["--help"])
    known = set(re.findall(r"^    ([a-z-]+) ", capsys.readouterr().out, re.MULTILINE))
    assert set(re.findall(r"shifter-admin ([a-z-]+)", GUIDE)) - known == set()


def test_its_example_of_the_converter_s_words_is_understood() -> None:
    (example,) = re.findall(r'`\{"squashfs": "([^"]+)"\}`', GUIDE)
    assert ConversionOptions(arguments=tuple(example.split())).squashfs().level == 5
