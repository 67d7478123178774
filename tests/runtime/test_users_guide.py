"""The guide's troubleshooting quotes messages; each must still be what a program says."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def quoted() -> list[str]:
    """The messages of the tables, as they stand in the first column."""
    text = (ROOT / "docs" / "users.md").read_text()
    rows = text[text.index("## Troubleshooting") :].splitlines()
    return [match[1] for row in rows if (match := re.match(r"\| `(.*?)` \|", row))]


def said() -> str:
    """Everything that the programs could say: their sources, with what they fill in taken out."""
    sources = [
        *(ROOT / "runtime").glob("*.py"),
        *(ROOT / "runtime" / "launcher").rglob("*.c"),
        *(ROOT / "catalog").glob("*.py"),
    ]
    text = "\n".join(path.read_text() for path in sources)
    text = re.sub(r'"\s*\n?\s*f?"', "", text)  # literals side by side are one
    return re.sub(r"\s+", " ", text)


def test_there_are_messages_in_the_guide() -> None:
    assert len(quoted()) > 30


@pytest.mark.parametrize("message", quoted())
def test_a_quoted_message_is_still_said(message: str) -> None:
    programs = said()
    parts = [part for part in re.split("…", message) if len(part.strip(" :;,'")) > 3]
    assert parts, message
    for part in parts:
        assert part.strip(" :;,'") in programs, f"nothing says {part!r}"
