"""What users do, on the real gateway's answers: arrays, many images, a tag that changes in mid-launch, a storm of pulls."""

import pytest

from sim import answers, launch, scenario
from sim.parameters import Scenario
from sim.result import Launch


def outcome(*settings: str, seed: int = 0) -> Launch:
    base = ("launch.nodes=4", "launch.tasks=4", "image.bytes=100000000", "image.unpacked_bytes=300000000")
    return launch.simulate(scenario.override(Scenario(), (*base, *settings)), seed=seed)


def test_an_array_of_small_jobs_waits_for_nodes_and_looks_up_once_each() -> None:
    array = outcome("launch.workload=array", "launch.jobs=6", "launch.run_seconds=10", "launch.machine_nodes=8")
    assert array.gateway_lookups == 6
    assert array.ready_tasks == 6 * 16
    assert 20 < array.finished < 35  # two at a time


def test_many_users_with_many_images_share_the_machine() -> None:
    many = outcome("launch.workload=many", "launch.jobs=6", "launch.images=3", "launch.machine_nodes=24")
    assert many.gateway_lookups == 6
    assert many.failures == {}


def test_a_tag_pulled_again_in_mid_launch_does_not_mix_images_when_the_job_looked_it_up() -> None:
    retag = (
        "launch.workload=retag",
        "launch.retag_at=0.1",  # the tasks of a node start from 0.07 s on, 50 ms apart
        "slurm.fork_seconds=0.05",
        "launch.prepared=false",
        "registry.bandwidth=1e12",
        "registry.convert_rate=1e12",
        "registry.latency=0.0",
        "gateway.poll_seconds=0.01",
    )
    assert outcome(*retag).mixed_images == 0
    mixed = outcome(*retag, "launch.by_tag=true")
    assert mixed.mixed_images == 1
    assert mixed.downloads == 1


def test_a_storm_of_pulls_of_a_cold_image_is_one_download() -> None:
    storm = outcome("launch.workload=pull-storm", "launch.jobs=50", "launch.machine_nodes=200")
    assert storm.downloads == 1
    assert storm.gateway_pulls > 50
    assert storm.ready_tasks == 50 * 16
    assert storm.first_task is not None and storm.first_task > 0.3 / 0.2  # download and conversion come first


@pytest.mark.parametrize(
    "setting",
    ["image.layers=1", "gateway.poll_seconds=0.07", "registry.latency=1.0", "registry.bandwidth=1e7",
     "registry.parallel_layers=1", "registry.convert_rate=1e7"],
)  # fmt: skip
def test_a_pull_takes_the_time_of_its_registry_and_its_polls(setting: str) -> None:
    storm = ("launch.workload=pull-storm", "launch.jobs=3", "launch.machine_nodes=12")
    assert outcome(*storm).first_task != outcome(*storm, setting).first_task


def test_an_image_that_was_never_pulled_is_refused_in_the_gateways_own_words() -> None:
    with answers.Catalog(Scenario(), []) as catalog:
        answer = catalog.lookup(1000, "science/none:latest", 0.0)
    assert answer.status == 404
    assert answer.reason


@pytest.mark.parametrize("strategy", ["squashfs", "erofs", "broadcast", "node-cache"])
def test_each_strategy_starts_the_plan_of_the_real_planner(strategy: str) -> None:
    result = outcome(f"launch.strategy={strategy}", "launch.prepared=false")
    assert result.plan_steps > 40
    assert result.failures == {}
    assert result.loop_devices_per_node == (0 if strategy == "erofs" else 1)


def test_a_configuration_that_the_planner_refuses_is_said_so() -> None:
    with pytest.raises(scenario.ScenarioInvalid, match=r"configuration: .*nowhere"):
        launch.simulate(scenario.parse({"configuration": "/nowhere/udiRoot.conf"}))
