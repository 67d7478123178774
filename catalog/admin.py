"""`shifter-admin`: the administrator's command. This module has the entry; each group of subcommands has a module of its
own with `register(subparsers)`, whose handlers take the parsed arguments and return the exit status.

Subcommands work on the event store and the image directories that imagemanager.json names, also while gateways run.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

from eventsourcing.persistence import PersistenceError

from cas.errors import StoreError
from catalog.admin_session import AdminError
from catalog.application import Contended, StoreUnavailable
from catalog.config_reader import ConfigError
from catalog.leases import SideTableUnavailable
from catalog.states import NotAllowed
from catalog.times import TimeInvalid

GROUPS = ("admin_history", "admin_past", "admin_usage", "admin_audit", "admin_life", "admin_migrate", "admin_store")


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Exit status 0 when done, 1 when it failed or found a fault, 2 for a wrong command line."""
    parser = argparse.ArgumentParser(
        prog="shifter-admin",
        description="Looks into and looks after an image gateway: its history, its audit chain, its images and its store.",
        epilog="Example: shifter-admin history --since 2h. `shifter-admin COMMAND --help` explains each command.",
    )
    parser.add_argument("--version", action="version", version=f"shifter-admin {version('shifter')}")
    parser.add_argument(
        "--config",
        type=Path,
        default=Path(os.environ.get("GWCONFIG", "/etc/shifter/imagemanager.json")),
        help="the gateway's configuration (default: $GWCONFIG, else /etc/shifter/imagemanager.json)",
    )
    subparsers = parser.add_subparsers(metavar="COMMAND", required=True)
    for group in GROUPS:
        if find_spec(f"catalog.{group}") is not None:
            importlib.import_module(f"catalog.{group}").register(subparsers)
    arguments = parser.parse_args(argv)
    try:
        return int(arguments.run(arguments))
    except (
        AdminError,
        ConfigError,
        Contended,
        NotAllowed,
        PersistenceError,
        SideTableUnavailable,
        StoreError,
        StoreUnavailable,
        TimeInvalid,
    ) as error:
        print(f"shifter-admin: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:
        # The reader (head, a pager) has seen enough.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except PermissionError as error:
        print(
            f"shifter-admin: {error.filename}: {error.strerror}: run it as the gateway's account, or root",
            file=sys.stderr,
        )
        return 1
    except OSError as error:
        print(f"shifter-admin: {error.filename or 'input or output'}: {error.strerror or error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
