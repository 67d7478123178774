"""The route of `shifterimg login`: a user's credential is tried at its registry before the user saves it.

It is the one route that waits for a stranger's machine: so only a part of the threads that answer requests may be in it at a
time, and a registry that is silent stops no look-up.
"""

from __future__ import annotations

import falcon

from catalog.desk import Forbidden, NotFound, Refused
from catalog.failure import PullFailed
from catalog.registry_login import LoginRefused, try_login
from catalog.rest import Gate, body, send

DEFAULT = "default"  # chapter 5.3 of the documentation: the location that the client need not know by name


class Login:
    """POST /api/login/S {"location": NAME}, the credential inside the munge credential as for a pull.

    200 {"status": true, "location": NAME}; 403 when the registry refuses, 404 for an unknown location, 502 when the
    registry cannot be asked, 503 while too many others are tried. Nothing is recorded.
    """

    def __init__(self, gate: Gate) -> None:
        self._gate = gate

    def on_post(self, request: falcon.Request, response: falcon.Response, system: str) -> None:
        caller = self._gate.user(request, system)
        configuration = self._gate.desk.configuration
        wanted = body(request).get("location", DEFAULT)
        if not isinstance(wanted, str):
            raise Refused('a login needs {"location": "name of a registry"}')
        name = configuration.default_location if wanted == DEFAULT else wanted
        location = configuration.locations.get(name)
        if location is None:
            known = ", ".join(sorted(configuration.locations))
            raise NotFound(f"registry {wanted!r} is not configured here; configured: {known}")
        credential = caller.credential_for(name, configuration.default_location)
        if credential is None:
            raise Refused(
                f"the request holds no credential for {wanted}; send one as authorized_locations, see docs/rest.md"
            )
        if not self._gate.logins.acquire(blocking=False):
            raise falcon.HTTPServiceUnavailable(
                description="too many logins are being tried at registries now; try again in a moment",
                headers={"Retry-After": "2"},
            )
        try:
            try_login(location, credential)
        except LoginRefused as error:
            raise Forbidden(str(error)) from None
        except PullFailed as error:
            raise falcon.HTTPBadGateway(description=str(error)) from error
        finally:
            self._gate.logins.release()
        send(response, {"status": True, "location": name})
