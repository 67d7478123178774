"""What the commands of `shifter-sim` that simulate and measure share at the terminal: arguments, tables, progress, files.

An error that a person can act on is one line and exit status 1. An interrupt (Ctrl-C, SIGTERM, SIGHUP) is heard once, and
not again while what was begun is taken down. The progress bar shows on a terminal only.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from rich.console import Console
from rich.progress import Progress, TaskID

from sim.emulation import LaunchFailed
from sim.plots import NoPlots
from sim.probe import ProbeFailed
from sim.scenario import ScenarioInvalid

EXAMPLE = """\
examples:
  shifter-sim launch small
  shifter-sim launch centre-10000 --nodes 16,256,4096,10000 --html launch.html
  shifter-sim launch centre-1000 --set launch.strategy=erofs --set launch.prepared=false
  shifter-sim compare centre-1000 centre-1000 --set-second filesystem.stripes=8
  shifter-sim advise centre-1000 --nodes 4096
  shifter-sim parameters small > site.toml
  shifter-sim calibrate --output this-machine.toml
shipped scenarios: small, centre-1000, centre-10000, imports-1000; `shifter-sim parameters` lists what can be set
"""
#: Columns of a table where standard output is no terminal.
WIDTH = 128
ENDINGS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def command(
    subparsers: argparse._SubParsersAction[argparse.ArgumentParser],
    name: str,
    run: Callable[[argparse.Namespace], int],
    text: str,
) -> argparse.ArgumentParser:
    """A subcommand whose `run` takes the arguments to the exit status."""
    parser = subparsers.add_parser(
        name,
        help=text,
        description=text[0].upper() + text[1:] + ".",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )

    def guarded(arguments: argparse.Namespace) -> int:
        try:
            with _interrupted_once():
                return run(arguments)
        except (ScenarioInvalid, LaunchFailed, ProbeFailed, NoPlots) as error:
            print(f"shifter-sim: {error}", file=sys.stderr)
        except MemoryError:
            print("shifter-sim: not enough memory for so many nodes, tasks and jobs: choose fewer", file=sys.stderr)
        except OSError as error:
            where = f"{error.filename}: {error.strerror}: choose another file" if error.filename else str(error)
            print(f"shifter-sim: {where}", file=sys.stderr)
        return 1

    parser.set_defaults(run=guarded)
    return parser


@contextmanager
def _interrupted_once() -> Iterator[None]:
    """The first of ENDINGS raises KeyboardInterrupt, the others are not heard: what is begun is taken down all the same."""

    def end(number: int, _frame: FrameType | None) -> None:
        for ending in ENDINGS:
            signal.signal(ending, signal.SIG_IGN)
        raise KeyboardInterrupt(number)

    if threading.current_thread() is not threading.main_thread():
        yield  # which alone may set handlers
        return
    before = {ending: signal.signal(ending, end) for ending in ENDINGS}
    try:
        yield
    finally:
        for ending, handler in before.items():
            signal.signal(ending, handler)


def seed(text: str) -> int:
    """An argument that is a whole number, 0 or more."""
    if not (text.isascii() and text.isdigit()):
        raise argparse.ArgumentTypeError(f"{text!r}: write a whole number, 0 or more")
    return int(text)


def number(text: str) -> int:
    """An argument that is a whole number above 0."""
    try:
        found = int(text)
    except ValueError:
        found = 0
    if found < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: write a whole number above 0")
    return found


def numbers(text: str) -> list[int]:
    """An argument that is a list of whole numbers above 0."""
    try:
        found = [int(part) for part in text.split(",")]
    except ValueError:
        found = []
    if not found or min(found) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: write whole numbers above 0, such as 16,256,4096")
    return found


def console() -> Console:
    """Standard output; wide enough for the tables where it is no terminal."""
    own = Console()
    return own if own.is_terminal else Console(width=WIDTH)


def progress() -> Progress:
    """A bar on standard error that is gone at the end; nothing where that is no terminal."""
    errors = Console(stderr=True)
    return Progress(console=errors, transient=True, disable=not errors.is_terminal)


def step(shown: Progress, task: TaskID) -> Callable[[str], None]:
    """A function that says beside the bar what is being done."""
    return lambda text: shown.update(task, description=text)


def check_files(*files: Path | None) -> None:
    """Raises OSError for a file that cannot be written, before the work whose outcome it is to hold; leaves none behind."""
    for file in files:
        if file is not None and str(file) != "-":
            there = file.exists()
            with file.open("ab"):
                pass
            if not there:
                file.unlink()


def write_file(file: Path, text: str) -> None:
    """Raises OSError, which names the file also where the disk is full."""
    try:
        file.write_text(text, encoding="utf-8")
    except OSError as error:
        error.filename = str(file)
        raise


def write_json(path: Path, value: object) -> None:
    """To a file, or for `-` to standard output."""
    text = json.dumps(value, indent=1, sort_keys=True) + "\n"
    if str(path) == "-":
        sys.stdout.write(text)
    else:
        write_file(path, text)
