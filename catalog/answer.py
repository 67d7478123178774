"""The JSON that clients get for an image: the IMAGE object of docs/rest.md.

Field names and the text "MISSING" for what has no value yet are those that existing clients were written against;
`last_pull` is always a float, because an integer is read as 1970 by one of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from catalog.acl import Access
from catalog.leases import Progress
from catalog.record import Record
from catalog.states import State

MISSING = "MISSING"

_DOING = {
    State.INIT: "waiting for a worker",
    State.PENDING: "waiting for a worker",
    State.PULLING: "asking the registry",
    State.EXAMINATION: "examining the image",
    State.CONVERSION: "converting",
    State.HASHING: "reading the file",
    State.TRANSFER: "storing",
}


def ready_fields(record: Record) -> dict[str, Any]:
    """The fields of IMAGE that follow from the image which `record` holds; no status, no tags."""
    reference, image = record.reference, record.image
    fields: dict[str, Any] = {"id": MISSING, "system": reference.system, "itype": reference.itype}
    fields |= access_fields(record.access)
    if image is None:
        fields |= {"ENV": MISSING, "ENTRY": MISSING, "CMD": MISSING, "WORKDIR": MISSING, "LABELS": MISSING}
        fields |= {"last_pull": MISSING}
    else:
        fields |= {
            "id": image.id,
            "ENV": list(image.env),
            "ENTRY": _words(image.entrypoint),
            "CMD": _words(image.cmd),
            "WORKDIR": image.workdir,
            "LABELS": dict(image.labels),
            "last_pull": float(record.pulled_at or 0.0),
            "format": image.format,
            "arch": image.arch,
            "size": image.size,
            "object": image.object,
        }
    return fields


def access_fields(access: Access | None) -> dict[str, Any]:
    """The fields of IMAGE that tell who may see it."""
    if access is None:
        return {"userACL": MISSING, "groupACL": MISSING, "private": MISSING}
    return {"userACL": sorted(access.uids), "groupACL": sorted(access.gids), "private": not access.public}


def ready(record: Record, tags: Sequence[str]) -> dict[str, Any]:
    """IMAGE of a usable image, whatever a newer pull of it is doing."""
    return {**ready_fields(record), "tag": list(tags), "status": str(State.READY), "status_message": ""}


def attempt(record: Record, progress: Progress | None) -> dict[str, Any]:
    """IMAGE for who asked for a pull or import: how it goes, or how it ended."""
    answer = {**ready_fields(record), "tag": [record.reference.tag], "status": str(record.state)}
    if record.attempt is None:
        return answer | {"status_message": ""}
    if record.state is State.FAILURE:
        return answer | {"status_message": record.attempt.reason or "failed"}
    if not record.state.live:
        return answer | {"status_message": ""}
    current = progress if progress is not None and progress.attempt == record.attempt.number else None
    return answer | {
        "status_message": doing(record, current),
        "progress": {
            "stage": str(record.state),
            "since": record.attempt.since,
            "started": record.attempt.started,
            "done": current.done if current else 0,
            "total": current.total if current else 0,
            "layers_done": current.layers_done if current else 0,
            "layers": current.layers if current else 0,
            "note": current.note if current else "",
        },
    }


def doing(record: Record, progress: Progress | None) -> str:
    """One short sentence about what a running attempt does now."""
    text = _DOING.get(record.state, str(record.state))
    if progress is None:
        return text
    if record.state is State.PULLING and progress.total:
        text = f"downloading: {_megabytes(progress.done)} of {_megabytes(progress.total)} MB"
        text += f", {progress.layers_done} of {progress.layers} layers"
    return f"{text}; {progress.note}" if progress.note else text


def _megabytes(count: int) -> str:
    return f"{count / 1e6:.1f}"


def _words(words: tuple[str, ...] | None) -> list[str] | None:
    return None if words is None else list(words)
