"""One HTTP/1.1 request and its answer, at the price of a socket.

A container start asks the gateway one question, and the standard library's ``http.client`` costs more to import
(20 ms) than the question takes. So plain ``http://`` is spoken here: one request a connection, an answer that ends by
Content-Length, by chunks or by the connection's end, all under one deadline. ``https://`` is handed to ``http.client``
and ``ssl``, imported only then. No redirects, no proxies, no cookies: a gateway uses none, and the caller may be a
program with privileges that must not follow its environment elsewhere.
"""

from __future__ import annotations

# The C half of `socket`, which is all that one connection needs: the Python half imports enum and selectors (3 ms).
import _socket as socket
from time import monotonic

from runtime.record import Record

TYPE_CHECKING = False  # see runtime/munge.py
if TYPE_CHECKING:
    from collections.abc import Mapping

BODY_LIMIT = 64 << 20  # bytes; a list of 10,000 images is about 8 MB
_HEAD_LIMIT = 64 << 10
_UNRESERVED = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~")


class Address(Record):
    """A parsed base URL. ``scheme`` is "http" or "https"; ``prefix`` is the path without its last slash."""

    scheme: str
    host: str
    port: int
    prefix: str


class Answer(Record):
    """A whole answer; the names of ``headers`` are in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes


class ExchangeFailed(Exception):
    """There is no complete answer: not connected, cut off, too late or not HTTP. The text is the reason."""


def parse_url(url: str) -> Address:
    """The parts of a base URL such as ``http://gateway:5000``; no scheme means http. Raises ValueError."""
    scheme, separator, rest = url.partition("://")
    if not separator:
        scheme, rest = "http", url
    scheme = scheme.lower()
    if scheme not in ("http", "https"):
        raise ValueError(f"{url!r}: the scheme of a URL here is http or https")
    authority, _, path = rest.partition("/")
    host, port = authority, ""
    if authority.startswith("["):  # [::1]:5000
        host, bracket, tail = authority[1:].partition("]")
        port = tail.removeprefix(":")
        if not bracket or (tail and not tail.startswith(":")):
            raise ValueError(f"{url!r}: the host's bracket is not closed")
    elif ":" in authority:
        host, _, port = authority.rpartition(":")
    if not host or any(not character.isprintable() or character in " @\\" for character in host):
        raise ValueError(f"{url!r}: there is no host name in this URL")
    if port and not (port.isascii() and port.isdigit() and 0 < int(port) < 65536):
        raise ValueError(f"{url!r}: {port!r} is no port number")
    number = int(port) if port else (443 if scheme == "https" else 80)
    return Address(scheme, host, number, "/" + path.strip("/") if path.strip("/") else "")


def quote(text: str) -> str:
    """``text`` as one segment of a path: everything but letters, digits and ``-._~`` is percent-encoded."""
    return "".join(chr(byte) if byte in _UNRESERVED else f"%{byte:02X}" for byte in text.encode())


def exchange(
    address: Address, method: str, path: str, headers: Mapping[str, str], body: bytes | None, timeout: float
) -> Answer:
    """Send one request and return the whole answer within ``timeout`` seconds. Raises ExchangeFailed.

    Behind TLS, ``timeout`` bounds each wait instead of the whole.
    """
    deadline = monotonic() + timeout
    try:
        if address.scheme == "https":
            return _exchange_tls(address, method, path, headers, body, timeout)
        connection = _connect(address, deadline)
        try:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection.sendall(_request(address, method, path, headers, body))
            return _Reader(connection, deadline).answer()
        finally:
            connection.close()
    except TimeoutError:
        raise ExchangeFailed(f"no answer within {timeout:g} s") from None
    except socket.gaierror as error:
        raise ExchangeFailed(f"host name {address.host!r} not found ({error.strerror})") from None
    except OSError as error:
        raise ExchangeFailed((error.strerror or str(error)).lower()) from None


def _connect(address: Address, deadline: float) -> socket.socket:
    """A connection to the first of the host's addresses that takes one."""
    # as bytes: for text, Python imports its tables for international names (1.5 ms)
    host = address.host.encode() if address.host.isascii() else address.host
    refused = OSError("the host name has no address")
    for family, kind, protocol, _, place in socket.getaddrinfo(host, address.port, 0, socket.SOCK_STREAM):
        connection = socket.socket(family, kind | socket.SOCK_CLOEXEC, protocol)
        try:
            connection.settimeout(max(deadline - monotonic(), 0.001))
            connection.connect(place)
            return connection
        except OSError as error:
            connection.close()
            refused = error
    raise refused


def _request(address: Address, method: str, path: str, headers: Mapping[str, str], body: bytes | None) -> bytes:
    host = f"[{address.host}]" if ":" in address.host else address.host
    lines = [f"{method} {address.prefix}{path} HTTP/1.1", f"Host: {host}:{address.port}", "Connection: close"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    if body is not None:
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + (body or b"")


class _Reader:
    """Takes an answer off a connection, each wait bounded by what is left of the deadline."""

    def __init__(self, connection: socket.socket, deadline: float) -> None:
        self._connection = connection
        self._deadline = deadline
        self._buffer = b""

    def _more(self) -> bool:
        left = self._deadline - monotonic()
        if left <= 0:
            raise TimeoutError
        self._connection.settimeout(left)
        data = self._connection.recv(65536)
        self._buffer += data
        return bool(data)

    def _line(self) -> str:
        while (end := self._buffer.find(b"\n")) < 0:
            if len(self._buffer) > _HEAD_LIMIT:
                raise ExchangeFailed("the answer is not HTTP: a header line without end")
            if not self._more():
                raise ExchangeFailed("the connection was closed before the answer was complete")
        line, self._buffer = self._buffer[:end], self._buffer[end + 1 :]
        return line.rstrip(b"\r").decode("latin-1")

    def _take(self, size: int) -> bytes:
        if size > BODY_LIMIT:
            raise ExchangeFailed(f"the answer is larger than {BODY_LIMIT >> 20} MiB")
        parts, have = [self._buffer], len(self._buffer)
        while have < size:
            self._buffer = b""
            if not self._more():
                raise ExchangeFailed(f"the answer was cut off after {have} of {size} bytes")
            parts.append(self._buffer)
            have += len(self._buffer)
        whole = b"".join(parts)
        self._buffer = whole[size:]
        return whole[:size]

    def answer(self) -> Answer:
        status = 100
        headers: dict[str, str] = {}
        while 100 <= status < 200:  # "100 Continue" and its like announce the answer, they are not it
            status, headers = self._head()
        return Answer(status, headers, self._body(status, headers))

    def _head(self) -> tuple[int, dict[str, str]]:
        first = self._line()
        version, _, rest = first.partition(" ")
        number = rest[:3]
        if not version.startswith("HTTP/1.") or not (number.isascii() and number.isdigit() and len(number) == 3):
            raise ExchangeFailed(f"the answer is not HTTP: it begins {first[:40]!r}")
        headers: dict[str, str] = {}
        while line := self._line():
            name, _, value = line.partition(":")
            headers[name.strip().lower()] = value.strip()
            if len(headers) > 200:
                raise ExchangeFailed("the answer has more than 200 header lines")
        return int(number), headers

    def _body(self, status: int, headers: dict[str, str]) -> bytes:
        if status in (204, 304):
            return b""
        if "chunked" in headers.get("transfer-encoding", "").lower():
            return self._chunks()
        if "content-length" in headers:
            length = headers["content-length"]
            if not (length.isascii() and length.isdigit()):
                raise ExchangeFailed(f"the answer has the Content-Length {length[:40]!r}")
            return self._take(int(length))
        parts, have = [self._buffer], len(self._buffer)
        self._buffer = b""
        while self._more():
            parts.append(self._buffer)
            have += len(self._buffer)
            self._buffer = b""
            if have > BODY_LIMIT:
                raise ExchangeFailed(f"the answer is larger than {BODY_LIMIT >> 20} MiB")
        return b"".join(parts)

    def _chunks(self) -> bytes:
        parts: list[bytes] = []
        have = 0
        while True:
            line = self._line().partition(";")[0].strip()
            try:
                size = int(line, 16)
            except ValueError:
                raise ExchangeFailed(f"the answer has the chunk size {line[:40]!r}") from None
            have += size
            if size < 0 or have > BODY_LIMIT:
                raise ExchangeFailed(f"the answer is larger than {BODY_LIMIT >> 20} MiB")
            if size == 0:
                while self._line():
                    pass
                return b"".join(parts)
            parts.append(self._take(size))
            self._line()


def _exchange_tls(
    address: Address, method: str, path: str, headers: Mapping[str, str], body: bytes | None, timeout: float
) -> Answer:
    import http.client
    import ssl

    connection = http.client.HTTPSConnection(
        address.host, address.port, timeout=timeout, context=ssl.create_default_context()
    )
    try:
        connection.request(method, address.prefix + path, body=body, headers=dict(headers))
        response = connection.getresponse()
        announced = response.length  # None for chunks; only read() without a number notices an early end
        content = b""
        if announced is None or announced <= BODY_LIMIT:
            content = response.read(BODY_LIMIT + 1) if announced is None else response.read()
        if max(announced or 0, len(content)) > BODY_LIMIT:
            raise ExchangeFailed(f"the answer is larger than {BODY_LIMIT >> 20} MiB")
        names = {name.lower(): value for name, value in response.getheaders()}
        return Answer(response.status, names, content)
    except ssl.SSLCertVerificationError as error:
        raise ExchangeFailed(f"its TLS certificate is not trusted ({error.verify_message})") from None
    except http.client.IncompleteRead as error:
        raise ExchangeFailed(f"the answer was cut off after {len(error.partial)} bytes") from None
    except http.client.HTTPException as error:
        raise ExchangeFailed(f"the answer is not HTTP ({error})") from None
    finally:
        connection.close()
