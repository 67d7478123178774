"""One repository of a registry, read over HTTP: manifests, configurations and layers.

Speaks the OCI distribution specification 1.1 (https://github.com/opencontainers/distribution-spec). What it hands out
is verified against the digest where one is known. It retries what may pass (connections that break, 429, 5xx), waits
as long as the registry asks within limits, and follows redirects itself, so that no token ever reaches another host
and no https address is left for http. Whatever else happens is a PullFailed. It writes no files.
"""

from __future__ import annotations

import contextlib
import email.utils
import hashlib
import json
import random
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from urllib.parse import quote, urljoin, urlsplit

import requests
import urllib3

from catalog.credential import Credential
from catalog.failure import PullFailed
from catalog.limits import Limits
from catalog.manifest import ACCEPTED, OCI_INDEX, Descriptor
from catalog.registry_auth import Authenticator, Refused
from catalog.registry_pace import PacedAdapter

_AGENT = "shifter-gateway"
_PASSING = {408, 429, 500, 502, 503, 504}
_AT_ONCE = 512 << 10
_REDIRECTS = {301, 302, 303, 307, 308}
_BROKEN = (
    requests.ConnectionError,
    requests.Timeout,
    requests.exceptions.ChunkedEncodingError,
    urllib3.exceptions.HTTPError,
)

Pause = Callable[[float], None]
"""Waits so many seconds, and raises PullAborted when the pull is to end meanwhile."""


class _OnlyOurs(requests.auth.AuthBase):
    """Keeps requests from adding a password of its own from ~/.netrc of whoever runs the gateway."""

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        return request


class Registry:
    """A repository at one address. May be used by several threads at once."""

    def __init__(
        self,
        *,
        name: str,
        url: str,
        repository: str,
        credential: Credential | None,
        ca: Path | None = None,
        proxy: str | None = None,
        limits: Limits,
        pause: Pause,
        note: Callable[[str], None],
    ) -> None:
        """name: how messages call the registry. url: scheme://host[:port]. note: is told of waits and retries."""
        self.name = name
        self.repository = repository
        self._url = url.rstrip("/")
        self._limits = limits
        self._pause = pause
        self._note = note
        self._session = requests.Session()
        self._session.auth = _OnlyOurs()
        self._session.headers["User-Agent"] = _AGENT
        # Given with each request: requests lets REQUESTS_CA_BUNDLE and http_proxy go before what a session has.
        self._verify: str | None = str(ca) if ca is not None else None
        self._proxies = {"http": proxy, "https": proxy} if proxy is not None else None
        # What is compressed on the way has other bytes than its digest says, and no bound on its size.
        self._session.headers["Accept-Encoding"] = "identity"
        adapter = PacedAdapter(seconds=limits.timeout, least=limits.slowest, pool_connections=4, pool_maxsize=32)
        self._session.mount("https://", adapter)
        self._session.mount("http://", adapter)
        self._auth = Authenticator(
            registry=name, url=self._url, repository=repository, credential=credential, fetch=self._fetch_token
        )

    def close(self) -> None:
        self._session.close()

    def enter(self) -> None:
        """Has the registry's base address answer, with the credential if it asks for one. Raises PullFailed (Refused)."""
        with self._open(f"{self._url}/v2/", {}, "its base address"):
            pass

    def manifest(self, reference: str, what: str, size: int | None = None) -> tuple[bytes, str, str]:
        """Bytes, media type and digest ("sha256:…") of a manifest or index; reference: a tag or a digest.

        Raises PullFailed (Refused when another credential may help).
        """
        headers = {"Accept": ", ".join(ACCEPTED)}
        address = f"{self._url}/v2/{self.repository}/manifests/{quote(reference, safe=':')}"
        content, response = self._small(address, headers, what, f"the manifest of {what}")
        digest = "sha256:" + hashlib.sha256(content).hexdigest()
        if reference.startswith("sha256:") and digest != reference:
            raise PullFailed(f"registry {self.name} sent another manifest for {what}: it has the digest {digest}")
        if size is not None and len(content) != size:
            raise PullFailed(
                f"registry {self.name} sent a manifest of {len(content)} bytes for {what}, expected were {size}"
            )
        return content, response.headers.get("Content-Type", ""), digest

    def referrers(self, digest: str, what: str) -> bytes:
        """The index of what refers to a manifest; not verified, nobody has a digest of it.

        Raises PullFailed, also where the registry does not know of referrers.
        """
        address = f"{self._url}/v2/{self.repository}/referrers/{quote(digest, safe=':')}"
        return self._small(address, {"Accept": OCI_INDEX}, what, f"the referrers of {digest}")[0]

    def small_blob(self, descriptor: Descriptor, what: str, name: str) -> bytes:
        """A blob that is read into memory, such as a configuration; verified. Raises PullFailed."""
        content, _ = self._small(self._blob_address(descriptor), {}, what, name)
        if hashlib.sha256(content).hexdigest() != descriptor.sha256 or len(content) != descriptor.size:
            raise PullFailed(
                f"registry {self.name} sent other bytes for {name} than its digest {descriptor.digest} says"
            )
        return content

    @contextlib.contextmanager
    def blob(self, descriptor: Descriptor, what: str, offset: int = 0) -> Iterator[tuple[int, Iterator[bytes]]]:
        """A layer's bytes as they come, from `offset` where the registry can, else from 0: (start, pieces).

        Not verified: whoever stores them does that. Raises PullFailed, and BrokenTransfer when the connection breaks,
        for which the caller may come again with what it has.
        """
        headers = {"Range": f"bytes={offset}-"} if offset else {}
        with self._open(self._blob_address(descriptor), headers, what) as response:
            start = 0
            if response.status_code == 206:
                start = _range_start(response.headers.get("Content-Range", ""))
                if start != offset:
                    raise PullFailed(
                        f"registry {self.name} sent another part of {descriptor.digest} than was asked for"
                    )
            yield start, self._pieces(response)

    def _blob_address(self, descriptor: Descriptor) -> str:
        return f"{self._url}/v2/{self.repository}/blobs/{descriptor.digest}"

    def _pieces(self, response: requests.Response) -> Iterator[bytes]:
        try:
            while True:
                # As it comes, so that a slow registry's bytes are seen, and the pull's end too.
                piece = response.raw.read1(_AT_ONCE, decode_content=False)
                if not piece:
                    break
                yield piece
            if response.raw.length_remaining:
                raise BrokenTransfer(f"connection closed, {response.raw.length_remaining} bytes before the end")
        except (*_BROKEN, OSError) as error:
            raise BrokenTransfer(_cause(error)) from error

    def _small(self, address: str, headers: Mapping[str, str], what: str, name: str) -> tuple[bytes, requests.Response]:
        """A whole answer of bounded size, tried again when the connection breaks in the middle of it."""
        for attempt in range(1, self._limits.attempts + 1):
            with self._open(address, headers, what) as response:
                try:
                    return self._whole(response, name), response
                except BrokenTransfer as error:
                    if attempt == self._limits.attempts:
                        raise PullFailed(
                            f"registry {self.name} broke the connection {attempt} times: {error}"
                        ) from error
                    self.backoff(attempt, f"the connection broke ({error})")
        raise AssertionError("the last attempt returns or raises")

    def _whole(self, response: requests.Response, name: str) -> bytes:
        """An answer's body. Raises PullFailed when it is too large, BrokenTransfer."""
        limit = self._limits.manifest
        content = bytearray()
        for piece in self._pieces(response):
            content += piece
            if len(content) > limit:
                raise PullFailed(f"{name} is larger than {limit} bytes, which is the limit")
        return bytes(content)

    @contextlib.contextmanager
    def _open(self, address: str, headers: Mapping[str, str], what: str) -> Iterator[requests.Response]:
        """A successful answer (200 or 206) with its body still to be read."""
        response = self._ask(address, headers, what)
        try:
            yield response
        finally:
            response.close()

    def _ask(self, address: str, headers: Mapping[str, str], what: str) -> requests.Response:
        challenged = 0
        attempt = 1
        while True:
            sent = self._auth.header()
            try:
                response = self._follow(address, {**headers, **({"Authorization": sent} if sent else {})})
            except _BROKEN as error:
                if attempt >= self._limits.attempts or isinstance(error, requests.exceptions.SSLError):
                    raise PullFailed(f"registry {self.name} cannot be reached: {_cause(error)}") from error
                self.backoff(attempt, f"cannot be reached ({_cause(error)})")
                attempt += 1
                continue
            except (requests.RequestException, ValueError) as error:
                raise PullFailed(f"registry {self.name} cannot be asked: {_cause(error)}") from error
            status = response.status_code
            if status in {200, 206}:
                return response
            said = _said(response)
            challenge = response.headers.get("WWW-Authenticate", "")
            waits = _retry_after(response.headers.get("Retry-After"))
            response.close()
            if status == 401 and challenged < 3 and self._auth.answer(challenge, sent):
                challenged += 1
                continue
            if status in _PASSING and attempt < self._limits.attempts:
                if waits is not None and waits > self._limits.longest_wait:
                    raise PullFailed(
                        f"registry {self.name} asks to wait {waits:.0f} s before {what} can be pulled ({status}{said})"
                    )
                self.backoff(attempt, f"answered {status}{said}", waits)
                attempt += 1
                continue
            raise self._refusal(status, said, what)

    def _refusal(self, status: int, said: str, what: str) -> PullFailed:
        # Registries deny to strangers that a private repository exists, and limit their rate more: both may change
        # with a credential.
        if status in {401, 403}:
            return Refused(
                f"registry {self.name} does not let us read {what} ({status}{said}): "
                "log in with `shifterimg login`, or check the name"
            )
        if not self.repository:
            return PullFailed(f"registry {self.name} answered {status}{said} to a login")
        if status == 404:
            return Refused(f"registry {self.name} has no {what} (404{said}): check the name and the tag")
        if status == 429:
            return Refused(f"registry {self.name} limits its rate (429{said}): try again later, or log in")
        return PullFailed(f"registry {self.name} answered {status}{said} when asked for {what}")

    def _follow(self, address: str, headers: Mapping[str, str]) -> requests.Response:
        """GET with redirects; the Authorization header stays with the host that it was made for."""
        origin = urlsplit(address)
        sent = dict(headers)
        for _ in range(6):
            response = self._session.get(
                address,
                headers=sent,
                stream=True,
                allow_redirects=False,
                timeout=self._limits.timeout,
                verify=self._verify,
                proxies=self._proxies,
            )
            if response.status_code not in _REDIRECTS or "Location" not in response.headers:
                return response
            target = urljoin(address, response.headers["Location"])
            response.close()
            parts = urlsplit(target)
            if parts.scheme not in {"http", "https"} or (origin.scheme == "https" and parts.scheme == "http"):
                raise PullFailed(f"registry {self.name} redirects to {parts.scheme}://{parts.hostname}: refused")
            if (parts.scheme, parts.netloc) != (origin.scheme, origin.netloc):
                sent.pop("Authorization", None)
            address = target
        raise PullFailed(f"registry {self.name} redirects in a circle")

    def _fetch_token(self, url: str, query: Mapping[str, str], headers: Mapping[str, str]) -> tuple[int, bytes]:
        for attempt in range(1, self._limits.attempts + 1):
            try:
                with self._session.get(
                    url,
                    params=query,
                    headers=headers,
                    stream=True,
                    allow_redirects=False,
                    timeout=self._limits.timeout,
                    verify=self._verify,
                    proxies=self._proxies,
                ) as response:
                    status, waits = response.status_code, _retry_after(response.headers.get("Retry-After"))
                    content = self._whole(response, f"the answer of the token service of registry {self.name}")
            except (requests.RequestException, BrokenTransfer) as error:
                if attempt == self._limits.attempts:
                    raise PullFailed(f"the token service of registry {self.name} fails: {_cause(error)}") from error
                self.backoff(attempt, "'s token service cannot be reached")
                continue
            if status in _PASSING and attempt < self._limits.attempts:
                self.backoff(attempt, f"'s token service answered {status}", waits)
                continue
            return status, content
        raise AssertionError("the last attempt returns or raises")

    def backoff(self, attempt: int, why: str, asked: float | None = None) -> None:
        """Waits before the next try, longer each time, or as long as the registry asked; says so meanwhile."""
        seconds = self._limits.backoff * 2 ** (attempt - 1) * random.uniform(0.8, 1.2)  # noqa: S311  # spreads load
        if asked is not None:
            seconds = min(max(asked, 0.0), self._limits.longest_wait)
        self._note(f"registry {self.name} {why}; next try in {seconds:.0f} s")
        self._pause(seconds)


class BrokenTransfer(Exception):
    """The connection ended before the blob did."""


def _retry_after(value: str | None) -> float | None:
    """Seconds that a Retry-After header asks for, given as a number or a date (RFC 9110, 10.2.3); None when it says
    nothing.
    """
    if not value:
        return None
    if value.strip().isdigit():
        return float(value.strip())
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, OverflowError):
        return None


def _range_start(value: str) -> int:
    first = value.strip().removeprefix("bytes").strip().partition("-")[0]
    return int(first) if first.isdigit() else -1


def _said(response: requests.Response) -> str:
    """What the registry gives as its reason, shortened and made printable: ", MANIFEST_UNKNOWN: manifest unknown"."""
    try:
        content = response.raw.read(4096, decode_content=True)
        first = json.loads(content)["errors"][0]
        text = ": ".join(str(first[key]) for key in ("code", "message") if first.get(key))
    except (*_BROKEN, OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return ""
    text = " ".join("".join(sign if sign.isprintable() else " " for sign in text[:200]).split())
    return f", {text}" if text else ""


def _cause(error: BaseException) -> str:
    """The innermost reason of a failed request, without addresses that may hold signatures or passwords."""
    seen: BaseException = error
    while True:
        inner = getattr(seen, "reason", None) or seen.__cause__ or (seen.args[0] if seen.args else None)
        if not isinstance(inner, BaseException) or inner is seen:
            break
        seen = inner
    if isinstance(seen, OSError) and seen.strerror:
        return seen.strerror
    if isinstance(seen, requests.Timeout | urllib3.exceptions.TimeoutError | TimeoutError):
        return "no answer in time"
    text = str(seen)
    return text.rpartition(": ")[2][:200] if text else type(seen).__name__
