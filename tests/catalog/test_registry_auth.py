"""Who the registry gets to know: tokens, passwords, mirrors, redirects; and that no secret goes where it does not belong."""

from __future__ import annotations

import base64
import json
import random
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

from catalog.conversion_options import ConversionOptions
from catalog.credential import Credential
from catalog.failure import PullFailed
from catalog.limits import Limits
from catalog.registry_auth import parse_challenge
from tests.catalog.lying_registry import Answer, LyingRegistry, Request, error, lying
from tests.catalog.registry_fixture import Puller, build, file, gz, tar
from tests.requires import requires

pytestmark = requires("tar2sqfs")

IMAGE = build(gz(tar(file("f", random.Random(1).randbytes(300_000)))))
QUICK = ConversionOptions(limits=Limits(attempts=3, backoff=0.001, timeout=2.0))
ALICE = Credential("alice", "pa:ss:word")


@pytest.fixture
def registry() -> Iterator[LyingRegistry]:
    with lying(IMAGE) as registry:
        yield registry


class TokenService:
    """Gives tokens for bearer challenges: to everybody, or to alice only; they are good for some requests."""

    def __init__(self, registry: LyingRegistry, *, private: bool, uses: int = 1000) -> None:
        self.registry, self.private, self.uses = registry, private, uses
        self.tokens: dict[str, int] = {}
        self.asked: list[dict[str, list[str]]] = []

    def __call__(self, request: Request) -> Answer | None:
        sent = request.headers.get("authorization", "")
        if request.path.startswith("/token"):
            self.asked.append(parse_qs(urlsplit(request.path).query))
            alice = "Basic " + base64.b64encode(b"alice:pa:ss:word").decode()
            if self.private and sent != alice:
                return error(401, "UNAUTHORIZED", "who are you")
            token = f"t{len(self.tokens)}"
            self.tokens[token] = self.uses
            return Answer(body=json.dumps({"token": token, "expires_in": 300}).encode())
        token = sent.removeprefix("Bearer ")
        if self.tokens.get(token, 0) > 0:
            self.tokens[token] -= 1
            return None
        challenge = f'Bearer realm="{self.registry.url}/token",service="reg",scope="repository:a/b:pull"'
        return error(401, "UNAUTHORIZED", "authentication required", WWW_Authenticate=challenge)


def test_an_anonymous_token_is_fetched_once(tmp_path: Path, registry: LyingRegistry) -> None:
    service = TokenService(registry, private=False)
    registry.hook = service
    assert Puller(tmp_path, registry.url, QUICK).pull("a/b:1").anonymous
    assert service.asked == [{"scope": ["repository:a/b:pull"], "service": ["reg"]}]


def test_a_token_that_expires_in_mid_pull_is_renewed(tmp_path: Path, registry: LyingRegistry) -> None:
    service = TokenService(registry, private=False, uses=1)
    registry.hook = service
    Puller(tmp_path, registry.url, QUICK).pull("a/b:1")
    assert len(service.tokens) == 3  # manifest, configuration, layer


def test_a_private_image_is_pulled_with_the_credential_and_is_not_anonymous(
    tmp_path: Path, registry: LyingRegistry
) -> None:
    registry.hook = TokenService(registry, private=True)
    assert not Puller(tmp_path, registry.url, QUICK).pull("a/b:1", credential=ALICE).anonymous


def test_a_public_image_pulled_by_somebody_known_is_still_anonymous(tmp_path: Path, registry: LyingRegistry) -> None:
    registry.hook = TokenService(registry, private=False)
    assert Puller(tmp_path, registry.url, QUICK).pull("a/b:1", credential=ALICE).anonymous
    assert not any("Basic" in request.headers.get("authorization", "") for request in registry.requests)


def test_a_wrong_password_is_said_and_not_repeated(tmp_path: Path, registry: LyingRegistry) -> None:
    registry.hook = TokenService(registry, private=True)
    with pytest.raises(PullFailed) as caught:
        Puller(tmp_path, registry.url, QUICK).pull("a/b:1", credential=Credential("alice", "secret-and-wrong"))
    assert str(caught.value) == "registry testing does not accept the credential of alice for a/b"
    assert "secret-and-wrong" not in repr(caught.value.__cause__) + repr(caught.value.__context__)


def test_no_credential_for_a_private_image(tmp_path: Path, registry: LyingRegistry) -> None:
    registry.hook = TokenService(registry, private=True)
    with pytest.raises(PullFailed, match="registry testing gives no anonymous access to a/b"):
        Puller(tmp_path, registry.url, QUICK).pull("a/b:1")


def test_basic_authentication(tmp_path: Path, registry: LyingRegistry) -> None:
    def hook(request: Request) -> Answer | None:
        if request.headers.get("authorization") == "Basic " + base64.b64encode(b"alice:pa:ss:word").decode():
            return None
        return error(401, "UNAUTHORIZED", "authentication required", WWW_Authenticate='Basic realm="here"')

    registry.hook = hook
    assert not Puller(tmp_path, registry.url, QUICK).pull("a/b:1", credential=ALICE).anonymous
    with pytest.raises(PullFailed, match="does not let us read a/b:1"):
        Puller(tmp_path / "2", registry.url, QUICK).pull("a/b:1", credential=Credential("alice", "wrong"))
    with pytest.raises(PullFailed, match="does not let us read a/b:1"):
        Puller(tmp_path / "3", registry.url, QUICK).pull("a/b:1")


def test_a_redirect_to_another_host_does_not_take_the_token_along(tmp_path: Path, registry: LyingRegistry) -> None:
    service = TokenService(registry, private=True)
    with lying(IMAGE) as storage:

        def hook(request: Request) -> Answer | None:
            refused = service(request)
            if refused is None and "/blobs/" in request.path:
                return Answer(307, headers={"Location": f"{storage.url}{request.path}?signature=s3cret"})
            return refused

        storage.hook = lambda request: storage.truth(Request(request.path.partition("?")[0], request.headers))
        registry.hook = hook
        Puller(tmp_path, registry.url, QUICK).pull("a/b:1", credential=ALICE)
        assert len(storage.requests) == 2
        assert not any("authorization" in request.headers for request in storage.requests)


def test_a_token_service_that_makes_no_sense(tmp_path: Path, registry: LyingRegistry) -> None:
    for realm, reason in [
        ("file:///etc/passwd", "names no usable token service"),
        ("", "names no usable token service"),
    ]:
        challenge = f'Bearer realm="{realm}"'
        registry.hook = lambda request, it=challenge: error(401, "U", "u", WWW_Authenticate=it)  # type: ignore[misc]
        with pytest.raises(PullFailed, match=reason):
            Puller(tmp_path, registry.url, QUICK).pull("a/b:1")


@pytest.mark.parametrize("body", [b"", b"[]", b"{}", b'{"token": 5}', b'{"token": "a\\nb"}', b"<html>"])
def test_a_token_service_that_sends_no_token(tmp_path: Path, registry: LyingRegistry, body: bytes) -> None:
    service = TokenService(registry, private=False)
    registry.hook = lambda request: Answer(body=body) if request.path.startswith("/token") else service(request)
    with pytest.raises(PullFailed, match="the token service of registry testing sent no token"):
        Puller(tmp_path, registry.url, QUICK).pull("a/b:1")


def test_netrc_of_the_gateways_user_is_not_used(
    tmp_path: Path, registry: LyingRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login root password hunter2\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    Puller(tmp_path, registry.url, QUICK).pull("a/b:1")
    assert not any("authorization" in request.headers for request in registry.requests)


def test_layers_come_from_the_mirror_and_the_manifest_from_the_registry(
    tmp_path: Path, registry: LyingRegistry
) -> None:
    with lying(IMAGE) as mirror:
        Puller(tmp_path, registry.url, QUICK, location={"mirrors": (mirror.url,)}).pull("a/b:1")
        assert len(mirror.blob_requests()) == 1
        assert registry.blob_requests() == []
        assert mirror.paths("manifests") == []


@pytest.mark.parametrize("answer", [Answer(404), Answer(500), Answer(body=b"something else")])
def test_a_mirror_that_fails_is_passed_over(tmp_path: Path, registry: LyingRegistry, answer: Answer) -> None:
    with lying(IMAGE) as mirror:
        mirror.hook = lambda request: answer
        puller = Puller(tmp_path, registry.url, QUICK, location={"mirrors": (mirror.url,)})
        puller.pull("a/b:1")
        assert len(registry.blob_requests()) == 1
        assert any("the next place is asked" in note for note in puller.watcher.notes)


def test_challenges_are_read_as_registries_write_them() -> None:
    assert parse_challenge('Bearer realm="https://a/t",service="s",scope="repository:x:pull,push"') == (
        "bearer",
        {"realm": "https://a/t", "service": "s", "scope": "repository:x:pull,push"},
    )
    assert parse_challenge('Basic realm="x", Bearer realm="https://a"')[0] == "bearer"
    assert parse_challenge("bEaReR realm=https://a") == ("bearer", {"realm": "https://a"})
    assert parse_challenge("Basic") == ("basic", {})
    assert parse_challenge("") == ("", {})
    assert parse_challenge("Negotiate abc") == ("negotiate", {})


def test_a_token_of_megabytes_is_not_read_to_its_end(tmp_path: Path, registry: LyingRegistry) -> None:
    service = TokenService(registry, private=False)

    def hook(request: Request) -> Answer | None:
        if request.path.startswith("/token"):
            return Answer(body=b'{"token": "' + b"t" * (5 << 20) + b'"}')
        return service(request)

    registry.hook = hook
    with pytest.raises(PullFailed, match="the token service of registry testing is larger than 4194304 bytes"):
        Puller(tmp_path, registry.url, QUICK).pull("a/b:1")
