"""Scenario files: TOML in, a checked `Scenario` out.

Everything is checked at this edge: an unknown key, a value of the wrong type or out of range raises
`ScenarioInvalid`, which names the file, the key, and the nearest key that exists. Inside, a `Scenario` is valid.
`--set section.key=value` goes through the same check.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from runtime import plan
from sim.parameters import (
    FAULT_KINDS,
    IMPORT_SOURCES,
    SECTIONS,
    STEP_SECONDS,
    STRATEGIES,
    WORKLOADS,
    Fault,
    LaunchParameters,
    Scenario,
)

SHIPPED = Path(__file__).parent / "scenarios"


class ScenarioInvalid(ValueError):
    """A scenario cannot be used; the text names the file, the key, and what is allowed."""


def nearest(word: str, known: Sequence[str]) -> str:
    """` (did you mean "x"?)` for the nearest known word, or nothing."""
    close = difflib.get_close_matches(word, known, n=1)
    return f' (did you mean "{close[0]}"?)' if close else ""


def find(name: str) -> Path:
    """The file of a scenario given by path or, for one that is shipped, by name.

    Raises ScenarioInvalid when there is neither.
    """
    path = Path(name)
    if path.is_file():
        return path
    shipped = SHIPPED / (name if name.endswith(".toml") else name + ".toml")
    if shipped.is_file():
        return shipped
    names = sorted(p.stem for p in SHIPPED.glob("*.toml"))
    raise ScenarioInvalid(
        f"{name}: no such scenario file, and none of that name is shipped{nearest(name, names)}: {', '.join(names)}"
    )


def load(name: str, overrides: Sequence[str] = ()) -> Scenario:
    """The scenario in a file (or shipped under that name), with `section.key=value` overrides applied.

    A relative `configuration` is beside the file, wherever the caller stands. Raises ScenarioInvalid.
    """
    path = find(name)
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ScenarioInvalid(f"{path}: not a TOML file: {error}") from error
    scenario = parse(document, str(path))
    if scenario.configuration:
        beside = str(path.resolve().parent / scenario.configuration)
        scenario = dataclasses.replace(scenario, configuration=beside)
    return override(scenario, overrides)


def parse(document: Mapping[str, Any], where: str = "scenario") -> Scenario:
    """A checked scenario from parsed TOML. `where` names the source in errors."""
    known = ["name", "description", "configuration", *SECTIONS, "fault"]
    values: dict[str, Any] = {}
    for key, value in document.items():
        if key not in known:
            raise ScenarioInvalid(f'{where}: unknown section "{key}"{nearest(key, known)}')
        if key in ("name", "description", "configuration"):
            values[key] = _typed(f"{where}: {key}", value, str)
        elif key == "fault":
            entries = value if isinstance(value, list) else [value]
            values["faults"] = tuple(_section(f"{where}: fault[{i}]", Fault, entry) for i, entry in enumerate(entries))
        else:
            values[key] = _section(f"{where}: {key}", SECTIONS[key], value)
    scenario = Scenario(**values)
    check(scenario, where)
    return scenario


def override(scenario: Scenario, settings: Sequence[str]) -> Scenario:
    """The scenario with `section.key=value` settings applied (values as in TOML; a bare word is a string)."""
    for setting in settings:
        key, equals, text = setting.partition("=")
        section, dot, name = key.strip().partition(".")
        if not equals or not dot:
            raise ScenarioInvalid(f"--set {setting}: write it as section.key=value, such as filesystem.stripes=8")
        if section not in SECTIONS:
            raise ScenarioInvalid(f'--set {setting}: unknown section "{section}"{nearest(section, list(SECTIONS))}')
        try:
            value = tomllib.loads(f"v = {text.strip()}")["v"]
        except tomllib.TOMLDecodeError:
            value = text.strip()
        scenario = _changed(scenario, section, {name: value}, f"--set {setting}")
    check(scenario, f"--set {' '.join(settings)}")  # together: two settings may only fit with one another
    return scenario


def replaced(scenario: Scenario, section: str, changes: Mapping[str, Any], where: str = "scenario") -> Scenario:
    """The scenario with some parameters of one section changed, checked like any other."""
    result = _changed(scenario, section, changes, where)
    check(result, where)
    return result


def _changed(scenario: Scenario, section: str, changes: Mapping[str, Any], where: str) -> Scenario:
    old = getattr(scenario, section)
    current = {f.name: getattr(old, f.name) for f in dataclasses.fields(old)}
    new = _section(f"{where}: {section}", SECTIONS[section], {**current, **changes})
    return dataclasses.replace(scenario, **{section: new})


def _typed(where: str, value: Any, kind: type) -> Any:
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if kind is int and isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, float) and not math.isfinite(value):
        raise ScenarioInvalid(f"{where}: {value} is not a finite number")
    if not isinstance(value, kind) or (kind is not bool and isinstance(value, bool)):
        raise ScenarioInvalid(
            f"{where}: {value!r} is not {'a number' if kind is float else 'of type ' + kind.__name__}"
        )
    return value


def _section(where: str, kind: type, value: Any) -> Any:
    if not isinstance(value, Mapping):
        raise ScenarioInvalid(f"{where}: must be a table of keys and values")
    fields = {f.name: f for f in dataclasses.fields(kind)}
    blank = kind()
    values: dict[str, Any] = {}
    for key, entry in value.items():
        if key not in fields:
            raise ScenarioInvalid(f'{where}: unknown key "{key}"{nearest(key, list(fields))}')
        default = getattr(blank, key)
        if isinstance(default, dict):
            if not isinstance(entry, Mapping):
                raise ScenarioInvalid(f"{where}.{key}: must be a table of step = seconds")
            for step in entry:
                if step not in _STEPS:
                    raise ScenarioInvalid(f'{where}.{key}: unknown step "{step}"{nearest(step, _STEPS)}')
            values[key] = {**default, **{str(k): _positive(f"{where}.{key}.{k}", v) for k, v in entry.items()}}
        else:
            values[key] = _typed(f"{where}.{key}", entry, type(default))
    return kind(**values)


def _positive(where: str, value: Any) -> float:
    number: float = _typed(where, value, float)
    if number < 0:
        raise ScenarioInvalid(f"{where}: {value} is negative")
    return number


#: What `node.step_seconds` may name.
_STEPS = tuple(dict.fromkeys([*STEP_SECONDS, *plan.VERBS]))
#: Keys for which 0 has no meaning.
_AT_LEAST_ONE = {
    "launch": ("nodes", "tasks", "jobs", "images"),
    "node": ("cores", "max_loop", "loop_attempts", "slow_factor"),
    "filesystem": (
        "metadata_rate",
        "metadata_threads",
        "data_servers",
        "data_bandwidth",
        "disk_bandwidth",
        "read_bytes",
        "stripes",
    ),
    "network": ("node_bandwidth",),
    "local": ("read_bandwidth", "write_bandwidth"),
    "image": ("decompress_rate",),
    "gateway": ("gateways", "threads", "attempts", "poll_seconds"),
    "registry": ("bandwidth", "parallel_layers", "convert_rate"),
    "slurm": ("tree_width",),
    "imports": ("rounds",),
}


def check(scenario: Scenario, where: str) -> None:
    """Raises ScenarioInvalid for a value that is out of its range or contradicts another."""
    for section, kind in SECTIONS.items():
        part = getattr(scenario, section)
        for f in dataclasses.fields(kind):
            value = getattr(part, f.name)
            if isinstance(value, (int, float)) and not isinstance(value, bool):
                if value < 0:
                    raise ScenarioInvalid(f"{where}: {section}.{f.name} = {value} is negative")
                if value == 0 and f.name in _AT_LEAST_ONE.get(section, ()):
                    raise ScenarioInvalid(f"{where}: {section}.{f.name} must be more than 0")
                if f.metadata["unit"] == "probability" and value > 1:
                    raise ScenarioInvalid(f"{where}: {section}.{f.name} = {value} is no probability: write 0 to 1")
    words = (
        ("launch.strategy", scenario.launch.strategy, STRATEGIES),
        ("launch.workload", scenario.launch.workload, WORKLOADS),
        ("imports.source", scenario.imports.source, IMPORT_SOURCES),
        *((f"fault[{i}].kind", fault.kind, FAULT_KINDS) for i, fault in enumerate(scenario.faults)),
    )
    for key, word, allowed in words:
        if word not in allowed:
            raise ScenarioInvalid(f'{where}: {key} = "{word}"{nearest(word, allowed)}: one of {", ".join(allowed)}')
    for i, fault in enumerate(scenario.faults):
        _check_fault(f"{where}: fault[{i}]", fault)
    _check_workload(where, scenario)
    stripes, servers = scenario.filesystem.stripes, scenario.filesystem.data_servers
    if stripes > servers:
        raise ScenarioInvalid(f"{where}: filesystem.stripes = {stripes}, but filesystem.data_servers = {servers}")
    machine = scenario.launch.machine_nodes
    if machine and machine < scenario.launch.nodes:
        raise ScenarioInvalid(
            f"{where}: launch.machine_nodes = {machine} is fewer than the {scenario.launch.nodes} nodes of a job"
        )


#: Keys of `launch` that say something about some workloads only.
_WORKLOAD_KEYS: Mapping[str, tuple[str, ...]] = {"images": ("many",), "retag_at": ("retag",)}


def _check_workload(where: str, scenario: Scenario) -> None:
    """A key that the workload does not heed is a mistake: the launch would be another than the one that was meant."""
    launch, blank = scenario.launch, LaunchParameters()
    for key, workloads in _WORKLOAD_KEYS.items():
        value = getattr(launch, key)
        if value != getattr(blank, key) and launch.workload not in workloads:
            raise ScenarioInvalid(
                f'{where}: launch.{key} = {value} changes nothing in workload "{launch.workload}": it belongs to'
                f' "{workloads[0]}"; choose that, or leave the key out'
            )
    if launch.jobs == 1 and launch.interval:
        raise ScenarioInvalid(
            f"{where}: launch.interval = {launch.interval:g} changes nothing with one job: set launch.jobs too"
        )
    if launch.images > launch.jobs:
        raise ScenarioInvalid(
            f"{where}: launch.images = {launch.images}, but there are {launch.jobs} jobs: set launch.jobs to as many"
        )
    if launch.workload in ("retag", "pull-storm") and launch.strategy == "none":
        raise ScenarioInvalid(
            f'{where}: launch.workload = "{launch.workload}" needs an image, and launch.strategy = "none" has none'
        )


#: What each kind of fault is described by, beside `kind`; and the key without which it would change nothing.
_STRIKES_NODE = ("node", "probability")
FAULT_KEYS: Mapping[str, tuple[str, ...]] = {
    "node-crash": (*_STRIKES_NODE, "step", "at"),
    "loop-exhaustion": (*_STRIKES_NODE, "devices"),
    "corrupt-image": _STRIKES_NODE,
    "clock-skew": (*_STRIKES_NODE, "seconds"),
    "slow-node": (*_STRIKES_NODE, "factor"),
    "gateway-down": ("at", "duration"),
    "gateway-slow": ("at", "duration", "factor"),
    "metadata-stall": ("at", "duration"),
}
_FAULT_NEEDS = {"clock-skew": "seconds", "slow-node": "factor", "gateway-slow": "factor"}


def _check_fault(where: str, fault: Fault) -> None:
    """A fault that could not strike as it is written is a mistake, and a launch without it would mislead."""
    keys = FAULT_KEYS[fault.kind]
    for f in dataclasses.fields(Fault):
        value = getattr(fault, f.name)
        if f.name == "kind":
            continue
        if value != f.default and f.name not in keys:
            raise ScenarioInvalid(f"{where}: {fault.kind} has no {f.name}: its keys are {', '.join(keys)}")
        if value < (-1 if f.name in ("node", "step") else 0) and f.name != "seconds":
            raise ScenarioInvalid(f"{where}.{f.name} = {value} is negative")
    if fault.probability > 1:
        raise ScenarioInvalid(f"{where}.probability = {fault.probability} is no probability: write 0 to 1")
    needed = _FAULT_NEEDS.get(fault.kind)
    if needed and getattr(fault, needed) == getattr(Fault(), needed):
        raise ScenarioInvalid(f"{where}: {fault.kind} changes nothing without {needed}: add it")
    if "factor" in keys and fault.factor == 0:
        raise ScenarioInvalid(f"{where}.factor must be more than 0")
