"""`shifter-admin audit` and `rebuild`: is the log whole, what is in it, and the image list made anew from it."""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
from typing import Any, cast

from catalog.admin_session import AdminError, opened_catalog, output_options, positive, session, show_json
from catalog.application import Catalog
from catalog.chain import ChainedLog, stream, verify

_PAGE = 5000
_HEAD = re.compile(r"\d{1,15}:[0-9a-f]{64}", re.ASCII)


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    audit = subparsers.add_parser("audit", help="check or export the event log")
    kinds = audit.add_subparsers(metavar="WHAT", required=True)
    check = kinds.add_parser(
        "verify",
        help="check the hash chain; name the first bad or missing event",
        description="Checks the hash chain through the whole log. Exit status 1 when an event was changed, removed, put "
        "in between or cut off. The head that it prints, noted elsewhere and given as --head, also shows a chain that "
        "somebody computed anew.",
    )
    check.add_argument("--head", help="NUMBER:HASH as printed earlier; must still be part of the log")
    output_options(check)
    check.set_defaults(run=_verify)
    export = kinds.add_parser("export", help="every event with its hash, as JSON lines on standard output")
    export.add_argument("--after", type=positive, default=0, metavar="NUMBER", help="only events after this one")
    export.set_defaults(run=_export)
    rebuild = subparsers.add_parser("rebuild", help="make the image list anew from the event log; gateways may run on")
    rebuild.set_defaults(run=_rebuild)


def _log(opened: Catalog) -> ChainedLog:
    return cast(ChainedLog, opened.recorder)


def _verify(arguments: argparse.Namespace) -> int:
    with opened_catalog(arguments) as opened:
        log = _log(opened)
        head = log.head()
        fault = verify(log)
        if fault is None and arguments.head:
            number, _, known = arguments.head.partition(":")
            if not _HEAD.fullmatch(arguments.head):
                raise AdminError(f"--head {arguments.head} is not NUMBER:HASH")
            rows = log.select_linked(int(number) - 1, 1) if int(number) else []
            if int(number) and (not rows or rows[0].event.id != int(number) or rows[0].hash.hex() != known):
                raise AdminError(f"the log no longer has event {number} with that hash: it was written anew")
    if arguments.json:
        found = {"event": fault.id, "reason": fault.reason} if fault else None
        show_json({"events": head.id, "head": f"{head.id}:{head.hash.hex()}", "fault": found})
    elif fault is None:
        print(f"{head.id} events, no fault; head {head.id}:{head.hash.hex()}")
    if fault is not None and not arguments.json:
        print(f"shifter-admin: the event log is damaged: {fault.reason}", file=sys.stderr)
    return 0 if fault is None else 1


def _export(arguments: argparse.Namespace) -> int:
    with opened_catalog(arguments) as opened:
        log, after = _log(opened), arguments.after
        while rows := log.select_linked(after, _PAGE):
            for row in rows:
                event = row.event
                line: dict[str, Any] = {
                    "event": event.id,
                    "stream": stream(event),
                    "version": event.originator_version,
                    "topic": event.topic,
                    "state": _shown(event.state),
                    "hash": row.hash.hex() if isinstance(row.hash, bytes) else str(row.hash),
                }
                print(json.dumps(line, default=str))
            after = rows[-1].event.id
    return 0


def _shown(state: object) -> Any:
    """An event's fields; of an event that somebody damaged, whatever is there, as text."""
    try:
        return json.loads(cast(bytes, state))
    except (ValueError, TypeError):
        return repr(state)


def _rebuild(arguments: argparse.Namespace) -> int:
    with session(arguments) as opened:
        began = time.monotonic()
        count = opened.images.rebuild()
        took = time.monotonic() - began
    print(f"image list rebuilt from {count} events in {took:.1f} s ({count / max(took, 1e-9):.0f} events/s)")
    return 0
