"""What nodes see of an image: a link to its file, its record for our runtime, and a `.meta` file for runtimes of
other make.

`publish` and `withdraw` may be called again at any time, by several gateways; a reader sees an image wholly or not at
all: the link comes last and goes first. The record says everything; `.meta` says what its format can hold without
lying.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from cas.errors import StoreError
from cas.files import naming, replace_with, sync_directory
from cas.store import Store, check_name
from catalog.acl import Access

VERSION = 1
_SUFFIXES = ("squashfs", "erofs")


class ImageFacts(Protocol):
    """What is told of an image: a catalog.pull.PulledImage, or what the catalog has kept of one."""

    @property
    def id(self) -> str: ...
    @property
    def object(self) -> str: ...
    @property
    def size(self) -> int: ...
    @property
    def format(self) -> str: ...
    @property
    def arch(self) -> str: ...
    @property
    def env(self) -> tuple[str, ...]: ...
    @property
    def entrypoint(self) -> tuple[str, ...] | None: ...
    @property
    def cmd(self) -> tuple[str, ...] | None: ...
    @property
    def workdir(self) -> str | None: ...
    @property
    def labels(self) -> Mapping[str, str]: ...


def publish(image_dir: Path, images: Store, image: ImageFacts, access: Access) -> None:
    """Makes an image of the store visible in `image_dir`, or its access new. Atomic file by file, durable,
    idempotent.

    Raises ObjectMissing when the store lacks its file, StoreError when it cannot be written.
    """
    image_id = check_name(image.id)
    file = images.path(image.object)
    sync = images.sync
    # Who loses access must lose it even if the power is cut between the two: the narrower file is not known, so both
    # are written before the link exists, and replaced in place when it does.
    replace_with(image_dir / f"{image_id}.json", record(image, access), sync=sync)
    replace_with(image_dir / f"{image_id}.meta", meta(image, access), sync=sync)
    link = image_dir / f"{image_id}.{image.format}"
    target = _relative(file, image_dir)
    with naming(link, "linking"):
        try:
            if str(link.readlink()) == target:
                return
        except FileNotFoundError:
            pass
        fresh = image_dir / f".{image_id}.{image.object[:16]}"
        fresh.unlink(missing_ok=True)
        fresh.symlink_to(target)
        fresh.replace(link)
    for suffix in _SUFFIXES:  # the same image in another format, from before a change of the configuration
        if suffix != image.format:
            (image_dir / f"{image_id}.{suffix}").unlink(missing_ok=True)
    if sync:
        sync_directory(image_dir)


def withdraw(image_dir: Path, image_id: str) -> None:
    """Takes an image out of sight. Its object stays until gc. No error when it was not there. Raises StoreError."""
    check_name(image_id)
    for suffix in (*_SUFFIXES, "json", "meta"):
        path = image_dir / f"{image_id}.{suffix}"
        with naming(path, "removing"):
            path.unlink(missing_ok=True)
    with contextlib.suppress(StoreError):
        sync_directory(image_dir)


def published(image_dir: Path) -> dict[str, str]:
    """The ids that nodes see, each with the object its link leads to."""
    found = {}
    for suffix in _SUFFIXES:
        for link in image_dir.glob(f"*.{suffix}"):
            with contextlib.suppress(OSError):
                target = link.readlink()
                found[link.stem] = target.parent.name + target.name
    return found


def record(image: ImageFacts, access: Access) -> bytes:
    """`<id>.json` (docs/format.md)."""
    document = {
        "version": VERSION,
        "id": image.id,
        "format": image.format,
        "object": image.object,
        "size": image.size,
        "arch": image.arch,
        "entrypoint": None if image.entrypoint is None else list(image.entrypoint),
        "cmd": None if image.cmd is None else list(image.cmd),
        "workdir": image.workdir,
        "env": list(image.env),
        "labels": dict(image.labels),
        "public": access.public,
        "uids": sorted(access.uids),
        "gids": sorted(access.gids),
    }
    return json.dumps(document, indent=1).encode() + b"\n"


def meta(image: ImageFacts, access: Access) -> bytes:
    """`<id>.meta`: `KEY: value` lines, in the order in which existing runtimes expect them.

    The format has no quoting. A value that it cannot hold (a line break could forge a key, a closing backslash
    swallows the next line, an apostrophe makes a list unreadable) is left out, a list as a whole.
    """
    lines = [f"FORMAT: {image.format}"]
    for key, words in (("ENTRY", image.entrypoint), ("CMD", image.cmd)):
        if words and all(_holds(word) and not set(word) & {"'", "\\"} for word in words):
            lines.append(f"{key}: [{', '.join(repr(word) for word in words)}]")
    if image.workdir and _holds(image.workdir):
        lines.append(f"WORKDIR: {image.workdir}")
    if not access.public:
        # No list means public there. An access list that lets in nobody must not be left out: uid 4294967294 has no
        # user.
        uids = sorted(access.uids) or ([] if access.gids else [2**32 - 2])
        if uids:
            lines.append(f"USERACL: {','.join(map(str, uids))}")
        if access.gids:
            lines.append(f"GROUPACL: {','.join(map(str, sorted(access.gids)))}")
    lines += [f"ENV: {value}" for value in image.env if _holds(value)]
    return "\n".join(lines).encode("utf-8", "surrogateescape") + b"\n"


def _holds(value: str) -> bool:
    """Whether a value is one line, and stays it."""
    return bool(value) and value.isprintable() and not value.endswith("\\")


def _relative(file: Path, start: Path) -> str:
    up = file.resolve()
    base = start.resolve()
    try:
        return str(up.relative_to(base))
    except ValueError as error:
        raise StoreError(f"{file} is not below {start}: nodes would not find it") from error
