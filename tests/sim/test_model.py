"""Each part of the imagined site does what its parameter says, in figures that can be worked out by hand."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from sim import launch, plans, scenario
from sim.fanout import broadcast_seconds, message_times
from sim.parameters import Scenario
from sim.result import Launch
from sim.scenario import SHIPPED
from tests.sim.imagined import play

EXACT = ("node.jitter=0.0",)


def servers(outcome: Launch, name: str) -> list[int]:
    """Operations of the servers of that name that were used."""
    return [s.operations for s in outcome.stations if s.name.startswith(name) and s.visits]


def total(outcome: Launch, name: str) -> int:
    return sum(s.bytes for s in outcome.stations if s.name.startswith(name))


def test_a_message_takes_a_hop_a_level_and_a_turn_a_sibling() -> None:
    tree = scenario.override(
        Scenario(), ["slurm.tree_width=2", "slurm.hop_seconds=1.0", "slurm.send_seconds=0.1", "network.latency=0.0"]
    )
    times = message_times(tree, np.ones(7))
    # 0 and 1 are the sender's; 2 and 3 are node 0's; 4 and 5 node 1's; 6 is node 2's
    assert list(times) == pytest.approx([1.0, 1.1, 2.0, 2.1, 2.1, 2.2, 3.0])


def test_a_slow_node_delays_the_nodes_behind_it_in_the_tree() -> None:
    tree = scenario.override(Scenario(), ["slurm.tree_width=2", "slurm.hop_seconds=1.0", "slurm.send_seconds=0.0"])
    slow = np.ones(7)
    slow[0] = 5.0
    late = message_times(tree, slow) - message_times(tree, np.ones(7))
    assert list(late) == pytest.approx([4, 0, 4, 4, 0, 0, 4])


def test_a_broadcast_costs_each_link_a_copy_for_each_child_and_a_block_for_each_level() -> None:
    settings = [
        "slurm.tree_width=4",
        "slurm.hop_seconds=0.0",
        "network.node_bandwidth=1e9",
        "local.write_bandwidth=1e12",
    ]
    tree = scenario.override(Scenario(), settings)
    one_level = broadcast_seconds(tree, 5, 1_000_000_000, block=1_000_000)
    assert one_level == pytest.approx(4.0 + 0.004)
    assert broadcast_seconds(tree, 21, 1_000_000_000, block=1_000_000) == pytest.approx(4.0 + 2 * 0.004)


def test_prologs_run_as_many_at_a_time_as_there_are_slots() -> None:
    def longest(slots: int) -> float:
        run = play(*EXACT, f"slurm.prolog_slots={slots}", "slurm.prolog_seconds=1.0", nodes=8)
        return float(run.machine.record.prolog_end.max())

    assert longest(0) == pytest.approx(longest(8), rel=0.01)
    assert longest(2) == pytest.approx(4 * longest(8), rel=0.05)


def test_a_step_waits_for_all_prologs_only_where_slurm_does() -> None:
    slow = Scenario()

    def first(wait: str) -> float:
        run = play(
            *EXACT,
            f"slurm.wait_for_all={wait}",
            "slurm.prolog_slots=1",
            "slurm.prolog_seconds=1.0",
            nodes=4,
            faults=slow,
        )
        return float(np.nanmin(run.machine.record.message))

    assert first("false") < 1.5
    assert first("true") > 4.0


def test_an_srun_that_allocates_finds_its_nodes_ready_when_it_looks() -> None:
    run = play(*EXACT, "slurm.poll_seconds=0.1", "slurm.prolog_seconds=0.15", nodes=4)
    job = run.machine.record.jobs[0]
    assert job.step - job.allocated == pytest.approx(
        0.1 + 0.2 + 0.004, abs=0.001
    )  # its second look, and the controller


def test_a_striped_image_is_read_from_as_many_servers_and_a_plain_one_from_one() -> None:
    big = ("image.exec_read_bytes=33554432", "launch.prepared=false")
    assert len(servers(play(*big).outcome, "data server")) == 1
    assert len(servers(play(*big, "filesystem.stripes=8").outcome, "data server")) == 8


def test_the_first_reader_of_a_block_waits_for_the_disk_and_the_others_do_not() -> None:
    def busy(nodes: int) -> float:
        outcome = play(*EXACT, "filesystem.disk_bandwidth=1e6", "image.mount_read_bytes=1048576", nodes=nodes).outcome
        return sum(s.busy for s in outcome.stations if s.name.startswith("data"))

    read = 5 * 1024 * 1024
    assert busy(1) == pytest.approx(read / 1e6)
    assert busy(5) == pytest.approx(read / 1e6 + 4 * read / 5e9)


def test_tasks_of_a_node_share_metadata_answers_where_the_client_caches_them() -> None:
    imports = ("imports.files=100", "imports.operations=4", "imports.source=filesystem")
    shared = servers(play(*imports).outcome, "metadata")[0]
    alone = servers(play(*imports, "filesystem.client_cache=false").outcome, "metadata")[0]
    assert shared == 6 * (4 + 400)
    assert alone == 6 * (4 + 400 * 8)


def test_a_broadcast_image_leaves_the_file_system_once_and_a_node_cache_once_a_node() -> None:
    image = ("image.bytes=50000000", "launch.prepared=false")
    assert total(play(*image, "launch.strategy=broadcast").outcome, "data") == 50_000_000
    assert total(play(*image, "launch.strategy=node-cache").outcome, "data") == 6 * 50_000_000


def test_a_second_job_finds_the_pages_the_plan_and_the_copy_of_the_first() -> None:
    jobs = ("launch.workload=array", "launch.jobs=2", "image.bytes=50000000")
    twice = play(*EXACT, *jobs, "launch.strategy=node-cache").machine.record
    durations = (twice.prolog_end - twice.prolog_begin).reshape(2, 6)
    assert durations[1].max() < durations[0].min() / 3
    assert total(play(*jobs, "launch.strategy=node-cache").outcome, "data") == 6 * 50_000_000


def test_a_cached_plan_saves_the_planner() -> None:
    def prolog(cached: str) -> float:
        record = play(*EXACT, f"node.plan_cached={cached}", nodes=1).machine.record
        return float(record.prolog_end[0] - record.prolog_begin[0])

    assert prolog("false") - prolog("true") == pytest.approx(Scenario().node.planner_seconds)


def test_starts_that_mount_for_themselves_race_for_loop_devices() -> None:
    own = (*EXACT, "launch.prepared=false", "launch.shared_hold=false", "slurm.fork_seconds=0.0", "launch.tasks=16")
    free = play(*own, "node.loop_race_seconds=0.0", nodes=1).outcome
    race = play(*own, "node.loop_race_seconds=0.01", nodes=1).outcome
    assert race.last_task is not None and free.last_task is not None
    assert race.last_task - free.last_task == pytest.approx(15 * 0.01, rel=0.2)
    assert race.loop_devices_per_node == 16


def test_every_plan_step_is_charged_with_its_price() -> None:
    def environment(bind: float) -> float:
        setting = f"node.step_seconds={{bind = {bind}}}"
        run = play(*EXACT, "launch.prepared=false", "node.mount_contention=0.0", setting, nodes=1, stepwise=True)
        return float(run.machine.record.environment[0, 0])

    binds = [step for step in play(nodes=1).machine.priced.start.steps if step.verb == "bind"]
    assert environment(0.01) - environment(0.0) == pytest.approx(0.01 * len(binds))


def test_a_site_whose_nodes_keep_no_plans_pays_the_planner_at_every_start(tmp_path: Path) -> None:
    shipped = (SHIPPED / "udiRoot.conf").read_text()
    (tmp_path / "udiRoot.conf").write_text(shipped + "planCache=0\n")
    site = Scenario(configuration=str(tmp_path / "udiRoot.conf"))
    sixteen = ("launch.nodes=1", "launch.tasks=16", "launch.prepared=false", "slurm.fork_seconds=0.5")
    kept = launch.simulate(scenario.override(Scenario(), sixteen)).phases["environment"]
    anew = launch.simulate(scenario.override(site, sixteen)).phases["environment"]
    assert kept.p50 < Scenario().node.planner_seconds / 2 < anew.p5


def test_starts_by_tag_are_planned_anew_since_a_tag_may_have_moved() -> None:
    made = plans.make(scenario.override(Scenario(), ["launch.by_tag=true"]))
    assert (made.kept, plans.make(Scenario()).kept) == (False, True)


def test_a_plan_that_mounted_a_second_image_would_show_in_the_opens_of_a_node() -> None:
    made = plans.make(Scenario())
    twice = replace(made, start=(made.start[0], *made.start))
    run = play("launch.prepared=false", plan=twice)
    assert run.outcome.image_opens_per_node == 2


@pytest.mark.parametrize("strategy", ["none", "squashfs"])
def test_modules_in_a_node_cache_are_copied_once_a_node_and_opened_there(strategy: str) -> None:
    modules = ("imports.files=200", "imports.bytes=30000000", f"launch.strategy={strategy}")
    cached = (*modules, "imports.source=node-cache")

    def moved(*settings: str) -> tuple[int, int]:
        outcome = play(*settings).outcome
        return total(outcome, "data"), sum(s.operations for s in outcome.stations if s.name == "metadata server")

    bare, bare_again = moved(*modules[2:]), moved(*modules[2:], "launch.jobs=2")
    filled, again = moved(*cached), moved(*cached, "launch.jobs=2")
    assert filled[0] - bare[0] == 6 * 30_000_000
    assert again[0] - bare_again[0] == 6 * 30_000_000, "the second job finds the copy"
    assert filled[1] - bare[1] <= 6 * 4, "one archive a node, not a file a module"
    assert moved(*modules, "imports.source=filesystem")[1] - bare[1] >= 6 * 200 * 4
