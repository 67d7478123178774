"""`python -m bench [ONLY]`: runs the rows whose names begin with ONLY, prints a table and writes build/bench.json.

bench.json is an array of {"name", "value", "unit", "ratio", "against", "goal", "met"}. A row that fails has
the value null and is shown with its reason; the others still run, and the exit status is 1.
"""

import importlib
import json
import pkgutil
import sys
import time
from pathlib import Path

import bench
from bench import ROWS, Measured, Row

RESULT = Path(__file__).parent.parent / "build" / "bench.json"


def record(row: Row, measured: Measured | None) -> dict[str, object]:
    """One element of bench.json, with exactly the seven documented keys; `measured` is None for a row that failed."""
    return {
        "name": row.name,
        "value": measured.value if measured else None,
        "unit": row.unit,
        "ratio": measured.ratio if measured else None,
        "against": row.against,
        "goal": row.goal,
        "met": row.met(measured) if measured else False,
    }


def line(name: str, value: str, unit: str, ratio: str, against: str, goal: str, met: str) -> str:
    return f"{name:<44} {value:>12} {unit:<12} {ratio:>8} {goal:>9} {met:<4} {against}".rstrip()


def figure(number: float | None) -> str:
    return "" if number is None else f"{number:.4g}" if abs(number) < 10_000 else f"{number:,.0f}"


def main(arguments: list[str]) -> int:
    if any(argument in ("-h", "--help") for argument in arguments):
        print(__doc__)
        return 0
    only = arguments[0] if arguments else ""
    failures = []
    for module in pkgutil.iter_modules(bench.__path__):
        if not module.name.startswith("_"):
            try:
                importlib.import_module(f"bench.{module.name}")
            except Exception as error:  # noqa: BLE001 - a broken module of one room must not hide the others' rows
                failures.append(f"bench/{module.name}.py cannot be imported: {type(error).__name__}: {error}")
    rows = [row for name, row in sorted(ROWS.items()) if name.startswith(only)]
    if not rows and not failures:
        print(f"no benchmark is called {only}*; there are: {', '.join(sorted(ROWS)) or 'none'}", file=sys.stderr)
        return 1
    print(line("name", "value", "unit", "ratio", "against", "goal", "met"), flush=True)
    records = []
    for row in rows:
        measured = None
        started = time.monotonic()
        try:
            measured = row.measure()
        except Exception as error:  # noqa: BLE001 - a row that fails is shown with its reason and does not stop the others
            failures.append(f"{row.name}: {type(error).__name__}: {error} (after {time.monotonic() - started:.1f} s)")
        records.append(record(row, measured))
        met = {True: "yes", False: "NO", None: ""}[row.met(measured)] if measured else "FAILED"
        value = figure(measured.value) if measured else ""
        ratio = figure(measured.ratio) if measured else ""
        goal = "" if row.goal is None else (">= " if row.better == "more" else "<= ") + figure(row.goal)
        print(line(row.name, value, row.unit, ratio, row.against or "", goal, met), flush=True)
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(records, indent=1) + "\n")
    for failure in failures:
        print(failure, file=sys.stderr)
    print(f"written to {RESULT.relative_to(Path.cwd()) if RESULT.is_relative_to(Path.cwd()) else RESULT}")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
