"""Who is asking: from the munge credential of a request to a `Caller` with groups, rights and registry credentials.

Chapter 5.3 of the documentation gives the header and its payload. Credentials for registries are handed on in memory, to
the pull that needs them; they have no readable form and reach neither log nor event.
"""

from __future__ import annotations

import grp
import os
import pwd
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from catalog.config import Configuration, Platform
from catalog.credential import Credential
from catalog.munge import CredentialRefused, Decoded, Munge
from catalog.request_json import parsed

_REMEMBER = 60.0  # seconds for which names and groups of a user are not asked of the system again


class NotAuthenticated(Exception):
    """The request does not prove who asks; the text says why and what to do."""


@dataclass(frozen=True)
class Caller:
    """An authenticated user of one platform. groups: primary and supplementary. admin: of this platform."""

    uid: int
    gid: int
    name: str
    groups: frozenset[int]
    admin: bool
    credentials: Mapping[str, Credential] = field(repr=False, default_factory=dict)

    def credential_for(self, location: str, default_location: str) -> Credential | None:
        """The one given for `location` by name; else the "default" one if it is the default location."""
        exact = self.credentials.get(location)
        if exact is None and location == default_location:
            return self.credentials.get("default")
        return exact


NOBODY = Caller(uid=-1, gid=-1, name="", groups=frozenset(), admin=False)
"""A request without a credential: sees what is public."""


@dataclass(frozen=True)
class _Person:
    name: str
    groups: frozenset[int]
    read_at: float


class Callers:
    """Authenticates requests for all platforms of a configuration."""

    def __init__(self, configuration: Configuration) -> None:
        # MUNGE_SOCKET is what libmunge's own programs obey when no socket is configured.
        fallback = os.environ.get("MUNGE_SOCKET")
        self._munge = {}
        for platform in configuration.platforms.values():
            socket = platform.munge_socket or (type(configuration.state_directory)(fallback) if fallback else None)
            self._munge[platform.name] = Munge(socket)
        self._people: dict[tuple[int, int], _Person] = {}

    def authenticate(self, platform: Platform, header: str | None) -> Caller | None:
        """The caller that the `authentication` header proves; None without a header.

        Raises NotAuthenticated (forged, expired, replayed, of another system, payload not understood), and
        catalog.munge.MungeUnavailable when nobody can be authenticated.
        """
        if header is None or not header.strip():
            return None
        munge = self._munge[platform.name]
        try:
            decoded = munge.decode(header)
        except CredentialRefused as error:
            raise NotAuthenticated(f"munge refused your credential: {error}") from None
        person = self._person(decoded.uid, decoded.gid)
        admin = person.name in platform.admins or str(decoded.uid) in platform.admins
        credentials = _credentials(munge, decoded) if decoded.payload else {}
        return Caller(decoded.uid, decoded.gid, person.name, person.groups, admin, credentials)

    def _person(self, uid: int, gid: int) -> _Person:
        now = time.monotonic()
        person = self._people.get((uid, gid))
        if person is None or now - person.read_at > _REMEMBER:
            name, groups = user_name(uid), groups_of(uid, gid)
            if len(self._people) > 10000:
                self._people.clear()
            self._people[uid, gid] = person = _Person(name, groups, now)
        return person


def groups_of(uid: int, gid: int) -> frozenset[int]:
    """The groups of a user whose primary one is `gid`, by the system's user database."""
    try:
        return frozenset(os.getgrouplist(pwd.getpwuid(uid).pw_name, gid))
    except KeyError:
        # The gateway's machine need not know every user of the cluster.
        return frozenset({gid})


def user_name(uid: int) -> str:
    """The account's name; the number when the gateway's machine does not know it."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def group_name(gid: int) -> str:
    """For tables that people read."""
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)


def _credentials(munge: Munge, decoded: Decoded) -> Mapping[str, Credential]:
    bad = NotAuthenticated(
        "the credential's payload is not understood; it must be empty or "
        '{"authorized_locations": {"<location>": "user:password"}}'
    )
    try:
        payload = parsed(decoded.payload)
    except ValueError:
        raise bad from None
    if payload in ({}, "", None):
        return {}
    given = payload.get("authorized_locations", {}) if isinstance(payload, dict) else None
    if not isinstance(given, dict):
        raise bad
    return {name: _credential(munge, decoded, name, value) for name, value in given.items()}


def _credential(munge: Munge, decoded: Decoded, location: str, value: object) -> Credential:
    if not isinstance(value, str):
        raise NotAuthenticated(f"the credential for {location} is no text; run shifterimg login again")
    if value.startswith("MUNGE:"):
        try:
            saved = munge.decode_saved(value)
        except CredentialRefused as error:
            raise NotAuthenticated(f"the saved login for {location}: {error}; run shifterimg login again") from None
        if saved.uid != decoded.uid:
            # Else whoever finds another user's file could use the login in it.
            raise NotAuthenticated(f"the saved login for {location} is another user's; run shifterimg login again")
        try:
            value = saved.payload.decode()
        except UnicodeDecodeError:
            raise NotAuthenticated(f"the saved login for {location} is damaged; run shifterimg login again") from None
    user, colon, password = value.partition(":")
    if not colon or not user:
        raise NotAuthenticated(f"the credential for {location} is not user:password")
    return Credential(user, password)
