"""The REST client of the image gateway, for programs on login and compute nodes.

``Gateway`` knows several base URLs of one gateway, asks them in a random order and stays with the one that answered.
What failed on the way is kept, with its reason, for the error that the user sees. A method returns what the gateway
said as plain JSON values or raises one of the errors below; it never prints, sleeps or retries at the same URL. Every
request carries a fresh munge credential. The routes are those of ``docs/rest.md``.

This module is imported by every start of a container by tag, so it imports next to nothing at load.
"""

from __future__ import annotations

from runtime import http1, munge
from runtime.sidecar import load_json

TYPE_CHECKING = False  # see runtime/munge.py
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path
    from typing import Any

# Refusals of this request by a gateway that works: another one would say the same. A 404 is not among them: a gateway
# with a store of its own may have the image.
_FINAL = frozenset({400, 401, 403, 405, 409, 410, 413, 415, 422, 429})


class GatewayError(Exception):
    """The gateway gave no usable answer. ``reasons``: one line for each URL that was tried.

    ``unsigned``: why the request went without a munge credential, "" when it had one.
    """

    def __init__(self, message: str, reasons: Sequence[str] = (), unsigned: str = "") -> None:
        super().__init__(message)
        self.reasons = tuple(reasons)
        self.unsigned = unsigned


class Unreachable(GatewayError):
    """No URL gave an HTTP answer."""


class NotFound(GatewayError):
    """No such image, system or route, or it is hidden from this user (404)."""


class NotAllowed(GatewayError):
    """The gateway knows who asks, or cannot tell, and refuses (401, 403)."""


class Refused(GatewayError):
    """The request itself was wrong (other 4xx)."""


class Broken(GatewayError):
    """The gateway answered with a failure of its own (5xx), with a wish to wait (429), or with something that is no answer."""


class Gateway:
    """One system's view of its gateway.

    ``urls``: base URLs, at least one; ``system``: this system's name at the gateway; ``timeout``: seconds allowed for
    each URL's answer; ``munge_socket``: None means ``MUNGE_SOCKET`` or libmunge's own default.
    Raises ValueError for a malformed URL.
    """

    def __init__(
        self, urls: Sequence[str], system: str, timeout: float = 30.0, munge_socket: str | Path | None = None
    ) -> None:
        if not urls:
            raise ValueError("no image gateway is configured; set imageGateway in udiRoot.conf")
        self.system = system
        self.timeout = timeout
        self._munge_socket = munge_socket if munge_socket is not None else munge.default_socket()
        self._targets = [(url, http1.parse_url(url)) for url in urls]
        if len(self._targets) > 1:
            import random

            random.shuffle(self._targets)

    # Questions that a reader may ask

    def lookup(self, kind: str, tag: str, *, lease: bool = False) -> dict[str, Any]:
        """The record of the READY image ``kind:tag`` (fields of docs/rest.md, IMAGE), with an ``id`` that is text.

        ``lease``: a job will ask for this id later, so the gateway keeps the image's file whatever becomes of the tag.
        Raises NotFound when there is none that this user may see; Unreachable, NotAllowed, Broken.
        """
        record = self._object("GET", self._image_path("lookup", kind, tag) + ("?lease=1" if lease else ""))
        identifier = record.get("id")
        if not isinstance(identifier, str) or not identifier or identifier == "MISSING":
            raise Broken(f"the gateway's record of {kind}:{tag} has no id")
        return record

    def images(self, as_of: str | None = None) -> list[dict[str, Any]]:
        """All READY images that this user may see; with ``as_of`` (ISO 8601), as they were then."""
        if as_of is not None:
            return self._list(self._system_path("history", {"at": as_of}, "images/"))
        return self._list(self._system_path("list"))

    def queue(self) -> list[dict[str, Any]]:
        """What is being pulled, waits or failed: ``status`` and ``image`` of each."""
        return self._list(self._system_path("queue"))

    def access(self, kind: str, tag: str) -> dict[str, Any]:
        """Who may see ``kind:tag``: ``userACL`` and ``groupACL`` (lists of ids) and ``private`` (bool)."""
        return self._object("GET", self._image_path("acl", kind, tag))

    def history(self, **filters: str | int | None) -> dict[str, Any]:
        """One page of what happened: ``list`` of events, oldest first, and ``next``, the event to go on before.

        Filters: image, user, action, since, until, limit, before; None means not given.
        """
        return self._object("GET", self._system_path("history", filters))

    # Requests that change something

    def pull(
        self, kind: str, tag: str, *, uids: Sequence[int] = (), gids: Sequence[int] = (),
        credentials: Mapping[str, str] | None = None,
    ) -> dict[str, Any]:  # fmt: skip
        """Ask for ``kind:tag`` to be pulled, or how its pull goes: the same request again is the poll.

        ``credentials``: location -> a munge credential over "user:password" (``runtime/credentials.py``). The record
        has a ``status`` that is text.
        """
        record = self._object("POST", self._image_path("pull", kind, tag), _acl(uids, gids), credentials)
        return _with_status(record, f"{kind}:{tag}")

    def import_image(
        self, kind: str, tag: str, path: str, format: str, *, uids: Sequence[int] = (), gids: Sequence[int] = ()
    ) -> dict[str, Any]:
        """Ask for a file that the gateway can read to become the image ``kind:tag``; again to poll, as pull()."""
        body = {"filepath": path, "format": format, **_acl(uids, gids)}
        return _with_status(self._object("POST", self._image_path("doimport", kind, tag), body), f"{kind}:{tag}")

    def remove(self, kind: str, tag: str) -> dict[str, Any]:
        """Remove a tag: its owner's or an administrator's right."""
        return self._object("DELETE", self._image_path("image", kind, tag))

    def restore(self, kind: str, tag: str) -> dict[str, Any]:
        """Bring an expired image back while its file is still there."""
        return self._object("POST", self._image_path("restore", kind, tag))

    def expire(self, kind: str, tag: str) -> dict[str, Any]:
        """Let an image expire at once (administrators)."""
        return self._object("GET", self._image_path("expire", kind, tag))

    def autoexpire(self, *, dry_run: bool = False) -> dict[str, Any]:
        """Let all images expire whose time has come (administrators): ``status`` is a list of ids, or false;
        ``images`` their names. With ``dry_run`` nothing expires.
        """
        return self._object("GET", self._system_path("autoexpire", {"dry_run": "true"} if dry_run else None))

    def set_access(self, kind: str, tag: str, *, uids: Sequence[int], gids: Sequence[int]) -> dict[str, Any]:
        """Replace who may see ``kind:tag``; two empty lists make it public."""
        body = {"allowed_uids": _numbers(uids), "allowed_gids": _numbers(gids)}
        return self._object("POST", self._image_path("acl", kind, tag), body)

    def seal(self, secret: bytes) -> str:
        """A munge credential over ``secret``, which the gateway opens even when it is old. Raises munge.MungeError."""
        return munge.encode(secret, self._munge_socket)

    def check_login(self, location: str, credentials: Mapping[str, str]) -> dict[str, Any]:
        """Have the gateway try a credential at the registry called ``location``; raises NotAllowed with the reason."""
        return self._object("POST", self._system_path("login"), {"location": location}, credentials)

    # The way there

    def _system_path(self, route: str, query: Mapping[str, str | int | None] | None = None, below: str = "") -> str:
        pairs = [f"{http1.quote(k)}={http1.quote(str(v))}" for k, v in (query or {}).items() if v is not None]
        return f"/api/{route}/{http1.quote(self.system)}/{below}" + ("?" + "&".join(pairs) if pairs else "")

    def _image_path(self, route: str, kind: str, tag: str) -> str:
        return f"/api/{route}/{http1.quote(self.system)}/{http1.quote(kind)}/{http1.quote(tag)}/"

    def _list(self, path: str) -> list[dict[str, Any]]:
        entries = self._object("GET", path).get("list")
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            raise Broken("the gateway's answer has no list in it")
        return entries

    def _object(
        self, method: str, path: str, body: Mapping[str, Any] | None = None,
        credentials: Mapping[str, str] | None = None,
    ) -> dict[str, Any]:  # fmt: skip
        """Ask each URL in turn; the first usable answer, or the error that says most about what was wrong."""
        failed: list[tuple[type[GatewayError], str, str]] = []  # error, URL, reason
        unsigned = ""
        for target in list(self._targets):
            url, address = target
            headers, unsigned = self._headers(credentials)
            data = _json(body) if body else (b"" if method == "POST" else None)
            if body:
                headers["Content-Type"] = "application/json"
            try:
                answer = http1.exchange(address, method, path, headers, data, self.timeout)
            except http1.ExchangeFailed as error:
                failed.append((Unreachable, url, str(error)))
                continue
            # The next request goes to the gateway that answered, whatever it said.
            self._targets.remove(target)
            self._targets.insert(0, target)
            value = _parse(answer.body)
            if answer.status == 200 and isinstance(value, dict):
                return value
            kind, reason = _classify(answer.status, value)
            if unsigned and kind in (NotFound, NotAllowed):
                reason = f"{reason} (asked without a credential: {unsigned})"
            failed.append((kind, url, reason))
            if answer.status in _FINAL:
                break
        raise _worst(failed, unsigned)

    def _headers(self, credentials: Mapping[str, str] | None) -> tuple[dict[str, str], str]:
        """The request's headers and, when no munge credential could be made, why not, else "".

        Without a credential a public image can still be looked up, so a node whose munged died is not cut off; the
        gateway refuses everything else.
        """
        headers = {"Accept": "*/*"}
        payload = _json({"authorized_locations": dict(credentials)}) if credentials else b""
        try:
            headers["authentication"] = munge.encode(payload, self._munge_socket)
        except munge.MungeError as error:
            return headers, str(error)
        return headers, ""


def _acl(uids: Sequence[int], gids: Sequence[int]) -> dict[str, str]:
    lists = {"allowed_uids": _numbers(uids), "allowed_gids": _numbers(gids)}
    return {name: text for name, text in lists.items() if text}


def _numbers(ids: Sequence[int]) -> str:
    return ",".join(map(str, ids))


def _with_status(record: dict[str, Any], image: str) -> dict[str, Any]:
    if not isinstance(record.get("status"), str):
        raise Broken(f"the gateway's record of {image} has no status")
    return record


def _json(value: Mapping[str, Any]) -> bytes:
    import json  # a look-up sends no body, and needs no more of it than sidecar.load_json

    return json.dumps(value).encode()


def _parse(body: bytes) -> object:
    try:
        return load_json(body.decode())
    except (ValueError, RecursionError):  # ValueError: also UnicodeDecodeError
        return None


def _classify(status: int, value: object) -> tuple[type[GatewayError], str]:
    """Which error an answer is, and the reason in it."""
    if status == 200:
        return Broken, "it answered with something that is not a JSON object; is this URL an image gateway?"
    texts = [value.get(name) for name in ("error", "message")] if isinstance(value, dict) else []
    reasons = [text.strip() for text in texts if isinstance(text, str) and text.strip()]
    reason = f"HTTP status {status} without a reason"
    if reasons:  # `message` of a 404 only repeats the URL, `error` is the sentence
        reason = one_line(reasons[0])
    if status == 404:
        return NotFound, reason
    if status in (401, 403):
        return NotAllowed, reason
    if status == 429:  # the same request is right a moment later, as after a failure of the gateway's
        return Broken, reason
    return (Refused if 400 <= status < 500 else Broken), reason


def one_line(text: str) -> str:
    """``text`` for a terminal: a registry's words may be in it, and must not drive the cursor."""
    return "".join(character if character.isprintable() else "?" for character in " ".join(text.split()))


def _worst(failed: Sequence[tuple[type[GatewayError], str, str]], unsigned: str) -> GatewayError:
    """The error for a request that no URL answered well: a refusal says more than a failure, a failure than silence."""
    reasons = [f"{url}: {reason}" for _, url, reason in failed]
    for kind in (NotAllowed, Refused, NotFound, Broken):
        for candidate, url, reason in failed:
            if candidate is kind:
                text = f"the image gateway {url} failed: {reason}" if kind is Broken else reason
                return kind(text, reasons, unsigned)
    return Unreachable("cannot reach the image gateway: " + "; ".join(reasons), reasons, unsigned)
