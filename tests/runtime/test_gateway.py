import ssl
import subprocess
from pathlib import Path

import pytest

from runtime.gateway import Broken, Gateway, NotAllowed, NotFound, Refused, Unreachable
from runtime.http1 import Address, parse_url
from tests.requires import requires, requires_root
from tests.runtime.gateway_double import Answer, Asked, Raw, answering, dripping, missing, nobody, record, silent
from tests.runtime.munge_daemon import MungeDaemon

pytestmark = [requires("munged", "unmunge"), requires_root]


def ready(_: Asked) -> Answer:
    return 200, record()


def test_a_look_up_asks_the_route_of_old_clients_and_returns_the_record(munged: MungeDaemon) -> None:
    with answering(ready) as gateway:
        found = Gateway([gateway.url], "mycluster", 5, munged.socket).lookup("docker", "team/tool:1@sha256:0a")
    assert found["id"] == "ab" * 32
    assert gateway.asked[0].path == "/api/lookup/mycluster/docker/team%2Ftool%3A1%40sha256%3A0a/"
    assert gateway.asked[0].headers["accept"] == "*/*"


def test_every_request_carries_a_credential_of_its_own(munged: MungeDaemon) -> None:
    with answering(ready) as gateway:
        client = Gateway([gateway.url], "mycluster", 5, munged.socket)
        client.lookup("docker", "a:1")
        client.lookup("docker", "a:1")
    first, second = (asked.headers["authentication"] for asked in gateway.asked)
    assert first != second
    assert munged.open(first).payload == b""


def test_a_pull_sends_the_lists_as_comma_texts_and_the_registrys_credentials_inside_the_credential(
    munged: MungeDaemon,
) -> None:
    with answering(lambda _: (200, record(status="INIT"))) as gateway:
        client = Gateway([gateway.url], "mycluster", 5, munged.socket)
        client.pull("docker", "a:1", uids=[1, 2], gids=[3], credentials={"default": "MUNGE:abc:"})
    assert gateway.asked[0].body == {"allowed_uids": "1,2", "allowed_gids": "3"}
    assert munged.open(gateway.asked[0].headers["authentication"]).payload == (
        b'{"authorized_locations": {"default": "MUNGE:abc:"}}'
    )


def test_a_public_pull_has_an_empty_body_as_old_clients_send_it(munged: MungeDaemon) -> None:
    with answering(lambda _: (200, record(status="INIT"))) as gateway:
        Gateway([gateway.url], "mycluster", 5, munged.socket).pull("docker", "a:1")
    assert (gateway.asked[0].method, gateway.asked[0].body) == ("POST", None)
    assert gateway.asked[0].headers["content-length"] == "0"


def test_the_next_url_is_asked_when_one_refuses_connections_or_keeps_silent_or_answers_500(munged: MungeDaemon) -> None:
    html = Raw(b"HTTP/1.1 500 Internal Server Error\r\nContent-Type: text/html\r\nContent-Length: 6\r\n\r\n<html>")
    with nobody() as closed, silent() as mute, answering(lambda _: html) as broken, answering(ready) as good:
        for _ in range(5):  # in whatever order
            urls = [closed, mute, broken.url, good.url]
            assert Gateway(urls, "mycluster", 0.1, munged.socket).lookup("docker", "a:1")["id"] == "ab" * 32


def test_the_gateway_that_answered_is_asked_first_from_then_on(munged: MungeDaemon) -> None:
    with nobody() as closed, answering(ready) as good:
        client = Gateway([closed, good.url], "mycluster", 5, munged.socket)
        for _ in range(4):
            client.lookup("docker", "a:1")
        assert client._targets[0][0] == good.url
    assert len(good.asked) == 4


def test_an_image_that_the_first_gateway_lacks_is_looked_for_at_the_next(munged: MungeDaemon) -> None:
    with answering(missing) as first, answering(ready) as second:
        for _ in range(4):
            client = Gateway([first.url, second.url], "mycluster", 5, munged.socket)
            assert client.lookup("docker", "a:1")["id"] == "ab" * 32


def test_when_no_gateway_answers_the_error_has_each_ones_reason(munged: MungeDaemon) -> None:
    with nobody() as closed, silent() as mute:
        with pytest.raises(Unreachable) as caught:
            Gateway([closed, mute, "http://no-such-host.invalid:5000"], "mycluster", 0.1, munged.socket).images()
    reasons = sorted(caught.value.reasons)
    assert f"{closed}: connection refused" in reasons
    assert f"{mute}: no answer within 0.1 s" in reasons
    assert any("host name 'no-such-host.invalid' not found" in reason for reason in reasons)


@pytest.mark.parametrize(
    ("status", "error", "text"),
    [(401, NotAllowed, "munge: replayed credential"), (403, NotAllowed, "not yours"), (400, Refused, "bad list '1x'")],
)
def test_a_refusal_is_final_and_carries_the_gateways_reason(
    munged: MungeDaemon, status: int, error: type[Exception], text: str
) -> None:
    refusal = (status, {"status": status, "error": text, "message": "Bad: http://x"})
    with answering(lambda _: refusal) as first, answering(lambda _: refusal) as second:
        with pytest.raises(error, match=text):
            Gateway([first.url, second.url], "mycluster", 5, munged.socket).remove("docker", "a:1")
        assert len(first.asked) + len(second.asked) == 1


def test_a_404_is_an_image_that_is_not_there_and_says_so_with_the_servers_words(munged: MungeDaemon) -> None:
    with answering(missing) as gateway, pytest.raises(NotFound, match="image not found"):
        Gateway([gateway.url], "mycluster", 5, munged.socket).lookup("docker", "a:1")


@pytest.mark.parametrize(
    ("raw", "error", "reason"),
    [
        (b"", Unreachable, "the connection was closed before the answer was complete"),
        (b"SSH-2.0-OpenSSH_9\r\n", Unreachable, "the answer is not HTTP: it begins 'SSH-2.0-OpenSSH_9'"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{", Unreachable, "cut off after 1 of 99 bytes"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n{", Unreachable, "Content-Length '-1'"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 999999999999\r\n\r\n{", Unreachable, "larger than 64 MiB"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", Unreachable, "chunk size 'zz'"),
        (b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 70000, Unreachable, ""),
        (b"HTTP/1.1 200 OK\r\n" + b"a" * 200000, Unreachable, "a header line without end"),
        (b'HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\n{"id": "', Broken, "not a JSON object; is this URL an image ga"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n[]", Broken, "not a JSON object"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}", Broken, "has no id"),
        (b"HTTP/1.1 500 Oh\r\nContent-Length: 6\r\n\r\n<html>", Broken, "HTTP status 500 without a reason"),
        (b'HTTP/1.1 503 Oh\r\nContent-Length: 23\r\n\r\n{"error": "disk\\nfull"}', Broken, "disk full"),
    ],
)
def test_an_answer_that_is_none_is_an_error_with_its_reason(
    munged: MungeDaemon, raw: bytes, error: type[Exception], reason: str
) -> None:
    with answering(lambda _: Raw(raw)) as gateway, pytest.raises(error) as caught:
        Gateway([gateway.url], "mycluster", 5, munged.socket).lookup("docker", "a:1")
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "raw",
    [
        b'HTTP/1.1 200 OK\r\nContent-Length: 12\r\n\r\n{"id": "ab"}',
        b'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{"id"\r\n7;x=y\r\n: "ab"}\r\n0\r\nTrailer: x\r\n\r\n',
        b'HTTP/1.0 200 OK\r\n\r\n{"id": "ab"}',
        b'HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length:12\r\n\r\n{"id": "ab"}',
        b'HTTP/1.1 200 OK\nContent-Length: 12\n\n{"id": "ab"}and more than was announced',
    ],
)
def test_an_answers_end_is_found_by_length_by_chunks_or_by_the_connections_end(munged: MungeDaemon, raw: bytes) -> None:
    with answering(lambda _: Raw(raw)) as gateway:
        assert Gateway([gateway.url], "mycluster", 5, munged.socket).lookup("docker", "a:1")["id"] == "ab"


def test_a_public_image_is_found_without_munge_and_a_refusal_then_says_that_munge_is_missing(tmp_path: Path) -> None:
    with answering(ready) as gateway:
        client = Gateway([gateway.url], "mycluster", 5, tmp_path / "absent")
        assert client.lookup("docker", "a:1")["id"] == "ab" * 32
    assert "authentication" not in gateway.asked[0].headers
    with answering(missing) as gateway, pytest.raises(NotFound, match=r"asked without a credential: munge: .* munged"):
        Gateway([gateway.url], "mycluster", 5, tmp_path / "absent").lookup("docker", "a:1")


@pytest.mark.parametrize("url", ["ftp://x", "http://", "http://x:port", "http://x:70000", "http://a b", "http://[::1"])
def test_a_url_that_is_none_is_refused_by_name(url: str) -> None:
    with pytest.raises(ValueError, match=r"URL|port|bracket"):
        Gateway([url], "mycluster")


def test_no_gateway_at_all_is_an_error_that_names_the_key() -> None:
    with pytest.raises(ValueError, match=r"set imageGateway in udiRoot.conf"):
        Gateway([], "mycluster")


def test_a_gateway_behind_a_path_and_at_an_ipv6_address_is_reached(munged: MungeDaemon) -> None:
    with answering(ready) as gateway:
        Gateway([gateway.url + "/shifter/"], "mycluster", 5, munged.socket).lookup("docker", "a:1")
    assert gateway.asked[0].path.startswith("/shifter/api/lookup/")
    assert parse_url("https://[::1]:5555") == Address("https", "::1", 5555, "")
    assert parse_url("gateway") == Address("http", "gateway", 80, "")


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """A certificate for 127.0.0.1 that nobody trusts yet, and its key, in one file."""
    file = tmp_path / "gateway.pem"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-batch"]
    names = ["-subj", "/CN=gateway", "-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run([*command, *names, "-keyout", file, "-out", tmp_path / "cert"], check=True, capture_output=True)
    file.write_text(file.read_text() + (tmp_path / "cert").read_text())
    return file


@requires("openssl")
def test_a_gateway_behind_tls_is_asked_when_its_certificate_is_trusted(
    munged: MungeDaemon, certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate)
    with answering(ready, tls) as gateway:
        client = Gateway([gateway.url], "mycluster", 5, munged.socket)
        with pytest.raises(Unreachable, match=r"its TLS certificate is not trusted \(self-signed certificate\)"):
            client.lookup("docker", "a:1")
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        assert client.lookup("docker", "a:1")["id"] == "ab" * 32
        client.pull("docker", "a:1", uids=[1])
    assert gateway.asked[-1].body == {"allowed_uids": "1"}
    assert munged.open(gateway.asked[-1].headers["authentication"]).payload == b""


@requires("openssl")
@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{", "the answer was cut off after 1 bytes"),
        (b"SSH-2.0\r\n", "the answer is not HTTP"),
    ],
)
def test_an_answer_that_is_none_is_an_error_behind_tls_too(
    munged: MungeDaemon, certificate: Path, monkeypatch: pytest.MonkeyPatch, raw: bytes, reason: str
) -> None:
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    with answering(lambda _: Raw(raw), tls) as gateway, pytest.raises(Unreachable, match=reason):
        Gateway([gateway.url], "mycluster", 5, munged.socket).lookup("docker", "a:1")


def test_a_server_that_sends_byte_after_byte_is_given_up_at_the_deadline(munged: MungeDaemon) -> None:
    with dripping() as url, pytest.raises(Unreachable, match=r"no answer within 0\.3 s"):
        Gateway([url], "mycluster", 0.3, munged.socket).lookup("docker", "a:1")
