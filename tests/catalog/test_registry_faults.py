"""Registries that fail: each ends in one sentence that says what happened, and leaves nothing behind."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from catalog.conversion_options import ConversionOptions
from catalog.failure import PullAborted, PullFailed
from catalog.limits import Limits
from tests.catalog.lying_registry import Answer, LyingRegistry, Request, error, lying
from tests.catalog.registry_fixture import Puller, build, directory, file, gz, sha256, tar
from tests.requires import requires

pytestmark = requires("tar2sqfs")

NOISE = random.Random(1).randbytes(300_000)
LAYER = gz(tar(directory("d"), file("d/f", NOISE)))
QUICK = ConversionOptions(limits=Limits(attempts=3, backoff=0.001, timeout=2.0, longest_wait=1.0))


@pytest.fixture
def registry() -> Iterator[LyingRegistry]:
    with lying(build(LAYER)) as registry:
        yield registry


@pytest.fixture
def puller(tmp_path: Path, registry: LyingRegistry) -> Puller:
    return Puller(tmp_path, registry.url, QUICK)


def failing(puller: Puller, text: str = "a/b:1") -> str:
    """The reason why a pull fails; nothing may be left of it."""
    with pytest.raises(PullFailed) as caught:
        puller.pull(text)
    assert puller.litter() == []
    assert list(puller.images.names()) == []
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_registry_that_is_down(tmp_path: Path) -> None:
    with lying(build()) as registry:
        url = registry.url
    assert failing(Puller(tmp_path, url, QUICK)) == "registry testing cannot be reached: Connection refused"


def test_a_registry_whose_name_does_not_exist(tmp_path: Path) -> None:
    reason = failing(Puller(tmp_path, "http://registry.invalid", QUICK))
    assert reason.startswith("registry testing cannot be reached: ")
    assert "0x" not in reason


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (
            error(404, "MANIFEST_UNKNOWN", "manifest unknown"),
            "registry testing has no a/b:1 (404, MANIFEST_UNKNOWN: manifest unknown): check the name and the tag",
        ),
        (
            error(401, "UNAUTHORIZED", "authentication required"),
            "registry testing does not let us read a/b:1 (401, UNAUTHORIZED: authentication required): "
            "log in with `shifterimg login`, or check the name",
        ),
        (
            error(403, "DENIED", "requested access is denied"),
            "registry testing does not let us read a/b:1 (403, DENIED: requested access is denied): "
            "log in with `shifterimg login`, or check the name",
        ),
        (
            error(429, "TOOMANYREQUESTS", "You have reached your pull rate limit."),
            "registry testing limits its rate (429, TOOMANYREQUESTS: You have reached your pull rate limit.): "
            "try again later, or log in",
        ),
        (Answer(500, b"<html>oops</html>"), "registry testing answered 500 when asked for a/b:1"),
        (Answer(502), "registry testing answered 502 when asked for a/b:1"),
        (Answer(418, b"{}"), "registry testing answered 418 when asked for a/b:1"),
    ],
)
def test_an_answer_that_is_a_refusal_is_passed_on(
    puller: Puller, registry: LyingRegistry, answer: Answer, reason: str
) -> None:
    registry.hook = lambda request: answer
    assert failing(puller) == reason


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
def test_what_may_pass_is_tried_again_and_said(puller: Puller, registry: LyingRegistry, status: int) -> None:
    failures = iter([Answer(status), Answer(status)])
    registry.hook = lambda request: next(failures, None)
    puller.pull("a/b:1")
    assert len(puller.watcher.notes) == 2
    assert f"answered {status}" in puller.watcher.notes[0]


def test_retry_after_is_honoured_and_shown(
    puller: Puller, registry: LyingRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    from catalog import pull as module

    waited: list[float] = []
    monkeypatch.setattr(module._Pipeline, "_pause", lambda self, seconds: waited.append(seconds))
    answers = iter([error(429, "TOOMANYREQUESTS", "slow down", Retry_After="1")])
    registry.hook = lambda request: next(answers, None)
    puller.pull("a/b:1")
    assert waited == [1.0]
    assert puller.watcher.notes == ["registry testing answered 429, TOOMANYREQUESTS: slow down; next try in 1 s"]


def test_a_wait_that_is_too_long_is_not_waited_but_said(puller: Puller, registry: LyingRegistry) -> None:
    registry.hook = lambda request: error(429, "TOOMANYREQUESTS", "limit", Retry_After="3600")
    assert failing(puller) == (
        "registry testing asks to wait 3600 s before a/b:1 can be pulled (429, TOOMANYREQUESTS: limit)"
    )
    assert len(registry.requests) == 1


def test_a_connection_cut_in_mid_layer_is_taken_up_where_it_broke(puller: Puller, registry: LyingRegistry) -> None:
    def hook(request: Request) -> Answer | None:
        if request in registry.blob_requests() and len(registry.blob_requests()) <= 2:
            answer = registry.truth(request)
            answer.cut = 100_000
            return answer
        return None

    registry.hook = hook
    puller.pull("a/b:1")
    assert [request.headers.get("range") for request in registry.blob_requests()] == [
        None,
        "bytes=100000-",
        "bytes=200000-",
    ]
    assert "broke the connection in the middle of a layer of a/b:1" in puller.watcher.notes[0]


def test_a_registry_without_ranges_is_read_from_the_start_again(puller: Puller, registry: LyingRegistry) -> None:
    registry.ranges = False

    def hook(request: Request) -> Answer | None:
        if request in registry.blob_requests() and len(registry.blob_requests()) == 1:
            answer = registry.truth(request)
            answer.cut = 100_000
            return answer
        return None

    registry.hook = hook
    puller.pull("a/b:1")
    assert len(registry.blob_requests()) == 2


def test_a_connection_that_is_always_cut_at_the_same_byte(puller: Puller, registry: LyingRegistry) -> None:
    def hook(request: Request) -> Answer | None:
        if request not in registry.blob_requests():
            return None
        answer = registry.truth(request)
        answer.cut = 0 if "range" in request.headers else 100_000
        return answer

    registry.hook = hook
    reason = failing(puller)
    assert reason.startswith("registry testing broke the connection in the middle of layer sha256:")
    assert len(registry.blob_requests()) == 3


def test_a_layer_with_other_bytes(puller: Puller, registry: LyingRegistry) -> None:
    registry.hook = lambda request: Answer(body=b"x" * len(LAYER)) if request in registry.blob_requests() else None
    reason = failing(puller)
    assert "sent other bytes for layer sha256:" in reason
    assert puller.layers.find_sha256(sha256(LAYER).removeprefix("sha256:")) is None


@pytest.mark.parametrize("body", [LAYER[:-1], LAYER + b"x"])
def test_a_layer_of_another_size(puller: Puller, registry: LyingRegistry, body: bytes) -> None:
    registry.hook = lambda request: Answer(body=body) if request in registry.blob_requests() else None
    assert "with a wrong size" in failing(puller)
    assert puller.layers.find_sha256(sha256(LAYER).removeprefix("sha256:")) is None


def test_a_layer_that_the_registry_does_not_have(puller: Puller, registry: LyingRegistry) -> None:
    registry.hook = lambda request: Answer(404) if request in registry.blob_requests() else None
    assert failing(puller) == "registry testing has no a/b:1 (404): check the name and the tag"


def test_a_manifest_with_another_digest_than_asked_for(puller: Puller) -> None:
    assert failing(puller, f"a/b@sha256:{'0' * 64}").startswith(
        "registry testing sent another manifest for a/b@sha256:000"
    )


def test_a_configuration_with_other_bytes(puller: Puller, registry: LyingRegistry) -> None:
    registry.hook = lambda request: (
        Answer(body=b"{}") if "/blobs/" in request.path and request not in registry.blob_requests() else None
    )
    assert "sent other bytes for the configuration of a/b:1" in failing(puller)


def test_a_manifest_of_megabytes(puller: Puller, registry: LyingRegistry) -> None:
    registry.hook = lambda request: Answer(body=b'{"a":"' + b"x" * (5 << 20) + b'"}')
    assert failing(puller) == "the manifest of a/b:1 is larger than 4194304 bytes, which is the limit"


def test_a_registry_that_does_not_answer(tmp_path: Path, registry: LyingRegistry) -> None:
    quick = ConversionOptions(limits=Limits(attempts=2, backoff=0.001, timeout=0.1))
    registry.hook = lambda request: Answer(length=10)
    reason = failing(Puller(tmp_path, registry.url, quick))
    assert reason.startswith("registry testing broke the connection 2 times")


@pytest.mark.parametrize("drip", ["head", "body"])
@pytest.mark.parametrize("part", ["/manifests/", "/blobs/"])
def test_a_registry_that_sends_a_byte_now_and_then_is_given_up(
    tmp_path: Path, registry: LyingRegistry, part: str, drip: str
) -> None:
    """No time-out between two bytes strikes here: it is the speed that is too low."""
    quick = ConversionOptions(limits=Limits(attempts=2, backoff=0.001, timeout=0.2, slowest=10_000))

    def hook(request: Request) -> Answer | None:
        return Answer(body=bytes(100_000), drip=drip) if part in request.path else None

    registry.hook = hook
    reason = failing(Puller(tmp_path, registry.url, quick))
    assert reason.endswith(("broke the connection 2 times: no answer in time", "cannot be reached: no answer in time"))
    assert len(registry.paths(part)) == 2


def test_a_connection_that_breaks_after_each_byte_is_given_up(puller: Puller, registry: LyingRegistry) -> None:
    def hook(request: Request) -> Answer | None:
        if request not in registry.blob_requests():
            return None
        answer = registry.truth(request)
        answer.cut = 1
        return answer

    registry.hook = hook
    assert failing(puller).startswith("registry testing broke the connection in the middle of layer sha256:")
    assert len(registry.blob_requests()) == 3


def test_a_download_that_takes_longer_than_the_limit_fails_and_goes_on_with_the_next_pull(
    tmp_path: Path, registry: LyingRegistry
) -> None:
    options = ConversionOptions(limits=Limits(longest=0.3))
    puller = Puller(tmp_path, registry.url, options)

    def hook(request: Request) -> Answer | None:
        if request not in registry.blob_requests():
            return None
        return Answer(body=LAYER, drip="body")

    registry.hook = hook
    with pytest.raises(
        PullFailed, match=r"^the layers of a/b:1 have not come within 0 s, which is the limit: pull again"
    ):
        puller.pull("a/b:1")
    (left,) = puller.litter()
    registry.hook = lambda request: None
    puller.pull("a/b:1")
    assert registry.blob_requests()[-1].headers["range"] != "bytes=0-"
    assert puller.litter() == []
    assert left.startswith("partial-")


def test_nothing_is_asked_for_in_a_compressed_form(puller: Puller, registry: LyingRegistry) -> None:
    """A proxy that compresses what it passes on would give other bytes than the digests are of."""
    puller.pull("a/b:1")
    assert {request.headers["accept-encoding"] for request in registry.requests} == {"identity"}


def test_a_redirect_in_a_circle(puller: Puller, registry: LyingRegistry) -> None:
    registry.hook = lambda request: Answer(307, headers={"Location": request.path})
    assert failing(puller) == "registry testing redirects in a circle"


def test_a_redirect_to_something_else_than_http(puller: Puller, registry: LyingRegistry) -> None:
    registry.hook = lambda request: Answer(307, headers={"Location": "file:///etc/shadow"})
    assert failing(puller) == "registry testing redirects to file://None: refused"


def test_a_pull_that_is_to_end_ends(puller: Puller, registry: LyingRegistry, monkeypatch: pytest.MonkeyPatch) -> None:
    def lost() -> None:
        if registry.blob_requests():
            raise PullAborted("the lease went to another worker")

    monkeypatch.setattr(puller.watcher, "check", lost)
    with pytest.raises(PullAborted, match="lease"):
        puller.pull("a/b:1")
    monkeypatch.undo()
    puller.pull("a/b:1")
    assert puller.litter() == []


def test_a_download_goes_on_where_a_killed_gateway_left_it(puller: Puller, registry: LyingRegistry) -> None:
    digest = sha256(LAYER).removeprefix("sha256:")
    (puller.layers.root / "tmp" / f"partial-{digest}").write_bytes(LAYER[:123_456])
    puller.pull("a/b:1")
    assert [request.headers.get("range") for request in registry.blob_requests()] == ["bytes=123456-"]
    assert puller.litter() == []


def test_a_rotten_rest_of_a_killed_gateway_is_thrown_away(puller: Puller, registry: LyingRegistry) -> None:
    digest = sha256(LAYER).removeprefix("sha256:")
    (puller.layers.root / "tmp" / f"partial-{digest}").write_bytes(b"x" * 1000)
    puller.pull("a/b:1")
    assert [request.headers.get("range") for request in registry.blob_requests()] == ["bytes=1000-", None]
    assert puller.litter() == []


def test_one_failing_layer_ends_the_others(tmp_path: Path) -> None:
    layers = [gz(tar(file(f"f{number}", os.urandom(1000)))) for number in range(6)]
    with lying(build(*layers)) as registry:
        registry.hook = lambda request: Answer(404) if request in registry.blob_requests(2) else None
        assert "has no a/b:1" in failing(Puller(tmp_path, registry.url, QUICK))
