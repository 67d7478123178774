"""`shifter-admin history` and the other questions about the past."""

from __future__ import annotations

import argparse
import time
from typing import Any

from catalog.acl import Access
from catalog.admin_session import group_name, output_options, positive, session, show_json, show_table
from catalog.domain import EVENTS
from catalog.history import Filter, Happening
from catalog.times import parse_time, show_time

_FAILURES = ("failure", "import failure")


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    history = subparsers.add_parser("history", help="who did what, and when")
    _filters(history)
    history.add_argument(
        "--action",
        choices=sorted({event.action for event in EVENTS}),
        metavar="ACTION",
        help="only this action: pull, ready, failure, expired, removed, acl, used ...",
    )
    history.set_defaults(run=_history)

    failures = subparsers.add_parser("failures", help="what failed, and why")
    _filters(failures)
    failures.set_defaults(run=_failures)


def _filters(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--image", help="only this tag, id, or pattern with *")
    parser.add_argument("--user", help="only this user (name or uid)")
    parser.add_argument("--system", help="only this system")
    parser.add_argument("--since", help="not before this time: 2026-11-23T18:00:00+01:00, 2026-11-23, 2h, 3d")
    parser.add_argument("--until", help="before this time")
    parser.add_argument("--limit", type=positive, default=1000, help="at most so many, the newest (default: 1000)")
    output_options(parser)


def _history(arguments: argparse.Namespace) -> int:
    with session(arguments) as opened:
        found = opened.history.happenings(_wanted(arguments, arguments.action), limit=arguments.limit)
        _show(found, arguments)
    return 0


def _failures(arguments: argparse.Namespace) -> int:
    with session(arguments) as opened:
        found: list[Happening] = []
        for action in _FAILURES:
            found += opened.history.happenings(_wanted(arguments, action), limit=arguments.limit)
        found.sort(key=lambda one: one.id)
        _show(found[-arguments.limit :], arguments)
    return 0


def _wanted(arguments: argparse.Namespace, action: str | None) -> Filter:
    now = time.time()
    return Filter(
        system=arguments.system,
        image=arguments.image,
        user=arguments.user,
        action=action,
        since=parse_time(arguments.since, now) if arguments.since else None,
        until=parse_time(arguments.until, now) if arguments.until else None,
    )


def _show(found: list[Happening], arguments: argparse.Namespace) -> None:
    if arguments.json:
        show_json([as_json(one) for one in found])
        return
    rows = [
        (
            str(one.id),
            show_time(one.at),
            one.user or "",
            one.action,
            one.reference.system,
            str(one.reference),
            describe(one),
        )
        for one in found
    ]
    show_table(("event", "time", "user", "action", "system", "image", "what"), rows, empty="nothing found")


def as_json(one: Happening) -> dict[str, Any]:
    """One event for programs; `detail` has the event's own fields."""
    return {
        "event": one.id,
        "time": show_time(one.at),
        "action": one.action,
        "system": one.reference.system,
        "type": one.reference.itype,
        "tag": one.reference.tag,
        "uid": one.uid,
        "user": one.user,
        "id": one.image,
        "detail": {key: value for key, value in one.detail.items() if key not in {"timestamp", "originator_topic"}},
    }


def describe(one: Happening) -> str:
    """What an event says beyond who and what, in a few words."""
    detail = one.detail
    if "reason" in detail:
        return f"{detail['reason']} (at {detail['stage']})"
    if "stage" in detail:
        return f"{detail['stage']} by {detail['worker']}"
    if "image" in detail:
        access = Access.from_json(detail["access"])
        return f"id {detail['image']['id'][:12]}, {detail['image']['size'] / 1e6:.1f} MB, {describe_access(access)}"
    if "access" in detail:
        return describe_access(Access.from_json(detail["access"]))
    if "by" in detail:
        return f"by {detail['by']}"
    if detail.get("asked"):
        return f"for {describe_access(Access.from_json(detail['asked']))}"
    return str(detail.get("path") or detail.get("location") or "")


def describe_access(access: Access) -> str:
    if access.public:
        return "public"
    words = []
    if access.uids:
        words.append("uids " + ",".join(map(str, sorted(access.uids))))
    if access.gids:
        words.append("groups " + ",".join(group_name(gid) for gid in sorted(access.gids)))
    return "; ".join(words) or "nobody"
