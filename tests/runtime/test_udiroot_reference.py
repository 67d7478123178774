"""The reference of udiRoot.conf is the parser's own table, in three forms."""

import re
from pathlib import Path

import pytest

from runtime import udiroot
from runtime.udiroot_reference import EXAMPLES, FILES, KINDS, example

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", sorted(FILES))
def test_what_people_read_is_what_the_parser_knows(name: str) -> None:
    assert (ROOT / name).read_text() == FILES[name](), "run: python -m runtime.udiroot_reference"


def test_the_example_is_a_configuration() -> None:
    site = udiroot.parse(example(), "udiRoot.conf.example")
    assert (site.system, site.udi_mount) == ("mycluster", "/var/udiMount")
    assert site.modules == ()


def test_every_commented_line_of_the_example_could_be_used() -> None:
    text = re.sub(r"^#(?=\w+=)", "", example(), flags=re.MULTILINE)
    site = udiroot.parse(text, "udiRoot.conf.example")
    assert [module.name for module in site.modules] == ["cvmfs", "mpich"]
    assert {line.partition("=")[0] for line in text.splitlines() if re.match(r"\w+=", line)} >= {
        key.name for key in udiroot.KEYS if not key.deprecated
    }


def test_every_kind_of_value_is_explained_and_every_example_has_its_key() -> None:
    kinds = {key.kind for key in (*udiroot.KEYS, *udiroot.MODULE_KEYS)}
    assert {kind for kind in kinds if "|" not in kind} <= set(KINDS)
    assert set(EXAMPLES) <= {key.name for key in udiroot.KEYS}
