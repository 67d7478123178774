"""`shifter-admin usage`: who holds how many bytes, now or at a time."""

from __future__ import annotations

import argparse
import time

from catalog.admin_session import output_options, positive, session, show_json, show_table, user_name
from catalog.rest_usage import file_json, share_json
from catalog.times import parse_time
from catalog.usage import NOW, Usage, usage

_MEGABYTE = 1e6


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser("usage", help="who holds how many bytes, and which images are large")
    parser.add_argument("--images", action="store_true", help="list image files, the largest first, instead of users")
    parser.add_argument("--system", help="only this system")
    parser.add_argument("--as-of", help="at this time: 2026-11-23T18:00:00+01:00, 2026-11-23, 2h, 3d (default: now)")
    parser.add_argument("--limit", type=positive, default=50, help="at most so many rows (default: 50)")
    output_options(parser)
    parser.set_defaults(run=_usage)


def _usage(arguments: argparse.Namespace) -> int:
    at = parse_time(arguments.as_of, time.time()) if arguments.as_of else NOW
    with session(arguments) as opened:
        found = usage(opened.history.spans_at(at, arguments.system))
    if arguments.json:
        show_json(
            {
                "total": found.total,
                "images": [{"system": file.system, **file_json(file)} for file in found.files],
                "users": [share_json(share) for share in found.users],
            }
        )
    elif arguments.images:
        _show_images(found, arguments.limit)
    else:
        _show_users(found, arguments.limit)
    return 0


def _show_users(found: Usage, limit: int) -> None:
    rows = [
        (
            "(unknown)" if share.uid is None else user_name(share.uid),
            str(share.references),
            str(share.files),
            _megabytes(share.own),
            _megabytes(share.shared),
        )
        for share in found.users[:limit]
    ]
    show_table(("user", "references", "files", "own MB", "shared MB"), rows, empty="there are no images")
    if rows:
        print(f"all files together: {_megabytes(found.total)} MB")


def _show_images(found: Usage, limit: int) -> None:
    rows = [
        (
            _megabytes(file.size),
            file.system,
            file.image[:12],
            ", ".join(map(user_name, file.owners)),
            " ".join(file.tags),
        )
        for file in found.files[:limit]
    ]
    show_table(("MB", "system", "id", "owners", "tags"), rows, empty="there are no images")


def _megabytes(size: int) -> str:
    return f"{size / _MEGABYTE:.1f}"
