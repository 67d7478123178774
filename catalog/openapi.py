"""The REST surface described in OpenAPI 3.1, as /api/openapi.json gives it.

Written once, here; a test holds it against the table of routes in both directions, and schemathesis plays every
operation. `info.version` is the version of this surface: it grows with each addition, and its first number with a
change that an old client would notice.
"""

from __future__ import annotations

from typing import Any

import falcon

from catalog.rest import send

VERSION = "1.1.0"

_TEXT = {"type": "string"}
_NUMBER = {"type": "number"}
_WHOLE = {"type": "integer"}
_OR_MISSING: dict[str, Any] = {"const": "MISSING", "description": "has no value yet"}
_TIME = {
    "type": "string",
    "maxLength": 64,
    "description": "2026-11-23T18:00:00+01:00, 2026-11-23, 2h, 3d (ago), or now",
}


def _missing_or(schema: dict[str, Any]) -> dict[str, Any]:
    return {"anyOf": [schema, _OR_MISSING]}


_UNSETTLED: dict[str, Any] = {
    "settled": {"const": False, "description": "only there when the nodes do not know of the change yet"},
    "status_message": {**_TEXT, "description": "beside settled: what is still to be done"},
}

_SCHEMAS: dict[str, Any] = {
    "Error": {
        "type": "object",
        "required": ["status", "error", "message"],
        "properties": {
            "status": _WHOLE,
            "error": {**_TEXT, "description": "the reason, in a sentence"},
            "message": _TEXT,
        },
    },
    "Progress": {
        "type": "object",
        "required": ["stage", "since", "done", "total", "layers_done", "layers"],
        "properties": {
            "stage": _TEXT,
            "since": {**_NUMBER, "description": "Unix seconds at which the stage began"},
            "started": _NUMBER,
            "done": {**_WHOLE, "description": "bytes"},
            "total": {**_WHOLE, "description": "bytes; 0 when not known yet"},
            "layers_done": _WHOLE,
            "layers": _WHOLE,
            "note": _TEXT,
        },
    },
    "Image": {
        "type": "object",
        "required": [
            "id",
            "system",
            "itype",
            "tag",
            "status",
            "userACL",
            "groupACL",
            "ENV",
            "ENTRY",
            "WORKDIR",
            "LABELS",
            "last_pull",
            "status_message",
        ],
        "properties": {
            "id": {**_TEXT, "description": "manifest digest without sha256:, or MISSING"},
            "system": _TEXT,
            "itype": _TEXT,
            "tag": {"type": "array", "items": _TEXT},
            "status": {
                "enum": [
                    "INIT",
                    "PENDING",
                    "PULLING",
                    "EXAMINATION",
                    "CONVERSION",
                    "TRANSFER",
                    "HASHING",
                    "READY",
                    "FAILURE",
                    "EXPIRED",
                    "REMOVED",
                ]
            },
            "status_message": {**_TEXT, "description": "what is being done, or why it failed"},
            "userACL": _missing_or({"type": "array", "items": _WHOLE}),
            "groupACL": _missing_or({"type": "array", "items": _WHOLE}),
            "private": _missing_or({"type": "boolean"}),
            "ENV": _missing_or({"type": "array", "items": _TEXT}),
            "ENTRY": _missing_or({"type": ["array", "null"], "items": _TEXT}),
            "CMD": _missing_or({"type": ["array", "null"], "items": _TEXT}),
            "WORKDIR": {"type": ["string", "null"]},
            "LABELS": _missing_or({"type": "object", "additionalProperties": _TEXT}),
            "last_pull": _missing_or({**_NUMBER, "description": "Unix seconds, always with a decimal point"}),
            "format": _TEXT,
            "arch": _TEXT,
            "size": {**_WHOLE, "description": "bytes of the image file"},
            "object": {**_TEXT, "description": "BLAKE3 of the image file"},
            "progress": {"$ref": "#/components/schemas/Progress"},
        },
    },
    "Acl": {
        "type": "object",
        "required": ["userACL", "groupACL", "private"],
        "properties": {
            "userACL": _missing_or({"type": "array", "items": _WHOLE}),
            "groupACL": _missing_or({"type": "array", "items": _WHOLE}),
            "private": _missing_or({"type": "boolean"}),
            "owner": {"type": ["integer", "null"]},
            **_UNSETTLED,
        },
    },
    "Lists": {
        "type": "object",
        "properties": {
            "allowed_uids": {**_TEXT, "description": "ids with commas between", "examples": ["1000,1001"]},
            "allowed_gids": {**_TEXT, "description": "ids with commas between"},
            "private": {
                "type": "boolean",
                "description": "false beats the lists; true without lists: the caller alone",
            },
        },
    },
    "Event": {
        "type": "object",
        "required": ["id", "time", "action", "image"],
        "properties": {
            "id": _WHOLE,
            "time": _NUMBER,
            "user": {"type": ["string", "null"]},
            "uid": {"type": ["integer", "null"]},
            "action": _TEXT,
            "image": _TEXT,
            "image_id": {"type": ["string", "null"]},
            "detail": _TEXT,
        },
    },
}

_IMAGE = {"$ref": "#/components/schemas/Image"}
_ACL = {"$ref": "#/components/schemas/Acl"}
_LIST_OF_IMAGES = {
    "type": "object",
    "required": ["list"],
    "properties": {"list": {"type": "array", "items": {"type": "object"}}},
}
_STATUS = {
    "type": "object",
    "required": ["status"],
    "properties": {"status": {"type": ["boolean", "null"]}, **_UNSETTLED},
}


def _path(name: str, description: str, **schema: Any) -> dict[str, Any]:
    given = {"type": "string", "minLength": 1, "maxLength": 255, **schema}
    return {"name": name, "in": "path", "required": True, "description": description, "schema": given}


def _query(name: str, description: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"name": name, "in": "query", "required": False, "description": description, "schema": schema}


_SYSTEM = [_path("system", "a key of Platforms")]
_REFERENCE = [
    *_SYSTEM,
    _path("itype", "docker, custom, or id"),
    _path("tag", "name, name:tag, name@sha256:…; '/' may be written as %2F; without a tag :latest"),
]

_REFUSALS = {
    "400": "the request is malformed, or names what cannot be",
    "401": "the credential is missing, or munge refuses it",
    "403": "the caller has not the right",
    "404": "no such system or image, or not for this caller",
    "409": "it does not fit the image's state",
    "413": "the body is too large",
    "429": "too many requests",
    "502": "the registry cannot be reached",
    "503": "munge or the store does not answer",
}


def _operation(
    summary: str,
    answer: dict[str, Any],
    *,
    who: str,
    parameters: list[dict[str, Any]],
    body: dict[str, Any] | None = None,
    refusals: tuple[str, ...] = (),
) -> dict[str, Any]:
    """who: `anybody`, `user` or `admin`; decides which refusals there are beside `refusals`."""
    codes = {"401", "404", "429", "503", "400", *refusals} | ({"403"} if who == "admin" else set())
    error = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    operation: dict[str, Any] = {
        "summary": summary,
        "parameters": parameters,
        "security": [{"munge": []}] if who != "anybody" else [{"munge": []}, {}],
        "responses": {
            "200": {"description": "done", "content": {"application/json": {"schema": answer}}},
            **{code: {"description": _REFUSALS[code], "content": error} for code in sorted(codes)},
        },
    }
    if body is not None:
        operation["requestBody"] = {"required": False, "content": {"application/json": {"schema": body}}}
    return operation


def _open(summary: str, media: str, schema: dict[str, Any]) -> dict[str, Any]:
    ok = {"description": "done", "content": {media: {"schema": schema}}}
    return {"get": {"summary": summary, "security": [{}], "responses": {"200": ok}}}


_LISTS = {"$ref": "#/components/schemas/Lists"}
_PATHS: dict[str, dict[str, Any]] = {
    "/": _open("the names of the oldest routes", "text/plain", _TEXT),
    "/healthz": {
        "get": {
            "summary": "whether this gateway can work",
            "security": [{}],
            "responses": {
                code: {"description": text, "content": {"application/json": {"schema": {"type": "object"}}}}
                for code, text in (("200", "it can"), ("503", "it cannot; the answer says why"))
            },
        }
    },
    "/metrics": _open("figures in the text format of Prometheus", "text/plain", _TEXT),
    "/api/openapi.json": _open("this description", "application/json", {"type": "object"}),
    "/api/list/{system}": {
        "get": _operation(
            "images that can be run; tags of one image with one ACL are one entry",
            {"type": "object", "required": ["list"], "properties": {"list": {"type": "array", "items": _IMAGE}}},
            who="anybody",
            parameters=_SYSTEM,
        )
    },
    "/api/lookup/{system}/{itype}/{tag}": {
        "get": _operation(
            "one image that can be run",
            _IMAGE,
            who="anybody",
            parameters=[
                *_REFERENCE,
                _query("lease", "1: keep the file for ImageLeaseTime: a job was submitted", {"enum": ["1"]}),
            ],
        )
    },
    "/api/pull/{system}/{itype}/{tag}": {
        "post": _operation(
            "begin a pull; the same request again asks how it goes",
            _IMAGE,
            who="user",
            parameters=_REFERENCE,
            body=_LISTS,
            refusals=("409", "413"),
        )
    },
    "/api/doimport/{system}/{itype}/{tag}": {
        "post": _operation(
            "bring in a file that the gateway can read; the same request again asks how it goes",
            _IMAGE,
            who="user",
            parameters=_REFERENCE,
            body={
                "allOf": [_LISTS],
                "type": "object",
                "required": ["filepath", "format"],
                "properties": {"filepath": _TEXT, "format": {"enum": ["squashfs", "oci-layout", "docker-archive"]}},
            },
            refusals=("403", "409", "413"),
        )
    },
    "/api/queue/{system}": {
        "get": _operation("what is being brought in, and what failed", _LIST_OF_IMAGES, who="user", parameters=_SYSTEM)
    },
    "/api/acl/{system}/{itype}/{tag}": {
        "get": _operation("who may see a reference", _ACL, who="user", parameters=_REFERENCE),
        "post": _operation(
            "set who may see a reference (its owner): lists, two empty ones or private: false for everybody",
            _ACL,
            who="user",
            parameters=_REFERENCE,
            body=_LISTS,
            refusals=("403", "409", "413"),
        ),
    },
    "/api/image/{system}/{itype}/{tag}": {
        "delete": _operation(
            "take an image away (its owner)", _STATUS, who="user", parameters=_REFERENCE, refusals=("403", "409")
        )
    },
    "/api/expire/{system}/{itype}/{tag}": {
        "delete": _operation("let an image expire", _STATUS, who="admin", parameters=_REFERENCE, refusals=("409",)),
        "get": _operation(
            "the same, as old clients ask: false for no administrator, null for no such image",
            _STATUS,
            who="user",
            parameters=_REFERENCE,
            refusals=("409",),
        ),
    },
    "/api/autoexpire/{system}": {
        "get": _operation(
            "let expire what nobody used for ImageExpirationTimeout; false for no administrator",
            {
                "type": "object",
                "required": ["status"],
                "properties": {"status": {"type": ["array", "boolean"]}, **_UNSETTLED},
            },
            who="user",
            parameters=[*_SYSTEM, _query("dry_run", "only say what would expire", {"type": "boolean"})],
        )
    },
    "/api/restore/{system}/{itype}/{tag}": {
        "post": _operation(
            "bring an expired image back", _STATUS, who="admin", parameters=_REFERENCE, refusals=("409",)
        )
    },
    "/api/metrics/{system}": {
        "get": _operation(
            "the newest look-ups, newest last, when Metrics is on",
            {"type": "array", "items": {"type": "object"}},
            who="admin",
            parameters=[*_SYSTEM, _query("limit", "how many", {"type": "integer", "minimum": 0, "maximum": 100000})],
        )
    },
    "/api/history/{system}": {
        "get": _operation(
            "what happened, oldest first; the newest that fit, `next` is the `before` of the page of older ones",
            {
                "type": "object",
                "required": ["list", "next"],
                "properties": {
                    "list": {"type": "array", "items": {"$ref": "#/components/schemas/Event"}},
                    "next": {"type": ["integer", "null"]},
                },
            },
            who="user",
            parameters=[
                *_SYSTEM,
                _query("image", "TYPE:TAG, tag, id, or pattern with *", _TEXT),
                _query("user", "name or uid", _TEXT),
                _query("action", "pull, ready, failure ...", _TEXT),
                _query("since", "not before", _TIME),
                _query("until", "before", _TIME),
                _query("limit", "at most so many", {"type": "integer", "minimum": 1, "maximum": 1000}),
                _query("before", "events older than this one", {"type": "integer", "minimum": 0}),
            ],
        )
    },
    "/api/history/{system}/images": {
        "get": _operation(
            "the images that could be run at a time",
            _LIST_OF_IMAGES,
            who="user",
            parameters=[*_SYSTEM, {**_query("at", "when", _TIME), "required": True}],
        )
    },
    "/api/usage/{system}": {
        "get": _operation(
            "bytes by user and by image, shared and own", {"type": "object"}, who="user", parameters=_SYSTEM
        )
    },
    "/api/login/{system}": {
        "post": _operation(
            "try the credential in the munge payload at a registry",
            {
                "type": "object",
                "required": ["status", "location"],
                "properties": {"status": {"const": True}, "location": _TEXT},
            },
            who="user",
            parameters=_SYSTEM,
            body={"type": "object", "properties": {"location": _TEXT}},
            refusals=("403", "413", "502"),
        )
    },
}


def document() -> dict[str, Any]:
    """The description, as a JSON value."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Shifter image gateway",
            "version": VERSION,
            "description": "A trailing slash is the same path. Every request proves its user by a munge credential.",
        },
        "paths": _PATHS,
        "components": {
            "schemas": _SCHEMAS,
            "securitySchemes": {
                "munge": {
                    "type": "apiKey",
                    "in": "header",
                    "name": "authentication",
                    "description": "a munge credential, made anew for each request; its payload is empty or "
                    '{"authorized_locations": {"<location>": "user:password"}}',
                }
            },
        },
    }


class Description:
    """GET /api/openapi.json"""

    def on_get(self, request: falcon.Request, response: falcon.Response) -> None:
        send(response, document())
