"""What the users of a launch do: the jobs of each workload, and the pulls beside them."""

from __future__ import annotations

from sim.jobs import JobSpec
from sim.parameters import Scenario

#: The first uid of the imagined users.
FIRST_USER = 10_000


def reference(number: int) -> str:
    """The name of an imagined image."""
    return f"science/app{number}:latest"


def jobs(scenario: Scenario) -> list[JobSpec]:
    """The jobs in the order of their submission."""
    p = scenario.launch
    many_users = p.workload in ("many", "pull-storm")
    return [
        JobSpec(
            at=j * p.interval,
            user=FIRST_USER + (j if many_users else 0),
            reference=reference(j % p.images if p.workload == "many" else 0),
            pull=p.workload == "pull-storm",
        )
        for j in range(p.jobs)
    ]


def images(scenario: Scenario) -> list[str]:
    """The references that are READY when the run begins: none in a pull storm, where the image is cold."""
    if scenario.launch.workload == "pull-storm":
        return []
    return sorted({spec.reference for spec in jobs(scenario)})
