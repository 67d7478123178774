"""A small imagined site for tests of the simulator itself: the default scenario's plans, and a gateway that knows every image."""

from sim import launch, plans, scenario
from sim.gateway import Answer
from sim.machine import Machine, Plans
from sim.parameters import Scenario

PLANS = plans.make(Scenario())
BARE = plans.make(scenario.override(Scenario(), ["launch.strategy=none"]))


class KnowsEveryImage:
    """A gateway's answers: each reference is READY, its identifier made of its name."""

    downloads = 0

    def lookup(self, user: int, reference: str, now: float) -> Answer:
        return Answer(200, reference.encode().hex().ljust(64, "0")[:64], "READY")

    pull = lookup

    def attend(self, machine: Machine) -> None:
        """Nothing works in the background."""


def play(
    *settings: str,
    nodes: int = 6,
    seed: int = 0,
    stepwise: bool = False,
    faults: Scenario | None = None,
    plan: Plans | None = None,
) -> launch.Run:
    """Plays the default scenario with `--set` settings, 8 tasks a node unless said otherwise."""
    base = faults or Scenario()
    chosen = scenario.override(base, ("launch.tasks=8", f"launch.nodes={nodes}", *settings))
    answers = KnowsEveryImage()
    made = plan or (BARE if chosen.launch.strategy == "none" else PLANS)
    return launch.play_with(Machine(chosen, made, answers, seed, stepwise), seed, answers)
