"""What every administrator's subcommand needs: the opened catalog, and tables for people or JSON for programs."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from catalog import callers
from catalog.application import Catalog, open_factory, open_side_table
from catalog.config import Configuration, load
from catalog.history import History
from catalog.image_list import ImageList
from catalog.leases import SideTable

_PRETTY = 500  # rows
_MOST = 10**15


class AdminError(Exception):
    """A subcommand cannot do what it was told; one line that says why."""


@dataclass(frozen=True)
class Session:
    """The opened parts of one gateway's state."""

    configuration: Configuration
    catalog: Catalog
    images: ImageList
    history: History
    side_table: SideTable


@contextmanager
def session(arguments: argparse.Namespace) -> Iterator[Session]:
    """Opens what --config names. Raises ConfigError, StoreUnavailable."""
    configuration = load(arguments.config)
    catalog = Catalog(open_factory(configuration.store), time.time)
    try:
        images = ImageList(configuration.state_directory / "images.sqlite", catalog.recorder, catalog.mapper)
        side_table = open_side_table(catalog.factory, configuration.store)
        yield Session(configuration, catalog, images, History(images), side_table)
        images.close()
        side_table.close()
    finally:
        catalog.close()


@contextmanager
def opened_catalog(arguments: argparse.Namespace) -> Iterator[Catalog]:
    """Opens the event log alone: a damaged one must not keep anybody from looking at it. Raises as `session` does."""
    catalog = Catalog(open_factory(load(arguments.config).store), time.time)
    try:
        yield catalog
    finally:
        catalog.close()


def positive(text: str) -> int:
    """The type of an argument that counts rows, or names an event by its number."""
    if not text.isascii() or not text.isdigit() or not 1 <= int(text) <= _MOST:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 to {_MOST}")
    return int(text)


user_name = cache(callers.user_name)
"""catalog.callers.user_name, asked once a command for each uid: a site's directory service may be slow."""

group_name = cache(callers.group_name)


def output_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")


def show_table(columns: Sequence[str], rows: Iterable[Sequence[str]], *, empty: str) -> None:
    """A table on standard output; where it is not a terminal, or long, plain and not cut to any width."""
    # Names and reasons come from users and registries: nothing in them may act, as markup or on the terminal.
    shown = [[harmless(text) for text in row] for row in rows]
    if not shown:
        print(empty, file=sys.stderr)
    elif sys.stdout.isatty() and len(shown) <= _PRETTY:
        table = Table(box=None, pad_edge=False, header_style="bold")
        for column in columns:
            table.add_column(column, overflow="fold")
        for row in shown:
            table.add_row(*map(Text, row))
        Console(highlight=False).print(table)
    else:
        # By hand: for twenty thousand rows the other way takes ten seconds.
        filled = [_filled([title, *cells]) for title, *cells in zip(columns, *shown, strict=True)]
        for line in zip(*filled, strict=True):
            print("  ".join(line).rstrip())


def _filled(cells: Sequence[str]) -> list[str]:
    """The cells of a column, all as wide as the widest."""
    widths = list(map(len if all(map(str.isascii, cells)) else cell_len, cells))
    widest = max(widths)
    return [text + " " * (widest - width) for text, width in zip(cells, widths, strict=True)]


def harmless(text: str) -> str:
    """`text` with characters that control a terminal written as escapes."""
    if text.isprintable():
        return text
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in text)


def show_json(value: object) -> None:
    json.dump(value, sys.stdout, indent=2)
    print()
