"""A pytest plugin: a launch held to a budget in a site's own CI.

Installed with the product, it gives tests the fixture `launch`:

    def test_our_site(launch):
        outcome = launch("site.toml", nodes=4096, seed=1)
        outcome.assert_gateway_requests(max=1)
        outcome.assert_image_opens(max=1)
        outcome.assert_no_leaks()
        outcome.assert_last_task(within=5.0)

A failed assertion says what was found and where the time went. Nothing of the simulator is imported before the
fixture is used.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from sim.parameters import Scenario
    from sim.result import Launch


class Budget:
    """A launch's outcome with assertions; `outcome` has every figure (`sim.result.Launch`)."""

    def __init__(self, outcome: Launch) -> None:
        self.outcome = outcome

    def assert_gateway_requests(self, *, max: int) -> None:
        """At most so many look-ups for each job."""
        found = self.outcome.lookups_per_job
        self._hold(found <= max, f"{found:g} gateway requests a job", f"at most {max}")

    def assert_image_opens(self, *, max: int) -> None:
        """The image file is opened at most so often by any node for a job."""
        found = self.outcome.image_opens_per_node
        self._hold(found <= max, f"{found} image opens on a node", f"at most {max}")

    def assert_loop_devices(self, *, max: int) -> None:
        """At most so many loop devices in use on any node at any time."""
        found = self.outcome.loop_devices_per_node
        self._hold(found <= max, f"{found} loop devices on a node", f"at most {max}")

    def assert_no_leaks(self) -> None:
        """No loop device, mount or hold is left on any node when the jobs are over."""
        left = (self.outcome.loop_devices_left, self.outcome.mounts_left)
        self._hold(left == (0, 0), f"{left[0]} loop devices and {left[1]} mounts left behind", "none")

    def assert_no_failures(self) -> None:
        """Every task gets up."""
        reasons = "; ".join(f"{count} tasks: {reason}" for reason, count in self.outcome.failures.items())
        self._hold(not self.outcome.failures, reasons, "no failure")

    def assert_one_image(self) -> None:
        """All nodes of each job start the same image, whatever happens to its tag meanwhile."""
        found = self.outcome.mixed_images
        self._hold(found == 0, f"{found} jobs started different images on their nodes", "none")

    def assert_last_task(self, *, within: float) -> None:
        """The last task is up within so many seconds of its submission."""
        found = self.outcome.last_task
        when = "no task got up" if found is None else f"last task after {found:.3g} s"
        self._hold(found is not None and found <= within, when, f"{within:g} s")

    def _hold(self, held: bool, found: str, budget: str) -> None:
        if held:
            return
        o = self.outcome
        slow = max((p for p in o.phases.values() if p.name != "start"), key=lambda p: p.p95)
        place = f"{o.scenario}, {o.nodes} nodes x {o.tasks} tasks, seed {o.seed}"
        pytest.fail(
            f"{place}: {found}; the budget is {budget} (slowest phase: {slow.name}, 95% {slow.p95:.3g} s)",
            pytrace=False,
        )


@pytest.fixture
def launch() -> Callable[..., Budget]:
    """A function (scenario, *settings, nodes=None, seed=0) that simulates a launch and returns its `Budget`.

    `scenario` is a file, the name of a shipped one, or a `Scenario`; settings are "section.key=value".
    """
    from sim import launch as launching
    from sim import scenario as scenarios

    def simulate(scenario: str | Scenario, *settings: str, nodes: int | None = None, seed: int = 0) -> Budget:
        chosen = scenarios.load(scenario) if isinstance(scenario, str) else scenario
        chosen = scenarios.override(launching.at_size(chosen, nodes), settings)
        return Budget(launching.simulate(chosen, seed=seed))

    return simulate
