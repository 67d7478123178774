"""The manual pages say what the programs take, no less and no more, and render without a warning."""

import re
import subprocess
from pathlib import Path

import pytest

from runtime import prepare_mpi
from runtime.help import USAGE
from runtime.shifterimg_usage import OPTIONS, VERBS
from tests.requires import requires

PAGES = Path(__file__).parents[2] / "docs" / "man"


def plain(page: str) -> str:
    """A page's source without its markup."""
    text = (PAGES / page).read_text().replace("\\-", "-")
    return re.sub(r"\\f.|\"", "", text)


def long_options(text: str) -> set[str]:
    return set(re.findall(r"(?<![\w-])--([a-z][a-z-]+)", text))


def test_shifterimgs_page_has_every_verb_and_every_option() -> None:
    text = plain("shifterimg.1")
    headings = set(re.findall(r"^\.TP\n\.B[RI]? (\w+)", text[: text.index(".SH OPTIONS")], re.MULTILINE))
    assert headings == set(VERBS)
    assert long_options(text) == set(OPTIONS)


def test_shifters_page_has_every_option_of_its_help() -> None:
    assert long_options(plain("shifter.1")) - {"module"} == long_options(USAGE) - {"module"}


def test_prepare_mpis_page_has_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    said = ""
    for verb in ("collect", "check"):
        with pytest.raises(SystemExit):
            prepare_mpi.main([verb, "--help"])
        said += capsys.readouterr().out
    assert long_options(plain("prepare-mpi.8")) == long_options(said) - {"help"}


@requires("man")
@pytest.mark.parametrize("page", sorted(path.name for path in PAGES.iterdir()))
def test_a_page_renders_without_a_warning(page: str) -> None:
    command = ["man", "--warnings=all", "-E", "UTF-8", "-l", PAGES / page]
    done = subprocess.run(command, capture_output=True, text=True, env={"PATH": "/usr/bin:/bin", "MANWIDTH": "80"})
    assert (done.returncode, done.stderr) == (0, "")
    assert "NAME" in done.stdout
