"""Signed images: what a site's policy lets in, and why it keeps the rest out. The images are signed here, as cosign does it."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa

from catalog.failure import PullFailed
from tests.catalog.lying_registry import Answer, LyingRegistry, Request, lying
from tests.catalog.registry_fixture import Puller, build, file, gz, index, sha256, tar
from tests.requires import requires

pytestmark = requires("tar2sqfs")

IMAGE = build(gz(tar(file("f", b"x"))))
PAYLOAD = "application/vnd.dev.cosign.simplesigning.v1+json"


def key_file(directory: Path, name: str, private: Any) -> Path:
    path = directory / f"{name}.pub"
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    path.write_bytes(private.public_key().public_bytes(serialization.Encoding.PEM, form))
    return path


def sign(private: Any, payload: bytes) -> bytes:
    if isinstance(private, ec.EllipticCurvePrivateKey):
        return private.sign(payload, ec.ECDSA(hashes.SHA256()))
    if isinstance(private, rsa.RSAPrivateKey):
        return private.sign(payload, padding.PKCS1v15(), hashes.SHA256())
    return private.sign(payload)  # type: ignore[no-any-return]  # Ed25519


def signature(private: Any, digest: str) -> tuple[bytes, bytes]:
    """The signature manifest and the signed text for an image's digest."""
    payload = json.dumps(
        {
            "critical": {
                "identity": {"docker-reference": "a/b"},
                "image": {"docker-manifest-digest": digest},
                "type": "cosign container image signature",
            },
            "optional": None,
        }
    ).encode()
    layer = {
        "mediaType": PAYLOAD,
        "digest": sha256(payload),
        "size": len(payload),
        "annotations": {"dev.cosignproject.cosign/signature": base64.b64encode(sign(private, payload)).decode()},
    }
    return json.dumps({"schemaVersion": 2, "layers": [layer]}).encode(), payload


def serve(registry: LyingRegistry, signed: str, manifest: bytes, payload: bytes) -> None:
    """Puts a signature under the tag of the digest `signed`."""
    tag = signed.replace(":", "-") + ".sig"

    def hook(request: Request) -> Answer | None:
        if request.path.endswith("/manifests/" + tag):
            return Answer(body=manifest)
        if request.path.endswith(".sig"):
            return Answer(404)
        return Answer(body=payload) if request.path.endswith(sha256(payload)) else None

    registry.hook = hook


@pytest.fixture
def registry() -> Iterator[LyingRegistry]:
    with lying(IMAGE) as registry:
        registry.hook = lambda request: Answer(404) if request.path.endswith(".sig") else None
        yield registry


MINE = ec.generate_private_key(ec.SECP256R1())


def puller(directory: Path, registry: LyingRegistry, policy: str, *keys: Path) -> Puller:
    return Puller(directory, registry.url, location={"signature_policy": policy, "signature_keys": keys})


@pytest.mark.parametrize(
    "private",
    [MINE, rsa.generate_private_key(65537, 2048), ed25519.Ed25519PrivateKey.generate()],
    ids=["ec", "rsa", "ed"],
)
def test_a_signed_image_is_taken(tmp_path: Path, registry: LyingRegistry, private: Any) -> None:
    serve(registry, IMAGE.digest, *signature(private, IMAGE.digest))
    other = key_file(tmp_path, "other", ec.generate_private_key(ec.SECP256R1()))
    assert puller(tmp_path, registry, "require", other, key_file(tmp_path, "k", private)).pull("a/b:1").id == IMAGE.id


SIGN = "https://sigstore.dev/cosign/sign/v1"


def bundle(private: Any, digest: str, kind: str = SIGN) -> bytes:
    """What cosign 3 makes of a signature with a key pair."""
    subject = {"digest": {"sha256": digest.removeprefix("sha256:")}}
    statement = {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [subject],
        "predicateType": kind,
        "predicate": {},
    }
    payload, form = json.dumps(statement).encode(), "application/vnd.in-toto+json"
    signed = sign(private, b"DSSEv1 28 " + form.encode() + b" " + str(len(payload)).encode() + b" " + payload)
    envelope = {
        "payload": base64.b64encode(payload).decode(),
        "payloadType": form,
        "signatures": [{"sig": base64.b64encode(signed).decode()}],
    }
    material = {"publicKey": {"hint": "x"}}
    return json.dumps({"mediaType": BUNDLE, "verificationMaterial": material, "dsseEnvelope": envelope}).encode()


BUNDLE = "application/vnd.dev.sigstore.bundle.v0.3+json"


def refer(registry: LyingRegistry, signed: str, *bundles: bytes, api: bool = True) -> None:
    """Has these bundles refer to a digest, by the API or by a tag."""
    served: dict[str, bytes] = {}
    entries = []
    for content in bundles:
        layer = {"mediaType": BUNDLE, "digest": sha256(content), "size": len(content)}
        manifest = json.dumps({"schemaVersion": 2, "artifactType": BUNDLE, "layers": [layer]}).encode()
        served |= {sha256(content): content, sha256(manifest): manifest}
        entries.append({"artifactType": BUNDLE, "digest": sha256(manifest), "size": len(manifest)})
    listing = json.dumps({"schemaVersion": 2, "manifests": entries}).encode()
    where = "/referrers/" + signed if api else "/manifests/" + signed.replace(":", "-")

    def hook(request: Request) -> Answer | None:
        if request.path.endswith(where):
            return Answer(body=listing)
        if request.path.endswith(".sig") or "/referrers/" in request.path:
            return Answer(404)
        found = served.get(request.path.rpartition("/")[2])
        return Answer(body=found) if found is not None else None

    registry.hook = hook


@pytest.mark.parametrize("api", [True, False], ids=["referrers", "tag"])
@pytest.mark.parametrize("private", [MINE, ed25519.Ed25519PrivateKey.generate()], ids=["ec", "ed"])
def test_a_signature_in_a_bundle_counts(tmp_path: Path, registry: LyingRegistry, private: Any, api: bool) -> None:
    provenance = bundle(private, IMAGE.digest, "https://slsa.dev/provenance/v1")
    refer(registry, IMAGE.digest, provenance, bundle(private, IMAGE.digest), api=api)
    assert puller(tmp_path, registry, "require", key_file(tmp_path, "k", private)).pull("a/b:1").id == IMAGE.id


OTHER = ec.generate_private_key(ec.SECP256R1())


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (bundle(OTHER, IMAGE.digest), "its signature is by none of this site's keys"),
        (bundle(MINE, build().digest), "its signature is that of another image"),
        (bundle(MINE, IMAGE.digest, "https://slsa.dev/provenance/v1"), "it has no signature"),
        (bundle(MINE, IMAGE.digest, "https://in-toto.io/attestation/vulns"), "it has no signature"),
        (bundle(MINE, IMAGE.digest).replace(b"in-toto+json", b"other+json"), "it has no signature"),
        (b"", "it has no signature"),
        (b"[]", "it has no signature"),
        (b'{"dsseEnvelope": {"payload": "!"}}', "it has no signature"),
        (
            b'{"dsseEnvelope": {"payload": "e30=", "payloadType": "application/vnd.in-toto+json"}}',
            "it has no signature",
        ),
    ],
)
def test_a_bundle_that_does_not_count(tmp_path: Path, registry: LyingRegistry, content: bytes, reason: str) -> None:
    refer(registry, IMAGE.digest, content)
    assert refused(tmp_path, registry) == REFUSED + reason


def test_a_statement_that_was_changed_after_signing(tmp_path: Path, registry: LyingRegistry) -> None:
    document = json.loads(bundle(MINE, build().digest))
    payload = base64.b64decode(document["dsseEnvelope"]["payload"])
    changed = payload.replace(build().digest[7:].encode(), IMAGE.digest[7:].encode())
    document["dsseEnvelope"]["payload"] = base64.b64encode(changed).decode()
    refer(registry, IMAGE.digest, json.dumps(document).encode())
    assert refused(tmp_path, registry) == REFUSED + "its signature is by none of this site's keys"


def test_a_signature_that_cannot_be_had_hides_no_other(tmp_path: Path, registry: LyingRegistry) -> None:
    gone, good = bundle(OTHER, IMAGE.digest), bundle(MINE, IMAGE.digest)
    refer(registry, IMAGE.digest, gone, good)
    told = registry.hook
    registry.hook = lambda request: Answer(404) if request.path.endswith(sha256(gone)) else told(request)
    assert puller(tmp_path, registry, "require", key_file(tmp_path, "k", MINE)).pull("a/b:1").id == IMAGE.id


def test_a_registry_that_fails_is_not_called_an_unsigned_image(tmp_path: Path, registry: LyingRegistry) -> None:
    registry.hook = lambda request: Answer(501) if request.path.endswith(".sig") else None
    assert refused(tmp_path, registry) == (
        REFUSED + "registry testing answered 501 when asked for the signature of a/b:1"
    )


def test_a_signature_of_the_index_counts_for_its_images(tmp_path: Path, registry: LyingRegistry) -> None:
    many = index((IMAGE, {"os": "linux", "architecture": "amd64"}))
    serve(registry, many.digest, *signature(MINE, many.digest))
    told = registry.hook

    def hook(request: Request) -> Answer | None:
        if request.path.endswith("/manifests/1"):
            return Answer(body=many.manifest, headers={"Content-Type": many.media_type})
        return told(request)

    registry.hook = hook
    assert puller(tmp_path, registry, "require", key_file(tmp_path, "k", MINE)).pull("a/b:1").id == IMAGE.id


def refused(directory: Path, registry: LyingRegistry) -> str:
    with pytest.raises(PullFailed) as caught:
        puller(directory, registry, "require", key_file(directory, "k", MINE)).pull("a/b:1")
    assert registry.blob_requests() == []
    return str(caught.value)


REFUSED = "a/b:1 is refused, as this site takes signed images only: "


def test_an_unsigned_image_is_refused_before_anything_is_fetched(tmp_path: Path, registry: LyingRegistry) -> None:
    assert refused(tmp_path, registry) == REFUSED + "it has no signature"


def test_a_signature_by_another_key(tmp_path: Path, registry: LyingRegistry) -> None:
    serve(registry, IMAGE.digest, *signature(ec.generate_private_key(ec.SECP256R1()), IMAGE.digest))
    assert refused(tmp_path, registry) == REFUSED + "its signature is by none of this site's keys"


def test_a_true_signature_of_another_image(tmp_path: Path, registry: LyingRegistry) -> None:
    serve(registry, IMAGE.digest, *signature(MINE, build().digest))
    assert refused(tmp_path, registry) == REFUSED + "its signature is that of another image"


def test_a_text_that_was_changed_after_signing(tmp_path: Path, registry: LyingRegistry) -> None:
    manifest, payload = signature(MINE, build().digest)
    changed = payload.replace(build().digest.encode(), IMAGE.digest.encode())
    manifest = manifest.replace(sha256(payload).encode(), sha256(changed).encode())
    serve(registry, IMAGE.digest, manifest, changed)
    assert refused(tmp_path, registry) == REFUSED + "its signature is by none of this site's keys"


@pytest.mark.parametrize(
    "manifest", [b"", b"[]", b"{}", b'{"layers": 5}', b'{"layers": [{}]}', b'{"layers": [{"mediaType": "x"}]}', b"\xff"]
)
def test_a_signature_manifest_that_makes_no_sense(tmp_path: Path, registry: LyingRegistry, manifest: bytes) -> None:
    serve(registry, IMAGE.digest, manifest, b"x")
    assert refused(tmp_path, registry) == REFUSED + "it has no signature"


def test_warn_takes_the_image_and_says_so(tmp_path: Path, registry: LyingRegistry) -> None:
    pulling = puller(tmp_path, registry, "warn", key_file(tmp_path, "k", MINE))
    pulling.pull("a/b:1")
    assert pulling.watcher.notes == ["a/b:1 is not signed as it should be: it has no signature"]


def test_without_a_policy_nobody_asks(tmp_path: Path, registry: LyingRegistry) -> None:
    puller(tmp_path, registry, "none").pull("a/b:1")
    assert registry.paths(".sig") == []


def test_a_key_that_is_none_is_named(tmp_path: Path, registry: LyingRegistry) -> None:
    (tmp_path / "k.pub").write_text("not a key")
    with pytest.raises(PullFailed, match=r"the signature key \S+/k.pub cannot be used"):
        puller(tmp_path, registry, "require", tmp_path / "k.pub").pull("a/b:1")


def test_the_same_content_is_not_let_in_unsigned_by_the_memory_of_conversions(
    tmp_path: Path, registry: LyingRegistry
) -> None:
    puller(tmp_path, registry, "none").pull("a/b:1")
    with pytest.raises(PullFailed, match="signed images only"):
        puller(tmp_path, registry, "require", key_file(tmp_path, "k", MINE)).pull("a/b:1")
