"""Plans as data: any step survives its wire form, and what is no step is refused."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime import plan
from runtime.plan import PlanInvalid
from runtime.record import Record

TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=("Cs",)), max_size=20)


@st.composite
def any_step(draw: st.DrawFn) -> plan.Step:
    kind = draw(st.sampled_from(plan.STEPS))
    values: dict[str, object] = {}
    for name in kind.FIELDS:
        if name == "owner":
            values[name] = draw(st.sampled_from(["root", "user"]))
        elif isinstance(getattr(kind, name, None), tuple):
            values[name] = tuple(draw(st.lists(TEXT, max_size=4)))
        else:
            values[name] = draw(TEXT)
    return kind(**values)


@given(st.lists(any_step(), max_size=5))
def test_steps_survive_their_wire_form(steps: list[plan.Step]) -> None:
    assert plan.decode(b"".join(map(plan.encode, steps))) == steps


@given(any_step())
def test_steps_can_be_printed(step: plan.Step) -> None:
    assert json.loads(json.dumps(plan.as_json(step)))["step"] == step.verb


@given(st.binary(max_size=60))
def test_other_bytes_are_refused_or_steps(data: bytes) -> None:
    try:
        steps = plan.decode(data)
    except PlanInvalid:
        return
    assert b"".join(map(plan.encode, steps)) == data or any("\ufffd" in str(step) for step in steps)


@pytest.mark.parametrize(
    "fields",
    [
        ["mount", "root"],
        ["sync"],
        ["sync", "user"],
        ["sync", "root", "more"],
        ["mkdir", "root", "/a"],
        ["bind", "nobody", "a", "b", "c", "d"],
    ],
)
def test_what_is_no_step_is_refused(fields: list[str]) -> None:
    with pytest.raises(PlanInvalid):
        plan.decode(plan.encode_record(fields))


def test_nul_and_endless_fields_are_refused() -> None:
    with pytest.raises(PlanInvalid, match="NUL"):
        plan.encode(plan.Say("a\0b"))
    with pytest.raises(PlanInvalid, match="longer than"):
        plan.encode(plan.Say("x" * plan.RECORD_LIMIT))


def test_file_names_that_are_not_utf8_survive() -> None:
    name = b"/caf\xe9".decode("utf-8", "surrogateescape")
    assert plan.decode(plan.encode(plan.MakeDir(name, "755"))) == [plan.MakeDir(name, "755")]


class Point(Record):
    x: int
    y: int = 2


class Named(Point):
    name: str = ""


def test_records_are_frozen_equal_by_value_and_name_their_mistakes() -> None:
    assert Point(1) == Point(1, 2) == Point(x=1)
    assert Point(1) != Point(2)
    assert hash(Point(1)) == hash(Point(1, 2))
    assert Named.FIELDS == ("x", "y", "name")
    assert repr(Named(1, name="n")) == "Named(x=1, y=2, name='n')"
    assert Point(1).changed(y=5) == Point(1, 5)
    for wrong in (lambda: Point(), lambda: Point(1, 2, 3), lambda: Point(1, z=1), lambda: Point(1, x=1)):  # type: ignore[call-arg,misc]
        with pytest.raises(TypeError):
            wrong()
    with pytest.raises(AttributeError):
        Point(1).x = 3  # type: ignore[misc]
