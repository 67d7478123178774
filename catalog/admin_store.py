"""`shifter-admin store …`: what is in the stores, whether it is sound, and how to get rid of or move it."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress

from cas.check import Scrubbed, fsck, scrub
from cas.gc import GRACE, collect
from cas.store import Store
from catalog import publish as publishing
from catalog.acl import NOBODY, PUBLIC
from catalog.admin_session import AdminError, Session, output_options, session, show_json, show_table
from catalog.config import Platform
from catalog.conversions import forget_missing
from catalog.pull_job import options_for
from catalog.record import Image, Record
from catalog.reference import Reference, ReferenceInvalid, parse
from catalog.refetch import refetch
from catalog.store_care import SiteStore, needed, needed_documents, stats, stores
from catalog.store_transfer import TransferFailed, export, take_in


def register(subparsers: Any) -> None:
    """Adds the subcommand; called by catalog.admin."""
    top = subparsers.add_parser("store", help="what is in the stores; check, clean, export, import")
    commands = top.add_subparsers(metavar="COMMAND", required=True)

    def command(name: str, run: Callable[[argparse.Namespace], int], text: str) -> argparse.ArgumentParser:
        parser: argparse.ArgumentParser = commands.add_parser(name, help=text, description=text)
        parser.set_defaults(run=run)
        return parser

    output_options(command("stats", _stats, "objects, bytes, and how much is shared; by kind and by owner"))
    parser = command(
        "fsck", _fsck, "check the shape of the stores (no contents); exit status 1 when something is wrong"
    )
    parser.add_argument(
        "--repair", action="store_true", help="put right what can be; what is no object goes to quarantine"
    )
    parser = command("scrub", _scrub, "read every object and set aside what has rotted; goes on where it was stopped")
    parser.add_argument("--rate", type=_bytes, metavar="BYTES", help="at most so many bytes a second (100M)")
    parser.add_argument(
        "--seconds", type=_seconds, metavar="N", help="stop after so long; the next scrub goes on from there"
    )
    parser.add_argument("--no-refetch", action="store_true", help="do not get what has rotted from its registry again")
    parser = command("gc", _gc, "remove what no image needs any more")
    parser.add_argument("--dry-run", action="store_true", help="say what would go, and remove nothing")
    parser.add_argument(
        "--grace",
        type=_seconds,
        default=GRACE,
        metavar="SECONDS",
        help="leave what was needed so lately (default: a day; less than a pull takes only while none runs)",
    )
    parser.add_argument(
        "--cache-limit",
        type=_bytes,
        metavar="BYTES",
        help="layers to keep at most (default: CacheLimit of the configuration)",
    )
    parser = command("export", _export, "write an image to a directory, to carry to a site that has no network")
    parser.add_argument("image", help="as in `shifterimg lookup`, such as ubuntu:22.04")
    parser.add_argument("directory", type=Path, help="a new directory")
    parser.add_argument("--system", help="the platform (default: the only one)")
    parser = command("import", _import, "take in an image that `export` wrote")
    parser.add_argument("directory", type=Path)
    parser.add_argument("--system", help="the platform (default: the only one)")
    parser.add_argument("--public", action="store_true", help="also when the image was private where it comes from")
    parser.add_argument(
        "--trusted",
        action="store_true",
        help="take the image file as it is, from a medium that nobody else could write to (default: make it from the layers)",
    )
    parser.add_argument("--image", help="call it so (default: as it was called where it comes from)")


def _stats(arguments: argparse.Namespace) -> int:
    with session(arguments) as opened:
        found = [stats(opened, site) for site in stores(opened)]
    if arguments.json:
        show_json([{**vars(one), "dedup": round(one.dedup, 3)} for one in found])
        return 0
    rows = []
    for one in found:
        rows.append((one.name, "all", str(one.objects), _shown(one.bytes), f"{one.dedup:.2f}"))
        rows += [(one.name, kind, str(n), _shown(size), "") for kind, (n, size) in sorted(one.by_kind.items())]
        rows += [
            (one.name, f"uid {owner}", str(n), _shown(size), "") for owner, (n, size) in sorted(one.by_owner.items())
        ]
    show_table(("store", "what", "objects", "size", "shared"), rows, empty="no store has been made yet")
    return 0


def _fsck(arguments: argparse.Namespace) -> int:
    with session(arguments) as opened:
        findings = [finding for site in stores(opened) for finding in fsck(site.store, repair=arguments.repair)]
    for finding in findings:
        print(f"{finding.path} {finding.text}{' (repaired)' if finding.repaired else ''}")
    print(f"{len(findings)} findings" if findings else "sound", file=sys.stderr)
    return 1 if any(not finding.repaired for finding in findings) else 0


def _scrub(arguments: argparse.Namespace) -> int:
    lost = 0
    with session(arguments) as opened:
        for site in stores(opened):
            with _bar(f"scrub {site.name}") as told:
                found = scrub(site.store, rate=arguments.rate, seconds=arguments.seconds, progress=told)
            lost += _tell_scrub(opened, site, found, again=not arguments.no_refetch)
    return 1 if lost else 0


def _tell_scrub(opened: Session, site: SiteStore, found: Scrubbed, *, again: bool) -> int:
    """Says what a scrub found, gets what can be got again, and returns how many objects are lost."""
    lost = 0
    for name, digest in found.damaged.items():
        outcome = refetch(opened, site, name, digest) if again else "set aside"
        lost += outcome != ""
        print(f"{site.name}: object {name} is damaged: {outcome or 'fetched again'}")
    state = "" if found.complete else " (stopped; the next scrub goes on)"
    print(
        f"{site.name}: {found.objects} objects, {_shown(found.bytes)}, {len(found.damaged)} damaged{state}",
        file=sys.stderr,
    )
    return lost


def _gc(arguments: argparse.Namespace) -> int:
    with session(arguments) as opened:
        for site in stores(opened):
            options: dict[str, Any] = {"grace": arguments.grace, "dry_run": arguments.dry_run}
            done = collect(site.store, partial(needed, opened, site), **options)
            removed, freed, swept = len(done.removed), done.bytes, done.temporary
            limit = (
                arguments.cache_limit if arguments.cache_limit is not None else opened.configuration.pull.cache_limit
            )
            if site.images is None and limit is not None and done.kept_bytes > limit:
                more = collect(site.store, partial(needed_documents, opened, site), budget=limit, **options)
                fresh = set(more.removed) - set(done.removed)
                removed, freed, swept = removed + len(fresh), freed + more.bytes, swept + more.temporary
            elif site.images is not None and not arguments.dry_run:
                forget_missing(site.store)
            would = "would remove" if arguments.dry_run else "removed"
            print(f"{site.name}: {would} {removed} objects, {_shown(freed)}, and {swept} stale temporary files")
    return 0


def _export(arguments: argparse.Namespace) -> int:
    with session(arguments) as opened:
        platform = _platform(opened, arguments.system)
        reference = _reference(opened, platform, arguments.image)
        opened.images.catch_up()
        record = opened.images.get(reference)
        if record is None or record.image is None or not record.usable:
            raise AdminError(f"no image {reference} on {platform.name}: `shifterimg images` shows what there is")
        layers, images = _both(opened, platform)
        try:
            written = export(
                arguments.directory,
                reference.tag,
                record.image,
                layers.store,
                images.store,
                options_for(opened.configuration, platform),
            )
        except TransferFailed as error:
            raise AdminError(str(error)) from error
        print(f"{reference}: {_shown(written)} in {arguments.directory}")
    return 0


def _import(arguments: argparse.Namespace) -> int:
    with session(arguments) as opened:
        platform = _platform(opened, arguments.system)
        configuration = opened.configuration
        platform.image_dir.mkdir(parents=True, exist_ok=True)
        images = Store(platform.image_dir / "cas")
        try:
            name, pulled = take_in(
                arguments.directory,
                platform,
                Store(configuration.cache_directory, private=True),
                images,
                options_for(configuration, platform),
                trusted=arguments.trusted,
            )
        except TransferFailed as error:
            raise AdminError(str(error)) from error
        if not pulled.anonymous and not arguments.public:
            raise AdminError(f"{name} was not public where it comes from: --public lets everybody here run it")
        reference = _reference(opened, platform, arguments.image or name)
        image, access = Image.of(pulled), PUBLIC
        opened.catalog.change(reference, lambda it: it.tag_as(image, access, time.time(), uid=0, user="root"))
        opened.images.catch_up()
        publishing.publish(platform.image_dir, images, image, _union(opened.images.with_image(image.id), platform))
        print(f"{reference}: {image.id}")
    return 0


def _union(records: list[Record], platform: Platform) -> Any:
    union = NOBODY
    for record in records:
        if record.reference.system == platform.name and record.access is not None:
            union |= record.access
    return union


def _platform(opened: Session, name: str | None) -> Platform:
    platforms = opened.configuration.platforms
    if name is None and len(platforms) == 1:
        return next(iter(platforms.values()))
    if name is None or name not in platforms:
        raise AdminError(f"--system: one of {', '.join(sorted(platforms))}")
    return platforms[name]


def _reference(opened: Session, platform: Platform, text: str) -> Reference:
    configuration = opened.configuration
    try:
        return parse(
            platform.name,
            "docker",
            text.removeprefix("docker:"),
            default_location=configuration.default_location,
            locations=configuration.locations,
        )
    except ReferenceInvalid as error:
        raise AdminError(str(error)) from error


def _both(opened: Session, platform: Platform) -> tuple[SiteStore, SiteStore]:
    found = stores(opened)
    layers = next((site for site in found if site.images is None), None)
    images = next((site for site in found if site.images == platform.image_dir), None)
    if layers is None or images is None:
        raise AdminError(f"{platform.name} has no store yet: nothing was pulled for it")
    return layers, images


@contextmanager
def _bar(title: str) -> Iterator[Callable[[int, int], None]]:
    """A progress bar on a terminal, else nothing."""
    if not sys.stderr.isatty():
        yield lambda done, total: None
        return
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(title, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


def _bytes(text: str) -> int:
    unit = text[-1:].upper()
    factor = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}.get(unit)
    try:
        size = int(float(text[:-1]) * factor) if factor else int(text)
    except (ValueError, OverflowError):
        size = 0
    if size <= 0:
        raise argparse.ArgumentTypeError(f"{text!r} is no size; write bytes, or 500M, 20G")
    return size


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is no time; write seconds, such as 3600")
    return seconds


def _shown(size: int) -> str:
    value = float(size)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"
