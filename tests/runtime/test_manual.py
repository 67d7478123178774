"""The manual pages say what the programs take, no less and no more, and render without a warning."""

import argparse
import re
import subprocess
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import cas.fasthash
import catalog.admin
import catalog.gateway
import sim.cli
from runtime import install, prepare_mpi, setuproot, unsetuproot
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


class Parser(Exception):
    """A program's parser, thrown at the moment when it would parse."""


def parser_of(main: Callable[[list[str]], int], monkeypatch: pytest.MonkeyPatch) -> argparse.ArgumentParser:
    def caught(parser: argparse.ArgumentParser, *ignored: object) -> None:
        raise Parser(parser)

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", caught)
    with pytest.raises(Parser) as thrown:
        main([])
    found = thrown.value.args[0]
    assert isinstance(found, argparse.ArgumentParser)
    return found


def commands(parser: argparse.ArgumentParser, before: str = "") -> Iterator[tuple[str, argparse.ArgumentParser]]:
    """Each command that can be typed, such as `store gc`, with its own parser."""
    below = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    if not below and before:
        yield before, parser
    for action in below:
        for name, inner in action.choices.items():
            yield from commands(inner, f"{before} {name}".strip())


def own_options(parser: argparse.ArgumentParser) -> set[str]:
    """The long options of a parser, without those of its commands."""
    return {text[2:] for action in parser._actions for text in action.option_strings if text[:2] == "--"} - {"help"}


@pytest.mark.parametrize(
    ("page", "main"),
    [("shifter-admin.8", catalog.admin.main), ("shifter-sim.1", sim.cli.main)],
)
def test_a_page_has_every_command_each_with_every_option(
    page: str, main: Callable[[list[str]], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    known = {name: own_options(parser) for name, parser in commands(parser_of(main, monkeypatch))}
    section = plain(page).partition(".SH COMMANDS\n")[2].partition("\n.SH ")[0]
    told = {}
    for entry in re.split(r"^\.TP\n(?=\.B [a-z])", section, flags=re.MULTILINE)[1:]:
        heading = re.sub(r" [A-Z\[].*", "", entry.splitlines()[0].removeprefix(".B "))
        told[heading] = set(re.findall(r"^\.B --([a-z-]+)", entry, re.MULTILINE))
    assert told == known


@pytest.mark.parametrize(
    ("page", "main"),
    [("fasthash.1", cas.fasthash.main), ("shifter-gateway.8", catalog.gateway.main)],
)
def test_a_page_has_every_option_of_a_program_without_commands(
    page: str, main: Callable[[list[str]], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert long_options(plain(page)) == own_options(parser_of(main, monkeypatch))


def test_setuproots_page_has_every_option_of_its_help() -> None:
    def options(text: str) -> set[str]:
        return set(re.findall(r"(?<![\w-])(--[a-z]+|-[a-zA-Z])\b", text)) - {"-h", "--help", "--version"}

    assert options(plain("setupRoot.8")) == options(setuproot.USAGE)
    assert options(plain("unsetupRoot.8")) == options(unsetuproot.USAGE) == set()


def test_every_command_has_a_page() -> None:
    project = tomllib.loads((PAGES.parents[1] / "pyproject.toml").read_text())
    nodes = {"shifter", *install.COMMANDS}
    assert {path.stem for path in PAGES.iterdir() if path.suffix in (".1", ".8")} == {
        *project["project"]["scripts"],
        *nodes,
    }


@requires("man")
@pytest.mark.parametrize("page", sorted(path.name for path in PAGES.iterdir()))
def test_a_page_renders_without_a_warning(page: str) -> None:
    command = ["man", "--warnings=all", "-E", "UTF-8", "-l", PAGES / page]
    done = subprocess.run(command, capture_output=True, text=True, env={"PATH": "/usr/bin:/bin", "MANWIDTH": "80"})
    assert (done.returncode, done.stderr) == (0, "")
    assert "NAME" in done.stdout
