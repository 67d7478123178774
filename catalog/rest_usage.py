"""The route that tells who holds how many bytes; a user is told of what the user may see, an administrator of all."""

from __future__ import annotations

from typing import Any

import falcon

from catalog.callers import user_name
from catalog.history import History
from catalog.rest import Gate, send
from catalog.usage import NOW, File, Share, usage


class Used:
    """GET /api/usage/S: `images` (files, largest first), `users`, `total` in bytes.

    Others' private images do not count in what a user sees: not even a file that the user shares with one is called
    shared, since that would tell that somebody else has it.
    """

    def __init__(self, gate: Gate, history: History) -> None:
        self._gate = gate
        self._history = history

    def on_get(self, request: falcon.Request, response: falcon.Response, system: str) -> None:
        caller = self._gate.user(request, system)
        spans = self._history.spans_at(NOW, system)
        if not caller.admin:
            spans = [span for span in spans if span.access.allows(caller.uid, caller.groups)]
        found = usage(spans)
        users = [share for share in found.users if caller.admin or share.uid == caller.uid]
        send(
            response,
            {
                "total": found.total,
                "images": [file_json(file) for file in found.files],
                "users": [share_json(share) for share in users],
            },
        )


def file_json(file: File) -> dict[str, Any]:
    return {"id": file.image, "object": file.object, "size": file.size, "tags": list(file.tags), "shared": file.shared}


def share_json(share: Share) -> dict[str, Any]:
    return {
        "uid": share.uid,
        "user": None if share.uid is None else user_name(share.uid),
        "references": share.references,
        "files": share.files,
        "own": share.own,
        "shared": share.shared,
    }
