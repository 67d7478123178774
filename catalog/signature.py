"""Signatures of images, as cosign makes them with a key pair: found in the registry, verified against the site's
keys.

A signature is a manifest under the tag `sha256-<digest>.sig` whose layers are small texts that name the image's
digest; the signature of each text stands in an annotation. Format:
https://github.com/sigstore/cosign/blob/main/specs/SIGNATURE_SPEC.md. What is signed is the digest that a tag stands
for, so an index or the platform's own manifest: either counts. Keyless signatures and transparency logs are not
looked at.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Callable, Sequence
from pathlib import Path

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from catalog.failure import PullFailed
from catalog.manifest import Descriptor

PublicKey = ec.EllipticCurvePublicKey | rsa.RSAPublicKey | ed25519.Ed25519PublicKey

_PAYLOAD = "application/vnd.dev.cosign.simplesigning.v1+json"
_ANNOTATION = "dev.cosignproject.cosign/signature"
_MOST = 50


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


def verify(
    digests: Sequence[str],
    keys: Sequence[PublicKey],
    *,
    manifest: Callable[[str], bytes],
    blob: Callable[[Descriptor], bytes],
) -> None:
    """Finds one valid signature of one of these digests ("sha256:…") by one of the keys.

    manifest(tag) and blob(descriptor) read the repository, and raise PullFailed for what is not there. Raises
    Unsigned.
    """
    reason = "it has no signature"
    for digest in digests:
        try:
            content = manifest(digest.replace(":", "-") + ".sig")
        except PullFailed:
            continue
        for descriptor, signature in _signatures(content):
            try:
                payload = blob(descriptor)
            except PullFailed as error:
                reason = str(error)
                continue
            if not any(_signed(key, signature, payload) for key in keys):
                reason = "its signature is by none of this site's keys"
            elif _digest(payload) != digest:
                reason = "its signature is that of another image"
            else:
                return
    raise Unsigned(reason)


def _signatures(content: bytes) -> list[tuple[Descriptor, bytes]]:
    """The signed texts of a signature manifest, each with its signature; entries that make no sense are passed over."""
    found = []
    try:
        layers = json.loads(content)["layers"]
        for layer in layers[:_MOST]:
            if layer["mediaType"] != _PAYLOAD or not 0 < layer["size"] <= 1 << 20:
                continue
            signature = base64.b64decode(layer["annotations"][_ANNOTATION], validate=True)
            found.append((Descriptor(_PAYLOAD, str(layer["digest"]).removeprefix("sha256:"), layer["size"]), signature))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, binascii.Error):
        return found
    return found


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


def _digest(payload: bytes) -> str:
    """The image that a signed text speaks of; "" when it speaks of none."""
    try:
        return str(json.loads(payload)["critical"]["image"]["docker-manifest-digest"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return ""
