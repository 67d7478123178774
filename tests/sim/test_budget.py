"""What this project's own CI holds its launches to: one look-up a job, one image open a node, no device left.

The plans come from the real planner and the answers from the real gateway, so a change there that would hurt at
scale fails here.
"""

from collections.abc import Callable

import pytest

from sim.pytest_plugin import Budget, launch

__all__ = ["launch"]
Simulate = Callable[..., Budget]

SITES = [("small", 16), ("centre-1000", 1000), ("centre-10000", 2000)]


@pytest.mark.parametrize(("site", "nodes"), SITES)
@pytest.mark.parametrize("prepared", ["true", "false"])
def test_a_launch_asks_once_opens_once_and_leaves_nothing(
    launch: Simulate, site: str, nodes: int, prepared: str
) -> None:
    outcome = launch(site, f"launch.prepared={prepared}", nodes=nodes)
    outcome.assert_gateway_requests(max=1)
    outcome.assert_image_opens(max=1)
    outcome.assert_loop_devices(max=1)
    outcome.assert_no_leaks()
    outcome.assert_no_failures()
    outcome.assert_one_image()


@pytest.mark.parametrize(
    ("settings", "broken", "message"),
    [
        (("launch.by_tag=true",), lambda o: o.assert_gateway_requests(max=1), "512 gateway requests a job; the budget is"),
        (("launch.shared_hold=false",), lambda o: o.assert_image_opens(max=1), "32 image opens on a node; the budget"),
        (("launch.shared_hold=false",), lambda o: o.assert_loop_devices(max=1), "32 loop devices on a node"),
        (("node.max_loop=1", "node.loops_in_use=1"), lambda o: o.assert_no_failures(), "512 tasks: no free loop device"),
        ((), lambda o: o.assert_last_task(within=0.001), "the budget is 0.001 s (slowest phase: "),
    ],
)  # fmt: skip
def test_a_launch_over_its_budget_fails_and_says_by_what(
    launch: Simulate, settings: tuple[str, ...], broken: Callable[[Budget], None], message: str
) -> None:
    outcome = launch("small", "launch.prepared=false", *settings)
    with pytest.raises(pytest.fail.Exception) as error:
        broken(outcome)
    assert message in str(error.value)


def test_a_leak_fails_the_budget(launch: Simulate) -> None:
    import dataclasses

    leaky = Budget(dataclasses.replace(launch("small").outcome, loop_devices_left=3))
    with pytest.raises(pytest.fail.Exception, match="3 loop devices and 0 mounts left behind"):
        leaky.assert_no_leaks()
