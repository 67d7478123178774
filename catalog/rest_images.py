"""Routes about images: list, lookup, pull, import, queue, ACL, removal."""

from __future__ import annotations

import json
from itertools import groupby

import falcon

from catalog import answer
from catalog.acl import PUBLIC, Access, AclInvalid, ids_from, requested
from catalog.callers import Caller
from catalog.counters import Counters
from catalog.desk import Desk, NotFound, Refused
from catalog.leases import Leases, Progress
from catalog.lookup_log import LookupLog
from catalog.record import Record, changed
from catalog.rest import JSON, Gate, body, send, told
from catalog.states import State

ACL_KEYS = ("allowed_uids", "allowed_gids", "private")
LONGEST_PATH = 4095  # bytes: PATH_MAX of Linux, less its end


def asked(given: dict[str, object], caller: Caller) -> Access | None:
    """The ACL that the body of a pull or import asks for; private without lists is for the caller alone. Raises
    AclInvalid.
    """
    uids = ids_from(given.get("allowed_uids"), "allowed_uids")
    gids = ids_from(given.get("allowed_gids"), "allowed_gids")
    private = given.get("private")
    if private is not None and not isinstance(private, bool):
        raise AclInvalid(f"private is {private!r}; it must be true or false")
    if private is False:
        return None
    wanted = requested(uids, gids, caller.uid, caller.gid)
    return Access(False, frozenset({caller.uid})) if wanted is None and private else wanted


class List:
    """GET /api/list/S: the images that can be run; tags of one image with one ACL are one entry."""

    def __init__(self, gate: Gate) -> None:
        self._gate = gate

    def on_get(self, request: falcon.Request, response: falcon.Response, system: str) -> None:
        caller = self._gate.anybody(request, system)
        allowed: dict[str, bool] = {}
        rows = []
        for row in self._gate.desk.images.shown(system):
            if row.access not in allowed:
                access = Access.from_json(json.loads(row.access))
                allowed[row.access] = access.allows(caller.uid, caller.groups)
            if allowed[row.access]:
                rows.append(row)
        # The rows hold ready-made JSON: a site's list has ten thousand of them, and parsing each costs seconds.
        parts = []
        rows.sort(key=lambda row: (row.itype, row.image, row.access))
        for _, same in groupby(rows, key=lambda row: (row.itype, row.image, row.access)):
            group = list(same)
            newest = max(group, key=lambda row: row.pulled_at or 0.0)
            tags = json.dumps([row.tag for row in group])
            parts.append(f'{{"tag": {tags}, "status": "READY", "status_message": "", {newest.fields[1:]}')
        response.content_type = JSON
        response.text = f'{{"list": [{", ".join(parts)}]}}'


class Lookup:
    """GET /api/lookup/S/T/TAG: one image; 404 also when the caller may not see it."""

    def __init__(self, gate: Gate, lookups: LookupLog, counters: Counters) -> None:
        self._gate = gate
        self._lookups = lookups
        self._counters = counters

    def on_get(self, request: falcon.Request, response: falcon.Response, system: str, itype: str, tag: str) -> None:
        caller = self._gate.anybody(request, system)
        desk = self._gate.desk
        try:
            lease = request.get_param("lease") == "1"
            record = desk.look_up(desk.reference(system, itype, tag), caller, lease=lease)
        except NotFound:
            self._counters.add("shifter_lookups_total", "not found")
            raise
        self._counters.add("shifter_lookups_total", "found")
        self._lookups.add(record, caller)
        send(response, answer.ready(record, desk.images.tags(record)))


class Pull:
    """POST /api/pull/S/T/TAG: begin a pull, or ask how it goes."""

    def __init__(self, gate: Gate, leases: Leases, counters: Counters) -> None:
        self._gate = gate
        self._leases = leases
        self._counters = counters

    def on_post(self, request: falcon.Request, response: falcon.Response, system: str, itype: str, tag: str) -> None:
        caller = self._gate.user(request, system)
        desk = self._gate.desk
        reference = desk.reference(system, itype, tag)
        if itype != "docker":
            raise Refused(f"images of the type {itype} are not pulled; only docker images are (others: doimport)")
        record = desk.pull(reference, caller, asked(body(request), caller))
        if record.state is State.READY:
            self._counters.add("shifter_cache_hits_total", "pull")
        send(response, shown(desk, self._leases, record, caller))


class Import:
    """POST /api/doimport/S/T/TAG: bring in a file that the gateway can read."""

    def __init__(self, gate: Gate, leases: Leases) -> None:
        self._gate = gate
        self._leases = leases

    def on_post(self, request: falcon.Request, response: falcon.Response, system: str, itype: str, tag: str) -> None:
        caller = self._gate.user(request, system)
        desk = self._gate.desk
        reference = desk.reference(system, itype, tag)
        given = body(request)
        path, form = given.get("filepath"), given.get("format")
        if not isinstance(path, str) or not isinstance(form, str):
            raise Refused('an import needs {"filepath": "/path", "format": "squashfs"}')
        if "\0" in path or len(path.encode()) > LONGEST_PATH:
            raise Refused(f"the filepath is none: it has a zero character, or more than {LONGEST_PATH} bytes")
        record = desk.import_file(reference, caller, asked(given, caller), path, form)
        send(response, shown(desk, self._leases, record, caller))


class Queue:
    """GET /api/queue/S: what is being brought in, and what failed."""

    def __init__(self, gate: Gate, leases: Leases) -> None:
        self._gate = gate
        self._leases = leases

    def on_get(self, request: falcon.Request, response: falcon.Response, system: str) -> None:
        caller = self._gate.user(request, system)
        entries = []
        for record in self._gate.desk.images.unfinished(system):
            if not record.visible_to(caller.uid, caller.groups) or record.attempt is None:
                continue
            full = answer.attempt(record, progress_of(self._leases, record))
            entries.append(
                {
                    "status": full["status"],
                    "image": record.reference.tag,
                    "itype": record.reference.itype,
                    "status_message": full["status_message"],
                    "since": record.attempt.since,
                    "progress": full.get("progress"),
                }
            )
        send(response, {"list": entries})


class Acl:
    """GET and POST /api/acl/S/T/TAG: who may see a reference; its owner may change it without a pull."""

    def __init__(self, gate: Gate) -> None:
        self._gate = gate

    def on_get(self, request: falcon.Request, response: falcon.Response, system: str, itype: str, tag: str) -> None:
        caller = self._gate.user(request, system)
        desk = self._gate.desk
        record = desk.known(desk.reference(system, itype, tag), caller)
        send(response, {**answer.access_fields(record.access), "owner": record.owner} | told(desk.unsettled(record)))

    def on_post(self, request: falcon.Request, response: falcon.Response, system: str, itype: str, tag: str) -> None:
        caller = self._gate.user(request, system)
        desk = self._gate.desk
        given = body(request)
        # A key with a slip in it, or a body that was lost on the way, must not open a private image.
        if all(given.get(key) is None for key in ACL_KEYS):
            raise Refused(
                'say who may see it: {"allowed_uids": "1000", "allowed_gids": "50"}, or {"private": false} for everybody'
            )
        access = asked(given, caller) or PUBLIC
        record, unsettled = desk.change_access(desk.reference(system, itype, tag), caller, access)
        send(response, {**answer.access_fields(record.access), "owner": record.owner} | told(unsettled))


class Removal:
    """DELETE /api/image/S/T/TAG: the owner (or an administrator) takes an image away."""

    def __init__(self, gate: Gate) -> None:
        self._gate = gate

    def on_delete(self, request: falcon.Request, response: falcon.Response, system: str, itype: str, tag: str) -> None:
        caller = self._gate.user(request, system)
        desk = self._gate.desk
        changed = desk.remove(desk.reference(system, itype, tag), caller)
        send(response, {"status": True} | told(changed.unsettled))


def shown(desk: Desk, leases: Leases, record: Record, caller: Caller) -> dict[str, object]:
    """The answer to a wish: READY as a look-up would show it, else how the attempt goes.

    Who has yet to prove to the registry that he may read a private image is told nothing of the one that is here.
    """
    if not (caller.admin or record.open_to(caller.uid, caller.groups)):
        return answer.attempt(changed(record, image=None, access=None), progress_of(leases, record))
    if record.state is State.READY:
        return answer.ready(record, desk.images.tags(record))
    return answer.attempt(record, progress_of(leases, record))


def progress_of(leases: Leases, record: Record) -> Progress | None:
    return leases.table.progress(record.reference.uuid.hex) if record.state.live else None
