"""`shifter-admin expire`, `autoexpire`, `undelete` and `queue`: the life of images, from the gateway's own machine."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from catalog.admin_session import AdminError, output_options, session, show_json, show_table
from catalog.callers import user_name
from catalog.config import Platform
from catalog.desk import Desk, NotFound, Refused, Wallet
from catalog.gateway import publication_of
from catalog.leases import Leases
from catalog.reference import Reference
from catalog.times import show_time


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    expire = subparsers.add_parser("expire", help="let an image expire now; undelete brings it back until gc")
    _image(expire)
    expire.set_defaults(run=_expire)
    auto = subparsers.add_parser("autoexpire", help="let expire what nobody used for ImageExpirationTimeout")
    auto.add_argument("--system", help="only this system")
    auto.add_argument("--dry-run", action="store_true", help="only say what would expire")
    output_options(auto)
    auto.set_defaults(run=_autoexpire)
    undelete = subparsers.add_parser("undelete", help="bring an expired image back while its file is still there")
    _image(undelete)
    undelete.set_defaults(run=_undelete)
    queue = subparsers.add_parser("queue", help="what is being brought in, who works at it, and what failed")
    output_options(queue)
    queue.set_defaults(run=_queue)


def _image(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("image", metavar="IMAGE", help="a tag, with its type when that is not docker: custom:name:1")
    parser.add_argument("--system", help="the system; may be left out when there is one only")


@contextmanager
def _desk(arguments: argparse.Namespace) -> Iterator[Desk]:
    with session(arguments) as opened:
        leases = Leases(opened.side_table, opened.configuration.lease_seconds)
        try:
            publication = publication_of(opened.configuration, opened.images, leases)
            touched: dict[str, Platform] = {}
            yield Desk(
                opened.configuration,
                opened.catalog,
                opened.images,
                leases,
                publication,
                Wallet(),
                lambda identity: None,
                lambda platform: touched.update({platform.name: platform}),
            )
            for name, platform in touched.items():
                if publication.pay([platform]):
                    # Recorded all the same, and why was logged.
                    print(
                        f"shifter-admin: the nodes of {name} cannot be told now; a gateway does it later",
                        file=sys.stderr,
                    )
        except (NotFound, Refused) as error:
            raise AdminError(str(error)) from None
        finally:
            leases.close()


def _reference(desk: Desk, arguments: argparse.Namespace) -> Reference:
    systems = sorted(desk.configuration.platforms)
    system = arguments.system or (systems[0] if len(systems) == 1 else None)
    if system is None:
        raise AdminError(f"say which system: --system {' or '.join(systems)}")
    itype, colon, rest = arguments.image.partition(":")
    if not colon or itype not in {"docker", "custom"}:
        itype, rest = "docker", arguments.image
    desk.platform(system)
    return desk.reference(system, itype, rest)


def _expire(arguments: argparse.Namespace) -> int:
    with _desk(arguments) as desk:
        reference = _reference(desk, arguments)
        desk.expire(reference, by="admin", uid=os.getuid(), user=user_name(os.getuid()))
    print(f"{reference}: expired")
    return 0


def _undelete(arguments: argparse.Namespace) -> int:
    with _desk(arguments) as desk:
        reference = _reference(desk, arguments)
        desk.restore(reference, uid=os.getuid(), user=user_name(os.getuid()))
    print(f"{reference}: back")
    return 0


def _autoexpire(arguments: argparse.Namespace) -> int:
    with _desk(arguments) as desk:
        systems = [arguments.system] if arguments.system else sorted(desk.configuration.platforms)
        chosen = [record for system in systems for record in desk.expired_by_policy(desk.platform(system).name)]
        if not arguments.dry_run:
            uid = os.getuid()
            chosen = [one for one in chosen if desk.expire_if_unused(one.reference, uid=uid, user=user_name(uid))]
    if arguments.json:
        show_json([{"system": r.reference.system, "image": str(r.reference), "used": r.used_at} for r in chosen])
    else:
        rows = [(r.reference.system, str(r.reference), show_time(r.used_at or 0)) for r in chosen]
        show_table(("system", "would expire" if arguments.dry_run else "expired", "last used"), rows, empty="nothing")
    return 0


def _queue(arguments: argparse.Namespace) -> int:
    with session(arguments) as opened:
        now = time.time()
        rows = []
        for system in sorted(opened.configuration.platforms):
            for record in opened.images.unfinished(system):
                attempt = record.attempt
                if attempt is None:
                    continue
                holder = opened.side_table.holder(f"pull:{record.reference.uuid.hex}")
                rows.append(
                    {
                        "system": system,
                        "image": str(record.reference),
                        "state": str(record.state),
                        "seconds": round(now - attempt.since),
                        "user": attempt.user,
                        "worker": (attempt.worker or "") if record.state.live else "",
                        "leased": holder or "",
                        "reason": attempt.reason or "",
                    }
                )
    if arguments.json:
        show_json(rows)
    else:
        keys = ("system", "image", "state", "seconds", "user", "worker", "reason")
        show_table(keys, [tuple(str(row[key]) for key in keys) for row in rows], empty="nothing waits")
    return 0
