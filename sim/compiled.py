"""A plan of the runtime, priced: which step costs what on a node, and where the image comes in.

The steps are the runtime's own (`runtime.plan`), computed by its own planner; nothing here decides what a start
does. What is added is the price of each step (`parameters.STEP_SECONDS`), and a cut into the three pieces that
matter to a launch: before the image is there, after it, and the exec.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from runtime.plan import Bind, Exec, Image, Local, NodeDisk, Overlay, Proc, Step, Tmpfs, describe
from sim.parameters import Scenario

#: Steps that add a mount to the namespace.
MOUNTS = (Image, Local, Tmpfs, Bind, Overlay, Proc, NodeDisk)


@dataclass(frozen=True)
class Charge:
    """One step and its price in CPU seconds."""

    verb: str
    text: str
    seconds: float
    mount: bool


@dataclass(frozen=True)
class Compiled:
    """A priced plan. `image` is None when the plan mounts none; `execute` is None for a prepared environment; `images`
    is how many image files it mounts."""

    before: tuple[Charge, ...]
    image: Charge | None
    after: tuple[Charge, ...]
    execute: Charge | None
    images: int = 1

    @property
    def before_seconds(self) -> float:
        return sum(c.seconds for c in self.before)

    @property
    def after_seconds(self) -> float:
        return sum(c.seconds for c in self.after)

    @property
    def execute_seconds(self) -> float:
        return self.execute.seconds if self.execute else 0.0

    @property
    def steps(self) -> tuple[Charge, ...]:
        """All charges in the order of the plan."""
        return (
            *self.before,
            *((self.image,) if self.image else ()),
            *self.after,
            *((self.execute,) if self.execute else ()),
        )

    @property
    def mounts(self) -> tuple[str, ...]:
        """What is mounted, in the order of the plan."""
        return tuple(c.text for c in self.steps if c.mount)


def price(steps: Sequence[Step], scenario: Scenario, together: int) -> Compiled:
    """The plan with prices; `together` starts run at once on a node, which makes each mount dearer (mount_contention)."""
    crowd = 1.0 + scenario.node.mount_contention * (max(1, together) - 1)
    before: list[Charge] = []
    after: list[Charge] = []
    image: Charge | None = None
    execute: Charge | None = None
    for step in steps:
        is_mount = isinstance(step, MOUNTS)
        cost = scenario.step_cost(step.verb) * (crowd if is_mount else 1.0)
        charge = Charge(step.verb, describe(step), cost, is_mount)
        if isinstance(step, (Image, Local)):
            image = charge
        elif isinstance(step, Exec):
            execute = charge
        else:
            (before if image is None else after).append(charge)
    images = sum(isinstance(step, Image) for step in steps)
    return Compiled(tuple(before), image, tuple(after), execute, images)
