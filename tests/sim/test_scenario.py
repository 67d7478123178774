"""A scenario is checked at the edge: an error names the place and the nearest word."""

from pathlib import Path

import pytest

from sim import plans, scenario
from sim.parameters import Fault, Scenario, describe


def refused(document: dict[str, object]) -> str:
    with pytest.raises(scenario.ScenarioInvalid) as error:
        scenario.parse(document, "site.toml")
    return str(error.value)


def test_a_scenario_sets_what_it_names_and_keeps_the_other_defaults() -> None:
    parsed = scenario.parse({"name": "ours", "node": {"cores": 48, "step_seconds": {"bind": 0.001}}})
    assert parsed.node.cores == 48
    assert parsed.step_cost("bind") == 0.001
    assert parsed.step_cost("tmpfs") == Scenario().step_cost("tmpfs")


def test_an_unknown_section_or_key_names_the_nearest() -> None:
    assert refused({"nodes": {}}) == 'site.toml: unknown section "nodes" (did you mean "node"?)'
    assert refused({"node": {"core": 4}}) == 'site.toml: node: unknown key "core" (did you mean "cores"?)'


def test_a_value_of_the_wrong_kind_is_refused() -> None:
    assert refused({"node": {"cores": "many"}}) == "site.toml: node.cores: 'many' is not of type int"
    assert refused({"node": {"cores": True}}) == "site.toml: node.cores: True is not of type int"
    assert refused({"node": {"jitter": -1}}) == "site.toml: node.jitter = -1.0 is negative"
    assert refused({"node": {"cores": 0}}) == "site.toml: node.cores must be more than 0"


@pytest.mark.parametrize(
    ("document", "text"),
    [
        ({"filesystem": {"metadata_rate": float("nan")}}, "filesystem.metadata_rate: nan is not a finite number"),
        ({"slurm": {"hop_seconds": float("inf")}}, "slurm.hop_seconds: inf is not a finite number"),
        ({"node": {"slow_probability": 2}}, "node.slow_probability = 2.0 is no probability: write 0 to 1"),
        ({"node": {"slow_factor": 0}}, "node.slow_factor must be more than 0"),
        ({"node": {"step_seconds": {"bimd": 1e-3}}}, 'node.step_seconds: unknown step "bimd" (did you mean "bind"?)'),
    ],
)
def test_a_value_that_would_give_a_meaningless_launch_is_refused(document: dict[str, object], text: str) -> None:
    assert refused(document) == f"site.toml: {text}"


@pytest.mark.parametrize(
    ("launch", "text"),
    [
        (
            {"images": 3, "jobs": 3},
            'images = 3 changes nothing in workload "launch": it belongs to "many"; choose that, or leave the key out',
        ),
        (
            {"workload": "array", "jobs": 2, "retag_at": 1.5},
            'retag_at = 1.5 changes nothing in workload "array": it belongs to "retag"; choose that, or leave the key out',
        ),
        ({"interval": 2}, "interval = 2 changes nothing with one job: set launch.jobs too"),
        ({"workload": "many", "images": 3}, "images = 3, but there are 1 jobs: set launch.jobs to as many"),
        (
            {"workload": "retag", "strategy": "none"},
            'workload = "retag" needs an image, and launch.strategy = "none" has none',
        ),
    ],
)
def test_a_key_of_the_launch_that_its_workload_does_not_heed_is_refused(launch: dict[str, object], text: str) -> None:
    assert refused({"launch": launch}) == f"site.toml: launch.{text}"
    with pytest.raises(scenario.ScenarioInvalid) as error:
        scenario.override(Scenario(), [f"launch.{key}={value}" for key, value in launch.items()])
    assert str(error.value).endswith(f": launch.{text}")


@pytest.mark.parametrize(
    ("fault", "text"),
    [
        (
            {"kind": "node-crash", "duration": 3},
            ": node-crash has no duration: its keys are node, probability, step, at",
        ),
        ({"kind": "metadata-stall", "factor": 3}, ": metadata-stall has no factor: its keys are at, duration"),
        ({"kind": "slow-node", "node": 1}, ": slow-node changes nothing without factor: add it"),
        ({"kind": "gateway-slow", "at": 1}, ": gateway-slow changes nothing without factor: add it"),
        ({"kind": "clock-skew"}, ": clock-skew changes nothing without seconds: add it"),
        ({"kind": "slow-node", "factor": 0}, ".factor must be more than 0"),
        ({"kind": "corrupt-image", "probability": 1.5}, ".probability = 1.5 is no probability: write 0 to 1"),
        ({"kind": "corrupt-image", "node": -2}, ".node = -2 is negative"),
        ({"kind": "gateway-down", "at": -1}, ".at = -1.0 is negative"),
    ],
)
def test_a_fault_that_could_not_strike_as_written_is_refused(fault: dict[str, object], text: str) -> None:
    assert refused({"fault": [fault]}) == f"site.toml: fault[0]{text}"


def test_a_word_that_is_not_allowed_lists_those_that_are() -> None:
    text = refused({"launch": {"strategy": "squashfuse"}})
    assert text.startswith(
        'site.toml: launch.strategy = "squashfuse" (did you mean "squashfs"?): one of squashfs, erofs'
    )
    assert "node-crash" in refused({"fault": [{"kind": "node-crush"}]})


def test_parameters_that_contradict_each_other_are_refused() -> None:
    assert "stripes = 20, but filesystem.data_servers = 16" in refused({"filesystem": {"stripes": 20}})


def test_set_changes_one_parameter_and_is_checked_like_a_file() -> None:
    changed = scenario.override(Scenario(), ["filesystem.stripes=8", "launch.strategy=erofs", "launch.prepared=false"])
    assert (changed.filesystem.stripes, changed.launch.strategy, changed.launch.prepared) == (8, "erofs", False)
    for setting, text in (
        ("stripes=8", "write it as section.key=value"),
        ("filesystem.stripe=8", 'did you mean "stripes"?'),
        ("file.stripes=8", 'unknown section "file"'),
    ):
        with pytest.raises(scenario.ScenarioInvalid, match="--set") as error:
            scenario.override(Scenario(), [setting])
        assert text in str(error.value)


def test_a_file_that_is_not_there_or_not_toml_is_named(tmp_path: Path) -> None:
    with pytest.raises(scenario.ScenarioInvalid, match="no such scenario file"):
        scenario.load("nowhere")
    bad = tmp_path / "bad.toml"
    bad.write_text("[node\n")
    with pytest.raises(scenario.ScenarioInvalid, match=r"bad\.toml: not a TOML file"):
        scenario.load(str(bad))


def test_a_relative_configuration_is_beside_its_scenario(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "site.toml").write_text('configuration = "conf/udiRoot.conf"\n')
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf/udiRoot.conf").write_bytes((scenario.SHIPPED / "udiRoot.conf").read_bytes())
    monkeypatch.chdir("/")
    loaded = scenario.load(str(tmp_path / "site.toml"))
    assert plans.configuration(loaded).path == str(tmp_path / "conf/udiRoot.conf")


@pytest.mark.parametrize(
    ("content", "text"),
    [(None, "No such file or directory"), (b"udiMount=\xff\n", "not UTF-8 text"), (b"udiMount\n", "line 1: ")],
)
def test_a_configuration_that_cannot_be_read_is_named(tmp_path: Path, content: bytes | None, text: str) -> None:
    conf = tmp_path / "udiRoot.conf"
    if content is not None:
        conf.write_bytes(content)
    with pytest.raises(scenario.ScenarioInvalid) as error:
        plans.make(scenario.parse({"configuration": str(conf)}))
    assert str(error.value).startswith(f"configuration: {conf}: {text}")
    assert "Errno" not in str(error.value)


def test_every_parameter_has_a_unit_and_a_meaning() -> None:
    for row in describe():
        assert row.meaning, row.key
        assert row.unit or isinstance(row.default, bool), row.key


#: For each parameter, a value with which a launch of the site below differs. A parameter without effect would be a lie.
EFFECTS = {
    "launch.run_seconds": "5",
    "launch.retag_at": "2",
    "node.loops_in_use": "8",
    "node.max_loop": "2",
    "node.loop_attempts": "1",
    "gateway.gateways": "3",
    "network.node_bandwidth": "1e8",
    "node.cores": "2",
    "gateway.attempts": "1",
    "slurm.tree_width": "2",
}


@pytest.mark.parametrize(
    "key",
    [
        row.key
        for row in describe()
        if row.key.split(".")[0] not in ("launch", "registry")
        and row.key not in ("image.layers", "gateway.poll_seconds")
    ],
)  # these: test_workloads.py
def test_every_parameter_of_the_site_has_an_effect(key: str) -> None:
    from tests.sim.imagined import play

    section, name = key.split(".")
    default = getattr(getattr(Scenario(), section), name)
    if isinstance(default, dict):
        changed = f"{key}={{bind = 0.01}}"
    elif isinstance(default, bool):
        changed = f"{key}={str(not default).lower()}"
    elif isinstance(default, str):
        changed = f"{key}=filesystem"
    else:
        changed = (
            f"{key}={EFFECTS.get(key, default * 3 + 1 if isinstance(default, int) else min(default * 3 + 0.5, 1e13))}"
        )
    seen = []
    for setup in SITES:
        faults = Scenario(faults=(Fault(kind="gateway-down", duration=0.02),)) if setup is SITES[-1] else Scenario()
        seen.append(
            play(*setup, nodes=12, faults=faults).outcome != play(*setup, changed, nodes=12, faults=faults).outcome
        )
    assert any(seen), f"{key}: {changed} changes nothing"


#: Sites among which each parameter must show.
SITES = [
    ("imports.files=40", "imports.bytes=2000000", "imports.source=filesystem", "slurm.wait_for_all=true"),
    (
        "launch.prepared=false",
        "launch.shared_hold=false",
        "imports.files=40",
        "imports.bytes=2000000",
        "node.max_loop=8",
    ),
    ("launch.strategy=broadcast", "image.bytes=40000000"),
    ("launch.strategy=node-cache", "image.bytes=40000000", "slurm.prolog_slots=1", "node.slow_probability=0.5"),
    ("launch.strategy=unpacked", "image.bytes=40000000"),
    (
        "launch.workload=pull-storm",
        "launch.jobs=3",
        "gateway.threads=1",
        "launch.by_tag=true",
        "launch.machine_nodes=40",
    ),
]
