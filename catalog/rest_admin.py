"""Routes for administrators of a platform: expire, autoexpire, restore, metrics."""

from __future__ import annotations

import falcon

from catalog.desk import NotFound
from catalog.leases import Leases
from catalog.lookup_log import LookupLog
from catalog.rest import Gate, send, told


class Expire:
    """DELETE, or as old clients do GET, /api/expire/S/T/TAG."""

    def __init__(self, gate: Gate) -> None:
        self._gate = gate

    def on_get(self, request: falcon.Request, response: falcon.Response, system: str, itype: str, tag: str) -> None:
        """Old clients expect true, false for no administrator, null for no such image, and never an error."""
        caller = self._gate.user(request, system)
        desk = self._gate.desk
        if not caller.admin:
            send(response, {"status": False, "error": f"only administrators of {system} may let an image expire"})
            return
        reference = desk.reference(system, itype, tag)
        record = desk.images.get(reference)
        if record is None or not record.usable:
            send(response, {"status": None, "error": f"no image {reference} on {system}"})
            return
        changed = desk.expire(reference, by="admin", uid=caller.uid, user=caller.name)
        send(response, {"status": True} | told(changed.unsettled))

    def on_delete(self, request: falcon.Request, response: falcon.Response, system: str, itype: str, tag: str) -> None:
        caller = self._gate.admin(request, system)
        desk = self._gate.desk
        reference = desk.reference(system, itype, tag)
        record = desk.images.get(reference)
        if record is None or not record.usable:
            raise NotFound(f"no image {reference} on {system}")
        changed = desk.expire(reference, by="admin", uid=caller.uid, user=caller.name)
        send(response, {"status": True} | told(changed.unsettled))


class AutoExpire:
    """GET /api/autoexpire/S[?dry_run=true]: what nobody has used for ImageExpirationTimeout."""

    def __init__(self, gate: Gate) -> None:
        self._gate = gate

    def on_get(self, request: falcon.Request, response: falcon.Response, system: str) -> None:
        caller = self._gate.user(request, system)
        if not caller.admin:
            send(response, {"status": False, "error": f"only administrators of {system} may let images expire"})
            return
        dry = request.get_param_as_bool("dry_run", default=False)
        desk = self._gate.desk
        records, unsettled = desk.expired_by_policy(system), ""
        if not dry:
            chosen, records = records, []
            for record in chosen:
                changed = desk.expire_if_unused(record.reference, uid=caller.uid, user=caller.name)
                if changed is not None:
                    records.append(record)
                    unsettled = changed.unsettled or unsettled
        send(
            response,
            {
                "status": [record.image.id for record in records if record.image],
                "images": [str(record.reference) for record in records],
                "dry_run": dry,
            }
            | told(unsettled),
        )


class Restore:
    """POST /api/restore/S/T/TAG: bring an expired image back while its file is still there."""

    def __init__(self, gate: Gate) -> None:
        self._gate = gate

    def on_post(self, request: falcon.Request, response: falcon.Response, system: str, itype: str, tag: str) -> None:
        caller = self._gate.admin(request, system)
        desk = self._gate.desk
        reference = desk.reference(system, itype, tag)
        desk.known(reference, caller)
        changed = desk.restore(reference, uid=caller.uid, user=caller.name)
        send(response, {"status": True} | told(changed.unsettled))


class Metrics:
    """GET /api/metrics/S?limit=10: the newest look-ups, newest last; recorded when Metrics is on."""

    def __init__(self, gate: Gate, leases: Leases, lookups: LookupLog) -> None:
        self._gate = gate
        self._leases = leases
        self._lookups = lookups

    def on_get(self, request: falcon.Request, response: falcon.Response, system: str) -> None:
        self._gate.admin(request, system)
        limit = request.get_param_as_int("limit", default=10, min_value=0, max_value=100000) or 0
        self._lookups.flush()
        found = self._leases.table.lookups(system, limit=limit)
        send(
            response,
            [
                {
                    "user": one.user,
                    "uid": one.uid,
                    "system": one.system,
                    "type": one.itype,
                    "tag": one.tag,
                    "id": one.image,
                    "time": one.at,
                }
                for one in found
            ],
        )
