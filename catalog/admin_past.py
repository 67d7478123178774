"""`shifter-admin images`, `diff`, `who-can-run` and `who-ran`: what the image list was, and who could and did use it."""

from __future__ import annotations

import argparse
import time
from typing import Any

from catalog.acl import Access
from catalog.admin_history import describe_access
from catalog.admin_session import (
    AdminError,
    Session,
    group_name,
    output_options,
    positive,
    session,
    show_json,
    show_table,
    user_name,
)
from catalog.history import Filter, Span
from catalog.times import parse_time, show_time

_NOW = 9e17


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    images = subparsers.add_parser("images", help="the images that can be run, now or at a time")
    images.add_argument("--as-of", metavar="TIME", help="at this time: 2026-11-23T18:00:00+01:00, 2026-11-23, 2h, 3d")
    images.add_argument("--system", help="only this system")
    output_options(images)
    images.set_defaults(run=_images)

    diff = subparsers.add_parser("diff", help="what changed in the image list between two times")
    diff.add_argument("first", metavar="TIME")
    diff.add_argument("second", metavar="TIME", nargs="?", help="default: now")
    diff.add_argument("--system", help="only this system")
    output_options(diff)
    diff.set_defaults(run=_diff)

    can = subparsers.add_parser("who-can-run", help="who may run an image, now or at a time")
    can.add_argument("image", metavar="IMAGE", help="a tag or an id")
    can.add_argument("--as-of", metavar="TIME")
    output_options(can)
    can.set_defaults(run=_who_can_run)

    ran = subparsers.add_parser(
        "who-ran",
        help="who looked an image up",
        description="With Metrics on in imagemanager.json, every look-up; else the uses in the event log, of which there "
        "is at most one an hour for each image.",
    )
    ran.add_argument("image", metavar="IMAGE", nargs="?", help="a tag or an id; default: all")
    ran.add_argument("--system", help="only this system")
    ran.add_argument("--since", metavar="TIME")
    ran.add_argument("--limit", type=positive, default=1000)
    output_options(ran)
    ran.set_defaults(run=_who_ran)


def _when(text: str | None) -> float:
    return parse_time(text, time.time()) if text else _NOW


def _images(arguments: argparse.Namespace) -> int:
    with session(arguments) as opened:
        spans = opened.history.spans_at(_when(arguments.as_of), arguments.system)
    if arguments.json:
        show_json([span_json(span) for span in spans])
    else:
        _table(spans)
    return 0


def _diff(arguments: argparse.Namespace) -> int:
    with session(arguments) as opened:
        added, gone = opened.history.difference(_when(arguments.first), _when(arguments.second), arguments.system)
    if arguments.json:
        show_json({"added": [span_json(span) for span in added], "gone": [span_json(span) for span in gone]})
        return 0
    rows = [("-", *_row(span)) for span in gone] + [("+", *_row(span)) for span in added]
    rows.sort(key=lambda row: (row[1:3], row[0] == "+"))
    show_table(("", *_COLUMNS), rows, empty="no difference")
    return 0


def _who_can_run(arguments: argparse.Namespace) -> int:
    with session(arguments) as opened:
        found = opened.history.who_can_run(_tag(opened, arguments.image), _when(arguments.as_of))
    if not found:
        raise AdminError(f"no image {arguments.image}" + (" at that time" if arguments.as_of else ""))
    if arguments.json:
        show_json([{"system": system, "id": image, **access.to_json()} for (system, image), access in found.items()])
        return 0
    rows = [(system, image[:12], _people(access)) for (system, image), access in sorted(found.items())]
    show_table(("system", "id", "who"), rows, empty="")
    return 0


def _who_ran(arguments: argparse.Namespace) -> int:
    with session(arguments) as opened:
        since = parse_time(arguments.since, time.time()) if arguments.since else 0.0
        image = _tag(opened, arguments.image) if arguments.image else None
        found: list[dict[str, Any]] = []
        systems = [arguments.system] if arguments.system else sorted(opened.configuration.platforms)
        if opened.configuration.metrics:
            for system in systems:
                lookups = opened.side_table.lookups(system, limit=arguments.limit, image=image, since=since)
                found += [
                    {"time": one.at, "user": one.user, "uid": one.uid, "system": system, "type": one.itype,
                     "tag": one.tag, "id": one.image}
                    for one in lookups
                ]  # fmt: skip
        else:
            wanted = Filter(system=arguments.system, image=image, action="used", since=since or None)
            for event in opened.history.happenings(wanted, limit=arguments.limit):
                name = event.reference
                found.append(
                    {"time": event.at, "user": event.user, "uid": event.uid, "system": name.system, "type": name.itype,
                     "tag": name.tag, "id": event.image}
                )  # fmt: skip
    found.sort(key=lambda one: float(one["time"]))
    if arguments.json:
        show_json([{**one, "time": show_time(one["time"])} for one in found])
        return 0
    rows = [(show_time(o["time"]), o["user"], o["system"], f"{o['type']}:{o['tag']}", str(o["id"])[:12]) for o in found]
    show_table(("time", "user", "system", "image", "id"), rows, empty="nothing found")
    return 0


_COLUMNS = ("system", "image", "id", "MB", "owner", "since", "who")


def _table(spans: list[Span]) -> None:
    show_table(_COLUMNS, [_row(span) for span in spans], empty="no images")


def _row(span: Span) -> tuple[str, ...]:
    owner = "" if span.owner is None else user_name(span.owner)
    return (
        span.reference.system,
        str(span.reference),
        span.image[:12],
        f"{span.size / 1e6:.1f}",
        owner,
        show_time(span.since),
        describe_access(span.access),
    )


def span_json(span: Span) -> dict[str, Any]:
    """A span for programs."""
    return {
        "system": span.reference.system,
        "type": span.reference.itype,
        "tag": span.reference.tag,
        "id": span.image,
        "object": span.object,
        "size": span.size,
        "owner": span.owner,
        "since": show_time(span.since),
        "until": show_time(span.until) if span.until is not None else None,
        "access": span.access.to_json(),
    }


def _people(access: Access) -> str:
    if access.public:
        return "everybody"
    users = [user_name(uid) for uid in sorted(access.uids)]
    groups = [f"group {group_name(gid)}" for gid in sorted(access.gids)]
    return ", ".join(users + groups) or "nobody"


def _tag(opened: Session, text: str) -> str:
    """A tag as the catalog writes it: `docker:alpine` is `alpine:latest`."""
    word = text.removeprefix("docker:").removeprefix("custom:")
    is_id = len(word) == 64 and not set(word) - set("0123456789abcdef")
    return word if is_id or ":" in word.rpartition("/")[2] or "@" in word else f"{word}:latest"
