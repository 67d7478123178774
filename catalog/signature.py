"""Signatures of images, as cosign makes them with a key pair: found in the registry, verified against the site's
keys.

Both ways in which cosign stores them are understood. Up to version 2: a manifest under the tag `sha256-<digest>.sig`
whose layers are small texts that name the image's digest; the signature of each text stands in an annotation
(https://github.com/sigstore/cosign/blob/main/specs/SIGNATURE_SPEC.md). From version 3 on: a bundle that refers to the
image (referrers API, or the tag `sha256-<digest>`), in it an in-toto statement in a DSSE envelope
(https://github.com/sigstore/cosign/blob/main/specs/BUNDLE_SPEC.md, https://github.com/secure-systems-lab/dsse). What
is signed is the digest that a tag stands for, so an index or the platform's own manifest: either counts. Attestations
(of provenance, of contents) are no signatures. Keyless signatures and transparency logs are not looked at.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from catalog.failure import PullFailed
from catalog.manifest import Descriptor
from catalog.registry_auth import Refused

PublicKey = ec.EllipticCurvePublicKey | rsa.RSAPublicKey | ed25519.Ed25519PublicKey

_PAYLOAD = "application/vnd.dev.cosign.simplesigning.v1+json"
_ANNOTATION = "dev.cosignproject.cosign/signature"
_BUNDLE = "application/vnd.dev.sigstore.bundle"
_STATEMENT = "application/vnd.in-toto+json"
_SIGN = "https://sigstore.dev/cosign/sign/v1"
_MOST = 50
_LARGEST = 1 << 20
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_SENSELESS = (ValueError, KeyError, TypeError, AttributeError, RecursionError, binascii.Error)


class _Signature(NamedTuple):
    """What was signed, the signature, and the digests ("sha256:…") of the images of which it is one."""

    text: bytes
    signature: bytes
    images: tuple[str, ...]


class Unsigned(Exception):
    """No signature that counts. The text says why, as the end of a sentence."""


def load_keys(paths: Sequence[Path]) -> list[PublicKey]:
    """The site's public keys (PEM: ECDSA, RSA or Ed25519). Raises PullFailed naming the file that is none."""
    keys: list[PublicKey] = []
    for path in paths:
        try:
            key = load_pem_public_key(path.read_bytes())
        except (OSError, ValueError, UnsupportedAlgorithm) as error:
            raise PullFailed(f"the signature key {path} cannot be used ({error}): tell the administrator") from error
        if not isinstance(key, PublicKey):
            raise PullFailed(f"the signature key {path} is of a kind that does not sign images: tell the administrator")
        keys.append(key)
    return keys


class Repository(Protocol):
    """Where an image and its signatures lie. Each method raises Refused for what is not there, else PullFailed."""

    def manifest(self, reference: str) -> bytes:
        """A manifest or index by tag or digest."""

    def referrers(self, digest: str) -> bytes:
        """The index of what refers to a manifest (distribution specification, "Listing Referrers")."""

    def blob(self, descriptor: Descriptor) -> bytes:
        """A small blob, verified."""


def verify(digests: Sequence[str], keys: Sequence[PublicKey], repository: Repository) -> None:
    """Finds one valid signature of one of these digests ("sha256:…") by one of the keys. Raises Unsigned."""
    reason = "it has no signature"
    for digest in digests:
        for find in (_simple, _bundled):
            try:
                for found in find(digest, repository):
                    if isinstance(found, PullFailed):
                        reason = str(found)
                    elif not any(_signed(key, found.signature, found.text) for key in keys):
                        reason = "its signature is by none of this site's keys"
                    elif digest not in found.images:
                        reason = "its signature is that of another image"
                    else:
                        return
            except Refused:
                continue
            except PullFailed as error:
                reason = str(error)
    raise Unsigned(reason)


def _simple(digest: str, repository: Repository) -> Iterator[_Signature | PullFailed]:
    """The signatures of cosign up to 2, and why some cannot be had; entries that make no sense are passed over."""
    for layer in _list(repository.manifest(digest.replace(":", "-") + ".sig"), "layers"):
        try:
            if layer["mediaType"] != _PAYLOAD or (descriptor := _descriptor(layer)) is None:
                continue
            signature = base64.b64decode(layer["annotations"][_ANNOTATION], validate=True)
        except _SENSELESS:
            continue
        try:
            text = repository.blob(descriptor)
        except PullFailed as error:
            yield error
            continue
        try:
            image = str(json.loads(text)["critical"]["image"]["docker-manifest-digest"])
        except _SENSELESS:
            image = ""
        yield _Signature(text, signature, (image,))


def _bundled(digest: str, repository: Repository) -> Iterator[_Signature | PullFailed]:
    """The signatures of cosign from 3 on, and why some cannot be had; what else refers to the image is passed over."""
    try:
        index = repository.referrers(digest)
    except PullFailed:  # whatever registries answer that do not know of it
        index = repository.manifest(digest.replace(":", "-"))
    for entry in _list(index, "manifests"):
        kind = entry.get("artifactType") if isinstance(entry, dict) else None
        if not isinstance(kind, str) or not kind.startswith(_BUNDLE) or (found := _descriptor(entry)) is None:
            continue
        try:
            for layer in _list(repository.manifest(found.digest), "layers")[:1]:
                if (descriptor := _descriptor(layer)) is not None:
                    yield from _opened(repository.blob(descriptor))
        except PullFailed as error:
            yield error


def _opened(bundle: bytes) -> Iterator[_Signature]:
    """The signatures in a bundle, if it holds a statement that an image is signed."""
    try:
        envelope = json.loads(bundle)["dsseEnvelope"]
        payload = base64.b64decode(envelope["payload"], validate=True)
        statement = json.loads(payload)
        if envelope["payloadType"] != _STATEMENT or statement["predicateType"] != _SIGN:
            return
        images = tuple(f"sha256:{subject['digest']['sha256']}" for subject in statement["subject"])
        signatures = [base64.b64decode(one["sig"], validate=True) for one in envelope["signatures"][:_MOST]]
    except _SENSELESS:
        return
    text = b"DSSEv1 %d %s %d %s" % (len(_STATEMENT), _STATEMENT.encode(), len(payload), payload)
    for signature in signatures:
        yield _Signature(text, signature, images)


def _list(content: bytes, name: str) -> list[Any]:
    """A list in a manifest or index, cut to a length that can be walked; empty when there is none."""
    try:
        found = json.loads(content)[name]
    except _SENSELESS:
        return []
    return found[:_MOST] if isinstance(found, list) else []


def _descriptor(entry: Any) -> Descriptor | None:
    """Where an entry points to; None when that makes no sense, or is too large for a signature."""
    if not isinstance(entry, dict):
        return None
    digest, size = entry.get("digest"), entry.get("size")
    if not isinstance(digest, str) or not _DIGEST.fullmatch(digest):
        return None
    if not isinstance(size, int) or not 0 < size <= _LARGEST:
        return None
    return Descriptor(str(entry.get("mediaType")), digest.removeprefix("sha256:"), size)


def _signed(key: PublicKey, signature: bytes, payload: bytes) -> bool:
    try:
        if isinstance(key, ec.EllipticCurvePublicKey):
            key.verify(signature, payload, ec.ECDSA(hashes.SHA256()))
        elif isinstance(key, rsa.RSAPublicKey):
            key.verify(signature, payload, padding.PKCS1v15(), hashes.SHA256())
        else:
            key.verify(signature, payload)
    except InvalidSignature:
        return False
    return True
