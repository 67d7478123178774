"""How a registry wants to be asked: the challenge it answers with, and the token that satisfies it.

Follows https://distribution.github.io/distribution/spec/auth/token/ and RFC 7617. Credentials go to nobody but the
registry and the token service that it names, and to that one only over https when the registry itself is reached by
https.
"""

from __future__ import annotations

import base64
import json
import re
import threading
import time
from collections.abc import Callable, Mapping
from urllib.parse import urlsplit

from catalog.credential import Credential
from catalog.failure import PullFailed

_PARAMETER = re.compile(r'([A-Za-z]+)\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s,"]+))')
_LONGEST_TOKEN = 64 << 10


def parse_challenge(header: str) -> tuple[str, dict[str, str]]:
    """Scheme (lower case) and parameters of a WWW-Authenticate header; Bearer is preferred where several are offered."""
    found: dict[str, dict[str, str]] = {}
    for scheme in ("bearer", "basic"):
        match = re.search(rf"(?:^|,)\s*{scheme}(?:\s+|$)", header, re.IGNORECASE)
        if match:
            rest = header[match.end() :]
            cut = re.search(r",\s*(?:bearer|basic)\s", rest, re.IGNORECASE)
            parameters = _PARAMETER.findall(rest[: cut.start()] if cut else rest)
            found[scheme] = {key.lower(): quoted.replace('\\"', '"') or bare for key, quoted, bare in parameters}
    for scheme in ("bearer", "basic"):
        if scheme in found:
            return scheme, found[scheme]
    return header.partition(" ")[0].lower()[:40], {}


class Authenticator:
    """The Authorization header for one repository. Shared by the threads of a pull: a token is fetched once and
    renewed once.
    """

    def __init__(
        self,
        *,
        registry: str,
        url: str,
        repository: str,
        credential: Credential | None,
        fetch: Callable[[str, Mapping[str, str], Mapping[str, str]], tuple[int, bytes]],
    ) -> None:
        """fetch(url, query, headers) makes a GET with the caller's TLS, proxy, retry and size rules: status, body."""
        self._registry = registry
        self._url = url
        self._repository = repository
        self._credential = credential
        self._fetch = fetch
        self._lock = threading.Lock()
        self._header: str | None = None
        self._expires = float("inf")

    def header(self) -> str | None:
        """What to send now; None: nothing, or nothing yet."""
        with self._lock:
            if self._header is not None and time.monotonic() > self._expires:
                self._header = None
            return self._header

    def answer(self, challenge: str, refused: str | None) -> bool:
        """Prepares for a challenge (the WWW-Authenticate header of a 401).

        refused: the header that was sent and not accepted. False when there is nothing better to send than that.
        Raises PullFailed when the token service does not answer as it should.
        """
        with self._lock:
            if self._header is not None and self._header != refused:
                return True  # another thread has renewed it meanwhile
            scheme, parameters = parse_challenge(challenge)
            if scheme == "basic":
                if self._credential is None or refused is not None:
                    return False
                self._header = _basic(self._credential)
                return True
            if scheme != "bearer":
                return False
            token, lifetime = self._token(parameters)
            header = f"Bearer {token}"
            if header == refused:
                return False
            self._header = header
            # Renew ahead of time: a request that arrives in the last second is refused.
            self._expires = time.monotonic() + max(lifetime * 0.8, 1.0)
            return True

    def _token(self, parameters: Mapping[str, str]) -> tuple[str, float]:
        realm = parameters.get("realm", "")
        parts = urlsplit(realm)
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise PullFailed(f"registry {self._registry} names no usable token service ({realm[:100]!r})")
        if parts.scheme == "http" and self._url.startswith("https:"):
            raise PullFailed(f"registry {self._registry} names a token service without TLS ({realm[:100]!r}): refused")
        query = {}
        if scope := parameters.get("scope") or (f"repository:{self._repository}:pull" if self._repository else ""):
            query["scope"] = scope  # without a repository, as at a login, only the credential is looked at
        if service := parameters.get("service"):
            query["service"] = service
        headers = {}
        if self._credential is not None:
            headers["Authorization"] = _basic(self._credential)
            query["account"] = self._credential.user
        status, content = self._fetch(realm, query, headers)
        if status in {400, 401, 403}:
            who = f"of {self._credential.user} " if self._credential else ""
            raise Refused(
                f"registry {self._registry} does not accept the credential {who}for {self._repository}"
                if self._credential
                else f"registry {self._registry} gives no anonymous access to {self._repository}"
            )
        if status != 200:
            raise PullFailed(f"the token service of registry {self._registry} answered {status}")
        try:
            document = json.loads(content)
            token = document.get("token") or document.get("access_token")
            lifetime = float(document.get("expires_in") or 60)
        except (ValueError, AttributeError, TypeError, RecursionError) as error:
            raise PullFailed(f"the token service of registry {self._registry} sent no token") from error
        if not isinstance(token, str) or not token or len(token) > _LONGEST_TOKEN or not token.isprintable():
            raise PullFailed(f"the token service of registry {self._registry} sent no token")
        return token, lifetime


class Refused(PullFailed):
    """The registry does not let us in as whom we came: another credential, or one at all, may help."""


def _basic(credential: Credential) -> str:
    text = f"{credential.user}:{credential.password}".encode()
    return "Basic " + base64.b64encode(text).decode("ascii")
