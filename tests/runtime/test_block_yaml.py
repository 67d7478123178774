import json

import pytest

from runtime.block_yaml import YamlInvalid, parse

SPECIFICATION = """---
cdiVersion: 0.5.0
containerEdits:
  deviceNodes:
  - path: /dev/maker-ctl
  - path: "/dev/maker-uvm"  # both are needed
  env:
  - MAKER_VISIBLE_DEVICES=void
  hooks:
  - args:
    - maker-hook
    - create-symlinks
    - --link
    - ../libmaker.so.1::/usr/lib/gbm/maker_gbm.so
    hookName: createContainer
    path: /usr/bin/maker-hook
  mounts:
  -
    containerPath: /usr/bin/maker-smi
    options:
      - ro
      - bind
devices:
- containerEdits:
    deviceNodes:
    - path: /dev/maker0
      major: 195
      minor: 0
  name: "0"
- containerEdits: {}
  name: 'it''s all'
kind: maker.example/gpu
"""


def test_a_specification_as_programs_write_it_is_read() -> None:
    assert parse(SPECIFICATION) == {
        "cdiVersion": "0.5.0",
        "containerEdits": {
            "deviceNodes": [{"path": "/dev/maker-ctl"}, {"path": "/dev/maker-uvm"}],
            "env": ["MAKER_VISIBLE_DEVICES=void"],
            "hooks": [
                {
                    "args": [
                        "maker-hook", "create-symlinks", "--link", "../libmaker.so.1::/usr/lib/gbm/maker_gbm.so"
                    ],
                    "hookName": "createContainer",
                    "path": "/usr/bin/maker-hook",
                }
            ],
            "mounts": [{"containerPath": "/usr/bin/maker-smi", "options": ["ro", "bind"]}],
        },
        "devices": [
            {"containerEdits": {"deviceNodes": [{"path": "/dev/maker0", "major": 195, "minor": 0}]}, "name": "0"},
            {"containerEdits": {}, "name": "it's all"},
        ],
        "kind": "maker.example/gpu",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("", None),
        ("# nothing\n", None),
        ("a: true\nb: null\nc:\nd: -12\ne: 007\nf: 1.5", {"a": True, "b": None, "c": None, "d": -12, "e": "007", "f": "1.5"}),
        ("- 1\n- - 2\n  - 3\n-\n  - 4", [1, [2, 3], [4]]),
        ('"quoted key": "tab\\tand \\"quote\\" # no comment"', {"quoted key": 'tab\tand "quote" # no comment'}),
        ("a: http://host:80/x#y", {"a": "http://host:80/x#y"}),
        ("a:\n  b:\n    c: d\ne: f", {"a": {"b": {"c": "d"}}, "e": "f"}),
        ("a: []\nb: {}", {"a": [], "b": {}}),
    ],
)  # fmt: skip
def test_values(text: str, value: object) -> None:
    assert parse(text) == value


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("a: [1, 2]", r"line 1: '\[' begins a form of YAML that is not read here; write the file as JSON"),
        ("a: |\n  text", "line 1: '.' begins a form"),
        ("a: &x b", "line 1: '&' begins a form"),
        ("a: !!str b", "line 1: '!' begins a form"),
        ("a: b\n  c: d", "line 2: its indentation fits nothing above"),
        ("a: b\na: c", "line 2: the key stands here twice"),
        ("a: b\nc", "line 2: neither 'key: value' nor '- item'"),
        ("a: 'b", "line 1: the quote is not closed on this line"),
        ('a: "b', "line 1: the quote is not closed on this line"),
        ('a: "\\x41"', "line 1: an escape that is not read here"),
        ("a:\n\t- b", "line 2: indented with a tab"),
        ("a: b\n---\nc: d", "line 2: a second document"),
        ("- " * 200 + "a", "line 1: nested too deeply"),
    ],
)
def test_what_is_not_read_is_refused_by_its_line(text: str, what: str) -> None:
    with pytest.raises(YamlInvalid, match=what):
        parse(text)


def test_json_values_survive_being_written_as_blocks() -> None:
    value = {"list": [{"a": "1", "b": ["x", "y z"]}, {"c": {}}], "text": "no: colon trouble", "n": 3}
    assert parse(_blocks(value)) == value


def _blocks(value: object, indent: int = 0) -> str:
    pad = "  " * indent
    if isinstance(value, dict) and value:
        return "".join(f"{pad}{key}:{_beside(each, indent)}" for key, each in value.items())
    assert isinstance(value, list)
    return "".join(f"{pad}-{_beside(each, indent)}" for each in value)


def _beside(value: object, indent: int) -> str:
    if isinstance(value, (dict, list)) and value:
        return "\n" + _blocks(value, indent + 1)
    return f" {json.dumps(value)}\n"
