"""Things go wrong on the imagined site, and nothing is left behind or unaccounted for."""

import dataclasses

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, given, settings

from sim.draws import Draws
from sim.faults import strike
from sim.parameters import FAULT_KINDS, STRATEGIES, Fault, Scenario
from sim.scenario import FAULT_KEYS, ScenarioInvalid
from tests.sim.imagined import PLANS, play


def faulty(*faults: Fault) -> Scenario:
    return dataclasses.replace(Scenario(), faults=faults)


def within(fault: Fault, nodes: int, strategy: str) -> Fault:
    """The fault at a node and a plan step that there are."""
    return dataclasses.replace(
        fault, node=min(fault.node, nodes - 1), step=min(fault.step, 0) if strategy == "none" else fault.step
    )


def with_its_keys(fault: Fault) -> Fault:
    """The fault with the keys that its kind has, the others as they are when nothing is written."""
    return Fault(kind=fault.kind, **{key: getattr(fault, key) for key in FAULT_KEYS[fault.kind]})


CRASHES = [(p, s) for p, plan in (("true", PLANS.prepare), ("false", PLANS.start)) for s in range(len(plan))]


@pytest.mark.parametrize(("prepared", "step"), CRASHES)
def test_a_node_that_crashes_at_a_plan_step_loses_its_tasks_alone(prepared: str, step: int) -> None:
    outcome = play(f"launch.prepared={prepared}", faults=faulty(Fault(kind="node-crash", node=1, step=step))).outcome
    assert outcome.crashed_nodes == 1
    assert outcome.failures == {"node crashed": 8}
    assert outcome.ready_tasks == 5 * 8
    assert (outcome.loop_devices_left, outcome.mounts_left) == (0, 0)


def test_a_node_that_crashes_at_a_time_loses_what_was_not_up_yet() -> None:
    outcome = play("launch.prepared=false", faults=faulty(Fault(kind="node-crash", node=2, at=0.075))).outcome
    assert outcome.crashed_nodes == 1
    assert outcome.ready_tasks + outcome.failed_tasks == 48
    assert outcome.loop_devices_left == 0


def test_a_node_that_crashed_before_its_job_came_loses_it() -> None:
    outcome = play(faults=faulty(Fault(kind="node-crash", node=2, at=0.001))).outcome
    assert outcome.failures == {"node crashed": 8}
    twice = ("launch.workload=array", "launch.jobs=2")
    again = play(*twice, faults=faulty(Fault(kind="node-crash", node=2, at=0.001))).outcome
    assert again.failures == {"node crashed": 8}, "it is there again for the second job"


def test_a_crash_that_was_to_come_after_the_launch_does_not_make_the_launch_longer() -> None:
    late, usual = (play(faults=faulty(*faults)).outcome for faults in ([Fault(node=2, at=5000.0)], []))
    assert late == usual


@pytest.mark.parametrize("kind", ["node-crash", "corrupt-image", "loop-exhaustion", "clock-skew", "slow-node"])
def test_a_fault_at_a_node_beyond_the_machine_is_refused(kind: str) -> None:
    beyond = with_its_keys(Fault(kind=kind, node=6, seconds=900.0, factor=7.0))
    with pytest.raises(ScenarioInvalid) as error:
        play(nodes=6, faults=faulty(Fault(kind="gateway-down", duration=1.0), beyond))
    assert str(error.value) == (
        f"scenario: fault[1]: {kind} has node = 6, but the nodes of this machine are 0 to 5: choose one of them, or more"
        " than 6 nodes"
    )
    play("launch.machine_nodes=7", nodes=6, faults=faulty(beyond))


@pytest.mark.parametrize(
    ("settings", "last"),
    [(("launch.prepared=true",), len(PLANS.prepare) - 1), (("launch.prepared=false",), len(PLANS.start) - 1)],
)
def test_a_crash_at_a_step_beyond_the_plan_is_refused(settings: tuple[str, ...], last: int) -> None:
    assert play(*settings, faults=faulty(Fault(node=1, step=last))).outcome.crashed_nodes == 1
    with pytest.raises(
        ScenarioInvalid, match=f"node-crash has step = {last + 1}, .* this plan are 0 to {last}: choose"
    ):
        play(*settings, faults=faulty(Fault(node=1, step=last + 1)))


def test_a_node_without_a_container_crashes_too() -> None:
    assert play("launch.strategy=none", faults=faulty(Fault(node=1))).outcome.crashed_nodes == 1


def test_a_node_without_free_loop_devices_says_so_and_erofs_needs_none() -> None:
    fault = faulty(Fault(kind="loop-exhaustion", node=0))
    loop = play("launch.prepared=false", faults=fault).outcome
    assert loop.failures == {"no free loop device: all 128 are in use (max_loop)": 8}
    assert play("launch.prepared=false", "launch.strategy=erofs", faults=fault).outcome.failures == {}


def test_starts_that_mount_each_for_itself_run_out_of_loop_devices() -> None:
    own = ("launch.prepared=false", "launch.shared_hold=false", "node.max_loop=6")
    assert play(*own).outcome.failures == {"no free loop device: all 6 are in use (max_loop)": 6 * 2}
    assert play("launch.prepared=false", "node.max_loop=6").outcome.failures == {}


def test_a_gateway_that_is_down_for_a_while_delays_the_job_and_for_good_refuses_it() -> None:
    while_down = play(faults=faulty(Fault(kind="gateway-down", at=0.0, duration=15.0))).outcome
    assert while_down.gateway_timeouts == 2
    assert while_down.ready_tasks == 48
    assert while_down.first_task is not None and while_down.first_task > 20
    for_good = play(faults=faulty(Fault(kind="gateway-down"))).outcome
    assert for_good.failures == {"no gateway answered: 3 attempts of 10 s each": 48}


def test_a_stalled_metadata_server_holds_up_the_launch_until_it_is_back() -> None:
    outcome = play(faults=faulty(Fault(kind="metadata-stall", at=0.0, duration=30.0))).outcome
    assert outcome.first_task is not None and outcome.first_task > 30
    assert outcome.failures == {}


def test_a_corrupt_object_fails_the_starts_that_mount_it() -> None:
    outcome = play(faults=faulty(Fault(kind="corrupt-image", node=3))).outcome
    assert outcome.failures == {"image object is corrupt: the mount finds no valid superblock": 8}
    assert outcome.ready_tasks == 40


def test_a_wrong_clock_fails_the_look_ups_of_that_node() -> None:
    outcome = play(
        "launch.by_tag=true", "launch.prepared=false", faults=faulty(Fault(kind="clock-skew", node=1, seconds=900))
    ).outcome
    assert outcome.failures == {"munge refuses the credential: this node's clock is wrong by 900 s": 8}
    assert play(faults=faulty(Fault(kind="clock-skew", node=1, seconds=900))).outcome.failures == {}


def test_clocks_that_are_wrong_by_chance_strike_the_submitting_node_as_often_as_any() -> None:
    wrong = faulty(Fault(kind="clock-skew", probability=0.1, seconds=900))
    struck = [strike(wrong, 100, Draws(seed)) for seed in range(200)]
    assert 5 <= sum(one.submit_skew == 900 for one in struck) <= 40
    assert 1500 <= sum((one.skew == 900).sum() for one in struck) <= 2500


def test_one_slow_node_holds_up_the_last_task_and_not_the_first() -> None:
    slow = play(faults=faulty(Fault(kind="slow-node", node=5, factor=20))).outcome
    usual = play().outcome
    assert slow.last_task is not None and usual.last_task is not None
    assert slow.last_task > 3 * usual.last_task
    assert slow.first_task == pytest.approx(usual.first_task, rel=0.05)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.sampled_from(STRATEGIES),
    st.booleans(),
    st.booleans(),
    st.integers(1, 12),
    st.integers(1, 4),
    st.integers(1, 70),
    st.integers(1, 3),
    st.lists(
        st.builds(
            Fault,
            kind=st.sampled_from(FAULT_KINDS),
            at=st.sampled_from([0.0, 0.02, 0.08]),
            duration=st.sampled_from([0.0, 0.5]),
            node=st.integers(-1, 4),
            probability=st.sampled_from([0.3, 1.0]),
            step=st.integers(-1, 9),
            factor=st.sampled_from([0.5, 7.0]),
            seconds=st.sampled_from([-30.0, 400.0]),
        )
        .filter(lambda f: f.kind != "metadata-stall" or f.duration > 0)
        .map(with_its_keys),
        max_size=3,
    ),
    st.integers(0, 2**30),
)
def test_random_sites_obey_the_laws(
    strategy: str,
    prepared: bool,
    hold: bool,
    nodes: int,
    tasks: int,
    loops: int,
    jobs: int,
    faults: list[Fault],
    seed: int,
) -> None:
    """`result.check` runs in every launch: no device held twice or left, mounts undone in reverse, tasks accounted for."""
    chosen = (
        f"launch.strategy={strategy}",
        f"launch.prepared={str(prepared).lower()}",
        f"launch.shared_hold={str(hold).lower()}",
        f"launch.tasks={tasks}",
        f"node.max_loop={loops}",
        f"launch.jobs={jobs}",
        "node.cores=2",
        "image.bytes=20000000",
        "imports.files=10",
        "imports.bytes=100000",
    )
    site = faulty(*(within(fault, nodes, strategy) for fault in faults))
    one = play(*chosen, nodes=nodes, seed=seed, faults=site).outcome
    assert one.ready_tasks + one.failed_tasks == nodes * tasks * jobs
    assert (one.loop_devices_left, one.mounts_left) == (0, 0)
    assert one == play(*chosen, nodes=nodes, seed=seed, faults=site).outcome
