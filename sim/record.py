"""What a run writes down: a row a node of a job, a column a task; seconds since the run began, NaN for what never happened."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from sim.draws import Floats


@dataclass
class JobRecord:
    """One job's way. `rows` is its first row in the node table; `identifier` what was looked up at submission."""

    index: int
    rows: int
    nodes: int
    submitted: float
    looked_up: float = float("nan")
    allocated: float = float("nan")
    step: float = float("nan")
    ended: float = float("nan")
    identifier: str = ""
    failure: str = ""


@dataclass
class Record:
    """Times of every node launch (rows) and task (rows x tasks)."""

    prolog_begin: Floats
    prolog_end: Floats
    message: Floats
    stepd_end: Floats
    started: Floats
    environment: Floats
    executed: Floats
    ready: Floats
    epilog_begin: Floats
    epilog_end: Floats
    jobs: list[JobRecord] = field(default_factory=list)
    failures: dict[str, int] = field(default_factory=dict)
    failed_tasks: int = 0
    crashed_nodes: int = 0
    identifiers: dict[int, set[str]] = field(default_factory=dict)

    @classmethod
    def blank(cls, rows: int, tasks: int) -> Record:
        """A record in which nothing has happened yet."""

        def per_node() -> Floats:
            return np.full(rows, np.nan)

        def per_task() -> Floats:
            return np.full((rows, tasks), np.nan)

        return cls(
            prolog_begin=per_node(),
            prolog_end=per_node(),
            message=per_node(),
            stepd_end=per_node(),
            started=per_task(),
            environment=per_task(),
            executed=per_task(),
            ready=per_task(),
            epilog_begin=per_node(),
            epilog_end=per_node(),
        )

    def fail(self, reason: str, tasks: int) -> None:
        """Counts tasks that failed for a reason."""
        if tasks:
            self.failed_tasks += tasks
            self.failures[reason] = self.failures.get(reason, 0) + tasks
