"""`shifter-admin migrate`: takes over the images and records of an older gateway from its MongoDB.

Reads the collection `images` as the original gateway keeps it, and the image files in the image directory. Each record
becomes an event (Migrated; Used as well when it was looked up since, so that it expires when it would have), each file goes
into the store, its place is taken by the relative link that nodes follow. Nothing of the old gateway is changed but those
files' places. May be stopped and started again at any time: what is taken over already is left alone.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from catalog.acl import PUBLIC, Access
from catalog.admin_session import AdminError, Session, output_options, session, show_json, show_table
from catalog.domain import ImageReference
from catalog.failure import PullFailed
from catalog.gateway import publication_of
from catalog.leases import Leases
from catalog.publication import Publication
from catalog.record import Image
from catalog.reference import Reference, ReferenceInvalid, parse
from catalog.squashfs import read_superblock
from catalog.states import NotAllowed

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_OWNER_UNKNOWN = 0  # the original does not record who pulled; root may change the ACL then


@dataclass(frozen=True)
class Old:
    """One tag of one record of the original gateway."""

    reference: Reference
    image_id: str
    access: Access
    env: tuple[str, ...]
    entrypoint: tuple[str, ...] | None
    workdir: str | None
    labels: Mapping[str, str]
    pulled_at: float
    expires_at: float
    format: str
    arch: str


@dataclass(frozen=True)
class Outcome:
    """What became (or would become) of one tag. done: `migrated`, `there already`, or why not."""

    image: str
    system: str
    done: str
    failed: bool = False


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    migrate = subparsers.add_parser(
        "migrate",
        help="take over the images of an older gateway from its MongoDB",
        description="Takes over records (ids, tags, ACLs, environment) as events and image files into the store. Stop the "
        "old gateway first. May be interrupted and run again.",
    )
    migrate.add_argument("--from-mongo", required=True, metavar="URI", help="mongodb://host/ of the old gateway")
    migrate.add_argument("--database", default="Shifter", help="its database (MongoDB in imagemanager.json)")
    migrate.add_argument("--image-dir", type=Path, required=True, metavar="DIR", help="where its image files are")
    migrate.add_argument("--dry-run", action="store_true", help="only say what would be done")
    output_options(migrate)
    migrate.set_defaults(run=_migrate)


def _migrate(arguments: argparse.Namespace) -> int:
    if not arguments.image_dir.is_dir():
        raise AdminError(f"--image-dir {arguments.image_dir} is no directory")
    outcomes: list[Outcome] = []
    with session(arguments) as opened, _publication(opened) as publication:
        for document in _documents(arguments.from_mongo, arguments.database):
            outcomes += [
                _take(old, opened, publication, arguments.image_dir, dry=arguments.dry_run)
                for old in _tags(document, opened, outcomes)
            ]
    failed = [one for one in outcomes if one.failed]
    if arguments.json:
        show_json([vars(one) for one in outcomes])
    else:
        show_table(
            ("system", "image", "done"), [(o.system, o.image, o.done) for o in outcomes], empty="no images there"
        )
        verb = "would be migrated" if arguments.dry_run else "migrated"
        count = sum(one.done == "migrated" for one in outcomes)
        print(f"{count} {verb}, {len(failed)} not possible", file=sys.stderr)
    return 1 if failed else 0


@contextmanager
def _publication(opened: Session) -> Iterator[Publication]:
    leases = Leases(opened.side_table, opened.configuration.lease_seconds)
    try:
        yield publication_of(opened.configuration, opened.images, leases)
    finally:
        leases.close()


def _documents(uri: str, database: str) -> Iterator[dict[str, Any]]:
    import pymongo
    from pymongo.errors import ConfigurationError, InvalidURI, PyMongoError

    try:
        client: pymongo.MongoClient[dict[str, Any]] = pymongo.MongoClient(uri, serverSelectionTimeoutMS=5000)
        with client:
            # All at once: a server ends a cursor that waits while a large image is copied. Not the copy for scripts that
            # this gateway keeps in the same place (catalog.mongo_mirror).
            found = list(client[database]["images"].find({"status": "READY", "mirror": {"$ne": True}}))
    except (ConfigurationError, InvalidURI) as error:
        # Not its text: it may repeat the URI with the password.
        raise AdminError(f"--from-mongo is no usable mongodb:// URI ({type(error).__name__})") from error
    except PyMongoError as error:
        raise AdminError(f"cannot read the old catalog: {type(error).__name__}: {error}") from error
    yield from found


def _tags(document: dict[str, Any], opened: Session, outcomes: list[Outcome]) -> Iterator[Old]:
    """The tags of one old document, under their canonical names; what cannot be taken over goes to `outcomes`."""
    system, itype = str(document.get("system", "")), str(document.get("itype", "docker"))
    tags = document.get("tag") or []
    configuration = opened.configuration
    for tag in [tags] if isinstance(tags, str) else tags:
        try:
            if system not in configuration.platforms:
                raise ReferenceInvalid(f"system {system} is not in Platforms")
            reference = parse(
                system, itype, tag, default_location=configuration.default_location, locations=configuration.locations
            )
            yield _old(document, reference, configuration.platforms[system].arch)
        except (ReferenceInvalid, KeyError, TypeError, ValueError) as error:
            outcomes.append(Outcome(f"{itype}:{tag}", system, f"not possible: {error}", failed=True))


def _old(document: dict[str, Any], reference: Reference, arch: str) -> Old:
    image_id = str(document.get("id") or "")
    if not _ID.fullmatch(image_id):
        raise ValueError(f"its record has the id {image_id!r}")
    users, groups = document.get("userACL") or [], document.get("groupACL") or []
    private = document.get("private") is not False and bool(users or groups)
    entry = document.get("ENTRY")
    return Old(
        reference=reference,
        image_id=image_id,
        access=Access(False, frozenset(map(int, users)), frozenset(map(int, groups))) if private else PUBLIC,
        env=tuple(map(str, document.get("ENV") or [])),
        entrypoint=None if not entry else (entry,) if isinstance(entry, str) else tuple(map(str, entry)),
        workdir=document.get("WORKDIR") or None,
        labels={str(key): str(value) for key, value in (document.get("LABELS") or {}).items()},
        pulled_at=float(document.get("last_pull") or 0),
        expires_at=float(document.get("expiration") or 0),
        format=str(document.get("format") or "squashfs"),
        arch=str(document.get("arch") or arch),
    )


def _take(old: Old, opened: Session, publication: Publication, image_dir: Path, *, dry: bool) -> Outcome:
    name, system = str(old.reference), old.reference.system
    current = opened.images.get(old.reference)
    if current is not None and current.usable:
        return Outcome(name, system, "there already")
    file = image_dir / f"{old.image_id}.{old.format}"
    if not file.is_file():
        return Outcome(name, system, f"not possible: {file} is missing", failed=True)
    if old.format == "squashfs":
        try:
            read_superblock(file)  # the original gave a name to what a failed converter had left
        except PullFailed as error:
            return Outcome(name, system, f"not possible: {error}; pull it again", failed=True)
    if dry:
        return Outcome(name, system, "migrated")
    platform = opened.configuration.platforms[system]
    place = publication.place(platform)
    stored = place.store.put_file(file)
    image = Image(
        id=old.image_id,
        object=stored.name,
        size=stored.size,
        format=old.format,
        arch="amd64" if old.arch == "x86_64" else old.arch,
        # Without a record of how it was pulled, the file is guarded as its tags are.
        anonymous=False,
        env=old.env,
        entrypoint=old.entrypoint,
        workdir=old.workdir,
        labels=old.labels,
    )
    try:
        with publication.changing(platform, image.id):
            _link(place.directory / file.name, place.store.path(stored.name))
            publication.publish(platform, image, old.access)
            at = old.pulled_at or time.time()
            used = old.expires_at - opened.configuration.image_expiration.total_seconds()
            user = f"uid {os.getuid()}"

            def take(it: ImageReference) -> None:
                it.migrate(image, old.access, at, owner=_OWNER_UNKNOWN, user=user)
                if used > at:
                    # Looked up since it was pulled: it expires when it would have.
                    it.use(min(used, time.time()), uid=_OWNER_UNKNOWN, user=user)

            opened.catalog.change(old.reference, take)
    except NotAllowed as error:
        return Outcome(name, system, f"not possible: {error}", failed=True)
    return Outcome(name, system, "migrated")


def _link(link: Path, target: Path) -> None:
    """Puts the relative link in the place of the old gateway's file, if it lies there; nodes see one or the other."""
    if link.is_file() and not link.is_symlink():
        fresh = link.with_name(f".{link.name}.migrating")
        fresh.unlink(missing_ok=True)
        fresh.symlink_to(os.path.relpath(target, link.parent))
        fresh.replace(link)
