"""docs/slurm.md answers for every statement of the documentation's chapters: by tests that there are, or a word why not."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
REFERENCE = re.compile(r"`([\w/.]+): ([^`]+)`")


def rows() -> list[tuple[str, str]]:
    """(statement, what holds it) of each line of the table."""
    text = (ROOT / "docs" / "slurm.md").read_text().partition("statement by statement\n")[2]
    lines = [line.strip("| ") for line in text.splitlines() if line.startswith("| 6.")]
    return [(statement, held) for statement, _, held in (line.partition(" | ") for line in lines)]


def test_every_statement_names_tests_that_there_are_or_says_why_not() -> None:
    lacking = []
    for statement, held in rows():
        references = REFERENCE.findall(held)
        if not references and "not here" not in held:
            lacking.append(statement)
        for place, names in references:
            file = ROOT / (place if "/" in place else f"tests/site/test_slurm_{place}.py")
            text = file.read_text() if file.exists() else ""
            lacking += [f"{statement}: {name}" for name in names.split(", ") if f"\ndef test_{name}" not in text]
    assert lacking == []


def test_every_section_is_answered_for() -> None:
    sections = {statement.split()[0].rstrip(",") for statement, _ in rows()}
    assert sections == {"6.2", "6.2.1", "6.2.2", "6.2.3", "6.2.4", "6.6", "6.6.1", "6.6.2", "6.6.3", "6.6.4"}
