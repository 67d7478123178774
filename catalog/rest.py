"""The REST surface: routes, authentication of requests, and the one place where an error becomes JSON.

docs/rest.md and /api/openapi.json describe it. Promises that every response but `/` and `/metrics` is JSON with exactly
`application/json` and a Content-Length, that no exception reaches a client without a reason, and that what a user may not
see answers as what does not exist. Decisions are made at the desk (catalog.desk); here are only forms.
"""

from __future__ import annotations

import json
import logging
import secrets
import sqlite3
import threading
from collections.abc import Mapping
from typing import Any

import falcon
from eventsourcing.persistence import PersistenceError

from cas.errors import StoreError
from catalog.acl import AclInvalid
from catalog.application import Contended
from catalog.callers import NOBODY, Caller, Callers, NotAuthenticated
from catalog.config import Platform
from catalog.desk import Desk, Forbidden, NotFound, Refused, Unfit
from catalog.leases import SideTableUnavailable
from catalog.munge import MungeUnavailable
from catalog.rates import Rates, network
from catalog.request_json import parsed
from catalog.states import NotAllowed

log = logging.getLogger("shifter.rest")

JSON = "application/json"


class Gate:
    """Lets requests in: finds the platform and the caller, and counts requests: by `rates` those of a user, by `strangers`
    those without a credential. `logins`: places for those under way.
    """

    def __init__(self, desk: Desk, callers: Callers, rates: Rates, strangers: Rates | None = None) -> None:
        self.desk = desk
        self._callers = callers
        self._rates = rates
        self._strangers = strangers or Rates(0, 0)
        self.logins = threading.BoundedSemaphore(max(1, desk.configuration.request_threads // 4))

    def platform(self, system: str) -> Platform:
        return self.desk.platform(system)

    def anybody(self, request: falcon.Request, system: str) -> Caller:
        """The caller; somebody who sees what is public when there is no credential. A bad credential is refused."""
        caller = self._callers.authenticate(self.platform(system), request.get_header("authentication"))
        if caller is None:
            if not self._strangers.allow(network(request.remote_addr)):
                raise falcon.HTTPTooManyRequests(
                    description="too many requests without a credential from this address; wait a moment, or send one",
                    headers={"Retry-After": "1"},
                )
            return NOBODY
        if not self._rates.allow(caller.uid):
            raise falcon.HTTPTooManyRequests(
                description="too many requests at once; wait a moment", headers={"Retry-After": "1"}
            )
        return caller

    def user(self, request: falcon.Request, system: str) -> Caller:
        """The caller, who must have proved who he is."""
        caller = self.anybody(request, system)
        if caller is NOBODY:
            raise NotAuthenticated("this needs authentication: send a munge credential in the header 'authentication'")
        return caller

    def admin(self, request: falcon.Request, system: str) -> Caller:
        """The caller, who must be an administrator of the platform."""
        caller = self.user(request, system)
        if not caller.admin:
            raise Forbidden(f"only administrators of {system} may do this (Platforms.{system}.admins)")
        return caller


def body(request: falcon.Request) -> dict[str, Any]:
    """The JSON object in the request; empty when there is no body. Raises Refused."""
    raw = request.bounded_stream.read()
    if not raw.strip():
        return {}
    try:
        value = parsed(raw)
    except ValueError:
        raise Refused(
            'the request\'s body is not JSON; send nothing or an object like {"allowed_uids": "1000"}'
        ) from None
    if not isinstance(value, dict):
        raise Refused("the request's body is JSON, but no object {...}")
    return value


def send(response: falcon.Response, value: object, status: str = falcon.HTTP_200) -> None:
    """Answers with `value` as JSON."""
    response.status = status
    response.content_type = JSON
    response.text = json.dumps(value)


def told(unsettled: str) -> dict[str, Any]:
    """The fields of an answer to a change that say that it has not reached the nodes; none when it has."""
    return {"settled": False, "status_message": unsettled} if unsettled else {}


def fail(request: falcon.Request, response: falcon.Response, status: int, reason: str) -> None:
    """Answers with an error: the one shape that all have."""
    line = falcon.code_to_http_status(status)
    title = line.partition(" ")[2]
    send(response, {"status": status, "error": reason, "message": f"{title}: {request.url}"}, line)


_STATUS: Mapping[type[Exception], int] = {
    NotFound: 404,
    Unfit: 409,  # before Refused, which it is too
    Refused: 400,
    AclInvalid: 400,
    Forbidden: 403,
    NotAllowed: 409,
    Contended: 503,
    NotAuthenticated: 401,
    MungeUnavailable: 503,
}


def _known(request: falcon.Request, response: falcon.Response, error: Exception, params: dict[str, Any]) -> None:
    fail(request, response, next(code for kind, code in _STATUS.items() if isinstance(error, kind)), str(error))
    if isinstance(error, NotAuthenticated):
        response.set_header("WWW-Authenticate", "munge")


def _store_away(request: falcon.Request, response: falcon.Response, error: Exception, params: dict[str, Any]) -> None:
    log.error("%s %s: the store failed: %s", request.method, request.path, error)
    fail(request, response, 503, "the gateway cannot reach its store now; try again in a moment")


def _disk_fails(request: falcon.Request, response: falcon.Response, error: Exception, params: dict[str, Any]) -> None:
    log.error("%s %s: %s", request.method, request.path, error, exc_info=error)
    reason = (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
    fail(request, response, 503, f"the gateway cannot use its disk now: {reason}; tell an administrator, and try again")


def _unexpected(request: falcon.Request, response: falcon.Response, error: Exception, params: dict[str, Any]) -> None:
    number = secrets.token_hex(4)
    log.error("%s %s: unexpected error %s", request.method, request.path, number, exc_info=error)
    fail(request, response, 500, f"internal error in the gateway; its log has the details under {number}")


def _http_error(request: falcon.Request, response: falcon.Response, error: falcon.HTTPError) -> None:
    reason = error.description
    if isinstance(error, falcon.HTTPNotFound) and not reason:
        reason = "no such route; GET /api/openapi.json lists them"
    if isinstance(error, falcon.HTTPMethodNotAllowed):
        reason = f"{request.method} is not for this route; allowed: {dict(error.headers or {}).get('Allow', 'none')}"
    fail(request, response, error.status_code, reason or error.title or "refused")


class Root:
    """GET /: what the original answers, and what monitoring of old sites looks for."""

    def on_get(self, request: falcon.Request, response: falcon.Response) -> None:
        response.content_type = falcon.MEDIA_TEXT
        response.text = "{lookup,pull,expire,list}"


def make_app(routes: Mapping[str, object]) -> falcon.App[falcon.Request, falcon.Response]:
    """The WSGI application with `routes` (path template: resource) and the errors above."""
    app = falcon.App(media_type=JSON)
    app.req_options.strip_url_path_trailing_slash = True
    app.set_error_serializer(_http_error)
    # Later handlers are more specific ones: falcon takes the newest that fits.
    app.add_error_handler(Exception, _unexpected)
    for broken in (OSError, StoreError):
        app.add_error_handler(broken, _disk_fails)
    for kind in (PersistenceError, SideTableUnavailable, sqlite3.Error):
        app.add_error_handler(kind, _store_away)
    for known in _STATUS:
        app.add_error_handler(known, _known)
    app.add_error_handler(falcon.HTTPError, _falcon_error)
    app.add_route("/", Root())
    for template, resource in routes.items():
        app.add_route(template, resource)
    return app


def _falcon_error(
    request: falcon.Request, response: falcon.Response, error: falcon.HTTPError, params: dict[str, Any]
) -> None:
    for name, value in dict(error.headers or {}).items():
        response.set_header(name, value)
    _http_error(request, response, error)
