"""Reads the YAML that programs write for configuration: block mappings and sequences of plain and quoted scalars.

Nodes have no YAML library, and CDI specifications are commonly written in this form. What YAML can do beyond it (flow
collections that are not empty, anchors, tags, multi-line scalars, several documents) is refused by line number, never
guessed at. Scalars stay text, but for ``true``, ``false``, ``null`` and whole numbers, as in YAML's core schema.
"""

from __future__ import annotations

from runtime.record import Record

TYPE_CHECKING = False  # see runtime/munge.py
if TYPE_CHECKING:
    from typing import Any

_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", '"': '"', "\\": "\\", "/": "/", "0": "\0"}
_WORDS: dict[str, object] = {"true": True, "false": False, "null": None, "~": None, "": None, "{}": {}, "[]": []}
DEPTH_LIMIT = 50


class YamlInvalid(ValueError):
    """The text is not of this form; the message has the line's number and what is wrong with it."""


class _Line(Record):
    number: int
    indent: int
    text: str


def parse(text: str) -> Any:
    """The value of the document: dicts, lists, text, numbers, True, False, None. Raises YamlInvalid."""
    lines = _lines(text)
    if not lines:
        return None
    value, following = _block(lines, 0, lines[0].indent, 0)
    if following < len(lines):
        raise _wrong(lines[following], "its indentation fits nothing above")
    return value


def _wrong(line: _Line, what: str) -> YamlInvalid:
    return YamlInvalid(f"line {line.number}: {what}: {line.text[:60]!r}")


def _lines(text: str) -> list[_Line]:
    found: list[_Line] = []
    for number, raw in enumerate(text.splitlines(), 1):
        content = raw.strip()
        if not content or content.startswith("#"):
            continue
        if content == "---" and not found:
            continue
        line = _Line(number, len(raw) - len(raw.lstrip(" ")), _without_comment(content))
        if raw.lstrip(" ").startswith("\t"):
            raise _wrong(line, "indented with a tab")
        if content in ("---", "..."):
            raise _wrong(line, "a second document")
        found.append(line)
    return found


def _without_comment(text: str) -> str:
    quote = ""
    for at, character in enumerate(text):
        if quote:
            quote = "" if character == quote and text[at - 1] != "\\" else quote
        elif character in "'\"":
            quote = character
        elif character == "#" and text[at - 1] == " ":
            return text[:at].rstrip()
    return text


def _block(lines: list[_Line], at: int, indent: int, depth: int) -> tuple[Any, int]:
    """The mapping or sequence that begins at line ``at`` with ``indent``, and the line after it."""
    if depth > DEPTH_LIMIT:
        raise _wrong(lines[at], "nested too deeply")
    if _is_item(lines[at].text):
        return _sequence(lines, at, indent, depth)
    return _mapping(lines, at, indent, depth)


def _is_item(text: str) -> bool:
    return text == "-" or text.startswith("- ")


def _sequence(lines: list[_Line], at: int, indent: int, depth: int) -> tuple[list[Any], int]:
    items: list[Any] = []
    while at < len(lines) and lines[at].indent == indent and _is_item(lines[at].text):
        line = lines[at]
        rest = line.text[1:].lstrip()
        if not rest:
            value, at = _below(lines, at, indent, depth)
        elif _is_item(rest) or _key(rest) is not None:
            # "- key: value" opens a block whose indentation is where the key stands
            inner = indent + len(line.text) - len(rest)
            lines[at] = _Line(line.number, inner, rest)
            value, at = _block(lines, at, inner, depth + 1)
        else:
            value, at = _scalar(rest, line), at + 1
        items.append(value)
    return items, at


def _mapping(lines: list[_Line], at: int, indent: int, depth: int) -> tuple[dict[str, Any], int]:
    values: dict[str, Any] = {}
    while at < len(lines) and lines[at].indent == indent and not _is_item(lines[at].text):
        line = lines[at]
        found = _key(line.text)
        if found is None:
            raise _wrong(line, "neither 'key: value' nor '- item'")
        key, rest = found
        if key in values:
            raise _wrong(line, "the key stands here twice")
        if rest:
            values[key], at = _scalar(rest, line), at + 1
        else:
            values[key], at = _below(lines, at, indent, depth)
    return values, at


def _below(lines: list[_Line], at: int, indent: int, depth: int) -> tuple[Any, int]:
    """What stands below a key or a dash that has nothing beside it."""
    following = at + 1
    if following < len(lines):
        next_line = lines[following]
        same = next_line.indent == indent and _is_item(next_line.text) and not _is_item(lines[at].text)
        if next_line.indent > indent or same:
            return _block(lines, following, next_line.indent, depth + 1)
    return None, following


def _key(text: str) -> tuple[str, str] | None:
    """Key and rest of ``key: rest``; None when the text is no entry of a mapping."""
    if text[:1] in ("'", '"'):
        end = text.find(text[0], 1)
        if end > 0 and (text[end + 1 :] == ":" or text[end + 1 :].startswith(": ")):
            return text[1:end], text[end + 2 :].strip()
        return None
    key, colon, rest = text.partition(": ")
    if colon:
        return key, rest.strip()
    return (text[:-1], "") if text.endswith(":") else None


def _scalar(text: str, line: _Line) -> Any:
    if text in _WORDS:
        value = _WORDS[text]
        return type(value)() if isinstance(value, (dict, list)) else value
    if text[0] == '"':
        return _double_quoted(text, line)
    if text[0] == "'":
        if len(text) < 2 or text[-1] != "'":
            raise _wrong(line, "the quote is not closed on this line")
        return text[1:-1].replace("''", "'")
    if text[0] in "[{&*!|>%@`":
        raise _wrong(line, f"{text[0]!r} begins a form of YAML that is not read here; write the file as JSON")
    digits = text[1:] if text[0] == "-" else text
    if digits.isascii() and digits.isdigit() and (digits == "0" or digits[0] != "0"):
        return int(text)
    return text


def _double_quoted(text: str, line: _Line) -> str:
    out: list[str] = []
    at = 1
    while at < len(text) and text[at] != '"':
        if text[at] == "\\":
            at += 1
            if at >= len(text) or text[at] not in _ESCAPES:
                raise _wrong(line, "an escape that is not read here; write the file as JSON")
            out.append(_ESCAPES[text[at]])
        else:
            out.append(text[at])
        at += 1
    if at != len(text) - 1:
        raise _wrong(line, "the quote is not closed on this line")
    return "".join(out)
