"""Routes about the past: what happened, and which images there were at a time.

Both show a user only what concerns references that the user may see now, and what the user did; administrators see all of
their system. Times in requests are those of catalog.times, in answers Unix seconds. The questions themselves are answered
by catalog.history; here are filters, pages and visibility.
"""

from __future__ import annotations

import time
from typing import Any

import falcon

from catalog.admin_history import describe
from catalog.answer import access_fields
from catalog.callers import Caller
from catalog.desk import Refused
from catalog.history import Filter, Happening, History, Span
from catalog.rest import Gate, send
from catalog.states import State
from catalog.times import TimeInvalid, parse_time

LONGEST_PAGE = 1000  # events
PAGE = 100
_TYPES = ("docker", "custom", "id")


class Happened:
    """GET /api/history/S?image=&user=&action=&since=&until=&limit=&before=: a page of events, oldest first.

    `image` is TYPE:TAG, a tag, an id or a pattern with `*`. The page holds the newest events that fit; `next` is the
    `before` of the page of older ones, null when there are none.
    """

    def __init__(self, gate: Gate, history: History) -> None:
        self._gate = gate
        self._history = history

    def on_get(self, request: falcon.Request, response: falcon.Response, system: str) -> None:
        caller = self._gate.user(request, system)
        limit = request.get_param_as_int("limit", min_value=1, max_value=LONGEST_PAGE, default=PAGE) or PAGE
        found = self._history.happenings(
            self._wanted(request, system),
            limit=limit + 1,
            viewer=None if caller.admin else lambda record: record.open_to(caller.uid, caller.groups),
            uid=caller.uid,
        )
        page = found[-limit:]
        send(response, {"list": [as_json(one) for one in page], "next": page[0].id if len(found) > limit else None})

    def _wanted(self, request: falcon.Request, system: str) -> Filter:
        image = request.get_param("image")
        reference = None
        if image and "*" not in image and image.partition(":")[0] in _TYPES and ":" in image:
            itype, _, tag = image.partition(":")
            reference, image = self._gate.desk.reference(system, itype, tag), None
        return Filter(
            system=system,
            reference=reference,
            image=image,
            user=request.get_param("user"),
            action=request.get_param("action"),
            since=_time(request, "since"),
            until=_time(request, "until"),
            before=request.get_param_as_int("before", min_value=0),
        )


class Was:
    """GET /api/history/S/images?at=TIME: the images that could be run at that time, in the form of `list`."""

    def __init__(self, gate: Gate, history: History) -> None:
        self._gate = gate
        self._history = history

    def on_get(self, request: falcon.Request, response: falcon.Response, system: str) -> None:
        caller = self._gate.user(request, system)
        at = _time(request, "at")
        if at is None:
            raise Refused("name a time: ?at=2026-11-23T18:00:00+01:00")
        spans = [span for span in self._history.spans_at(at, system) if self._shown(span, caller)]
        send(response, {"list": [_span(span) for span in spans]})

    def _shown(self, span: Span, caller: Caller) -> bool:
        """It takes both: to have been let in then, and to be allowed to know of the reference now."""
        if caller.admin:
            return True
        record = self._gate.desk.images.get(span.reference)
        now = record is not None and record.open_to(caller.uid, caller.groups)
        return now and span.access.allows(caller.uid, caller.groups)


def as_json(one: Happening) -> dict[str, Any]:
    """One event for a user's program; `detail` is a phrase for people."""
    return {
        "id": one.id,
        "time": one.at,
        "user": one.user,
        "uid": one.uid,
        "action": one.action,
        "image": f"{one.reference.itype}:{one.reference.tag}",
        "image_id": one.image,
        "detail": describe(one),
    }


def _span(span: Span) -> dict[str, Any]:
    return {
        "id": span.image,
        "system": span.reference.system,
        "itype": span.reference.itype,
        "tag": [span.reference.tag],
        "status": str(State.READY),
        "last_pull": float(span.since),
        "size": span.size,
        "object": span.object,
        **access_fields(span.access),
    }


def _time(request: falcon.Request, name: str) -> float | None:
    text = request.get_param(name)
    if not text:
        return None
    try:
        return parse_time(text, time.time())
    except TimeInvalid as error:
        raise Refused(f"{name}: {error}") from None
