"""Questions about the past: who did what and when, and what the image list looked like then.

Reads the projection (catalog.image_list), which keeps a row for each event and a row for each span of time in which an image
was to be had under a reference. Times are Unix seconds; they never decrease along the log, also when the clock was set
back. Knows no ACLs but by the `viewer` that a caller gives.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from catalog.acl import NOBODY, PUBLIC, Access
from catalog.image_list import ImageList
from catalog.record import Record
from catalog.reference import Reference

_LARGEST = 2**63 - 1  # that SQLite can compare with

Viewer = Callable[[Record], bool]


@dataclass(frozen=True)
class Happening:
    """One event. detail: the event's own fields, as recorded."""

    id: int
    at: float
    reference: Reference
    action: str
    uid: int | None
    user: str | None
    image: str | None
    detail: dict[str, Any]


@dataclass(frozen=True)
class Filter:
    """What to show; None shows all. image: a tag, a part of one with `*`, or an id. user: a name or a uid."""

    system: str | None = None
    reference: Reference | None = None
    image: str | None = None
    user: str | None = None
    action: str | None = None
    since: float | None = None
    until: float | None = None
    before: int | None = None


class Span(NamedTuple):
    """An image under a reference, from `since` to `until` (None: still). anonymous: its registry gave it to anybody."""

    reference: Reference
    since: float
    until: float | None
    image: str
    object: str
    size: int
    owner: int | None
    access: Access
    anonymous: bool = False


class History:
    """Answers from one image list. Each answer sees every event that was in the log when it was asked."""

    def __init__(self, images: ImageList) -> None:
        self._images = images

    def happenings(
        self, wanted: Filter, *, limit: int, viewer: Viewer | None = None, uid: int | None = None
    ) -> list[Happening]:
        """The newest `limit` events that fit, oldest first. With `viewer` only those of references that it lets see,
        and those that `uid` did.
        """
        connection = self._images.connection()
        found: list[Happening] = []
        visible: dict[int, bool] = {}
        for row in connection.execute(*_query(connection, wanted)):
            ref = row[8]
            own = uid is not None and row[5] == uid
            if viewer is not None and not own:
                if ref not in visible:
                    visible[ref] = viewer(self._record(connection, ref))
                if not visible[ref]:
                    continue
            reference = Reference(row[2], row[3], row[4])
            found.append(Happening(row[0], row[1], reference, row[9], row[5], row[6], row[7], json.loads(row[10])))
            if len(found) == limit:
                break
        return found[::-1]

    def spans_at(self, at: float, system: str | None = None) -> list[Span]:
        """The images that were to be had at time `at`, sorted by reference."""
        rows = self._images.connection().execute(
            _SPANS.format("? IS NULL OR r.system = ?"),
            (at, at, system, system),
        )
        return list(_spans(rows))

    def spans_of(self, image: str, at: float) -> list[Span]:
        """The references that had `image` (a tag or an id) at time `at`."""
        rows = self._images.connection().execute(
            _SPANS.format("s.image = ? OR s.ref IN (SELECT ref FROM records WHERE tag = ?)"),
            (at, at, image, image),
        )
        return list(_spans(rows))

    def difference(self, first: float, second: float, system: str | None = None) -> tuple[list[Span], list[Span]]:
        """What was to be had at `second` and not at `first`, and the other way round; a change of image or ACL is in both."""
        # A span that lasts over both times is no difference; the same again in a later span is none either.
        after, before = self._only_at(second, first, system), self._only_at(first, second, system)
        facts_before = {_facts(span) for span in before}
        facts_after = {_facts(span) for span in after}
        added = [span for span in after if _facts(span) not in facts_before]
        gone = [span for span in before if _facts(span) not in facts_after]
        return added, gone

    def _only_at(self, at: float, other: float, system: str | None) -> list[Span]:
        rows = self._images.connection().execute(
            _SPANS.format("NOT (s.since <= ? AND s.until > ?) AND (? IS NULL OR r.system = ?)"),
            (at, at, other, other, system, system),
        )
        return list(_spans(rows))

    def who_can_run(self, image: str, at: float) -> dict[tuple[str, str], Access]:
        """For each (system, image id) that `image` (a tag or an id) stood for at `at`: who could run it then.

        The union over all references to that image, and everybody where its registry gave it to anybody: as its file is
        guarded.
        """
        found: dict[tuple[str, str], Access] = {}
        wanted = {(span.reference.system, span.image) for span in self.spans_of(image, at)}
        for system, image_id in wanted:
            union = NOBODY
            for span in self.spans_of(image_id, at):
                if span.reference.system == system and span.image == image_id:
                    union = PUBLIC if span.anonymous else union | span.access
            found[system, image_id] = union
        return found

    def _record(self, connection: sqlite3.Connection, ref: int) -> Record:
        (text,) = connection.execute("SELECT record FROM records WHERE ref = ?", (ref,)).fetchone()
        return Record.from_json(json.loads(text))


_SPANS = (
    "SELECT r.system, r.itype, r.tag, s.since, s.until, s.image, s.object, s.size, s.owner, s.access, s.anonymous "
    "FROM spans s JOIN records r USING (ref) WHERE s.since <= ? AND s.until > ? AND ({}) "
    "ORDER BY r.system, r.itype, r.tag"
)


def _spans(rows: Iterator[Any] | sqlite3.Cursor) -> Iterator[Span]:
    known: dict[str, Access] = {}  # most images have one of a few ACLs
    for system, itype, tag, since, until, image, name, size, owner, access, anonymous in rows:
        if access not in known:
            known[access] = Access.from_json(json.loads(access))
        end = None if until > 1e17 else until
        reference = Reference(system, itype, tag)
        yield Span(reference, since, end, image, name, size, owner, known[access], bool(anonymous))


def _facts(span: Span) -> tuple[Any, ...]:
    return (span.reference, span.image, span.access)


def _query(connection: sqlite3.Connection, wanted: Filter) -> tuple[str, list[Any]]:
    conditions: list[str] = ["1"]
    values: list[Any] = []

    def need(condition: str, *given: Any) -> None:
        conditions.append(condition)
        values.extend(given)

    if wanted.reference is not None:
        name = wanted.reference
        need(
            "h.ref IN (SELECT ref FROM records WHERE system = ? AND itype = ? AND tag = ?)",
            name.system,
            name.itype,
            name.tag,
        )
    if wanted.system is not None:
        need("r.system = ?", wanted.system)
    if wanted.image is not None:
        if "*" in wanted.image:
            need("h.ref IN (SELECT ref FROM records WHERE tag GLOB ?)", wanted.image)
        elif len(wanted.image) == 64 and not set(wanted.image) - set("0123456789abcdef"):
            need("h.image = ?", wanted.image)
        else:
            tag = wanted.image.removeprefix("docker:")
            need("h.ref IN (SELECT ref FROM records WHERE tag IN (?, ?))", tag, f"{tag}:latest")
    if wanted.user is not None:
        if wanted.user.isascii() and wanted.user.isdigit():
            need("h.uid = ?", min(int(wanted.user), _LARGEST))
        else:
            need("h.user = ?", wanted.user)
    if wanted.action is not None:
        need("h.action = ?", wanted.action)
    else:
        # The first event of a stream only gives the reference its name; the request beside it says all.
        need("h.action <> 'named'")
    if wanted.since is not None:
        need("h.id >= ?", _first_at(connection, wanted.since))
    if wanted.until is not None:
        need("h.id < ?", _first_at(connection, wanted.until))
    if wanted.before is not None:
        need("h.id < ?", min(wanted.before, _LARGEST))
    statement = (
        "SELECT h.id, h.at, r.system, r.itype, r.tag, h.uid, h.user, h.image, h.ref, h.action, h.detail "  # noqa: S608 — constants only
        f"FROM history h JOIN records r USING (ref) WHERE {' AND '.join(conditions)} ORDER BY h.id DESC"
    )
    return statement, values


def _first_at(connection: sqlite3.Connection, at: float) -> int:
    """The number of the first event not before `at`. Times do not decrease along the log, so it is found by halving."""
    low, high = 1, connection.execute("SELECT id FROM position").fetchone()[0] + 1
    while low < high:
        middle = (low + high) // 2
        row = connection.execute("SELECT at FROM history WHERE id >= ? ORDER BY id LIMIT 1", (middle,)).fetchone()
        if row is None or row[0] >= at:
            high = middle
        else:
            low = middle + 1
    return low
