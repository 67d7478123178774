"""A fuzzer for the readers of what strangers send: tar headers, layer streams, manifests, configurations, signatures,
challenges.

`python -m tests.catalog.fuzz [seconds] [directory]` runs atheris (coverage-guided) for so long, from the saved corpus and
what it finds; anything but the errors meant for it ends the run with the input that did it. The test runs it for a moment.
"""

from __future__ import annotations

import base64
import contextlib
import io
import json
import sys
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["catalog"]):
    from catalog.conversion_options import ConversionOptions
    from catalog.failure import PullFailed
    from catalog.layer_stream import LayerStream
    from catalog.layers import LayerInvalid, NeedsSurvey, Output, merge
    from catalog.layers_survey import merge_surveyed
    from catalog.limits import Limits
    from catalog.manifest import Descriptor, parse_config, parse_manifest
    from catalog.registry_auth import parse_challenge
    from catalog.signature import Unsigned, verify
    from catalog.tar import TarReader
    from catalog.tar_fields import TarInvalid

LIMITS = Limits(unpacked=1 << 20, members=200, header=8 << 10, depth=50, manifest=64 << 10)
OPTIONS = ConversionOptions(limits=LIMITS, keep_user_xattrs=True)


def layers(data: bytes) -> None:
    """The same bytes as a single layer, and halved as two; in one pass and with a survey."""
    for parts in ([data], [data[: len(data) // 2], data[len(data) // 2 :]]):

        def reader(number: int, parts: list[bytes] = parts) -> TarReader:
            stream = LayerStream(io.BytesIO(parts[number]), len(parts[number]), LIMITS)
            return TarReader(stream.read, LIMITS)

        for way in (merge, merge_surveyed):
            with contextlib.suppress(TarInvalid, LayerInvalid, NeedsSurvey):
                way(len(parts), reader, Output(len, OPTIONS), LIMITS)


def documents(data: bytes) -> None:
    with contextlib.suppress(PullFailed):
        parse_manifest(data, "application/vnd.oci.image.manifest.v1+json", "it", LIMITS)
    with contextlib.suppress(PullFailed):
        parse_config(data, "it")
    with contextlib.suppress(Unsigned):
        verify(["sha256:" + "0" * 64], [], Everywhere(data))
    parse_challenge(data.decode("latin-1"))


class Everywhere:
    """A repository that answers everything with the same bytes."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def manifest(self, reference: str) -> bytes:
        return self._data

    def referrers(self, digest: str) -> bytes:
        return self._data

    def blob(self, descriptor: Descriptor) -> bytes:
        return self._data


def one(data: bytes) -> None:
    (documents if data[:1] == b"{" else layers)(data)


def save_corpus(directory: Path) -> None:
    """Small images of the hostile corpus, as a beginning."""
    from tests.catalog.hostile_images import configurations
    from tests.catalog.hostile_images import documents as manifests
    from tests.catalog.hostile_images import layers as hostile_layers

    directory.mkdir(parents=True, exist_ok=True)
    contents = [layer.content for layer in hostile_layers()]
    contents += [document.content for document in manifests()] + [content for _, content, _ in configurations()]
    contents += signatures()
    for number, content in enumerate(contents):
        if len(content) <= 20_000:
            (directory / f"{number:03}").write_bytes(content)


def signatures() -> list[bytes]:
    """Documents that are an index of bundles, a manifest of signatures and a bundle at once."""
    pointer = {
        "digest": "sha256:" + "0" * 64,
        "size": 2,
        "mediaType": "application/vnd.dev.cosign.simplesigning.v1+json",
    }
    signed = {**pointer, "annotations": {"dev.cosignproject.cosign/signature": "QUJD"}}
    bundle = {**pointer, "artifactType": "application/vnd.dev.sigstore.bundle.v0.3+json"}
    statement = {"predicateType": "https://sigstore.dev/cosign/sign/v1", "subject": [{"digest": {"sha256": "0"}}]}
    envelope = {
        "payload": base64.b64encode(json.dumps(statement).encode()).decode(),
        "payloadType": "application/vnd.in-toto+json",
        "signatures": [{"sig": "QUJD"}],
    }
    simple = {"image": {"docker-manifest-digest": pointer["digest"]}}
    return [
        json.dumps({"layers": [signed], "critical": simple}).encode(),
        json.dumps({"manifests": [bundle], "layers": [pointer], "dsseEnvelope": envelope}).encode(),
    ]


def main() -> None:
    seconds = sys.argv[1] if len(sys.argv) > 1 else "600"
    directory = Path(sys.argv[2] if len(sys.argv) > 2 else "build/fuzz")
    save_corpus(directory)
    atheris.Setup(
        [
            sys.argv[0],
            f"-max_total_time={seconds}",
            "-timeout=10",
            "-rss_limit_mb=1024",
            "-max_len=20000",
            f"-artifact_prefix={directory}-",
            str(directory),
        ],
        one,
    )
    atheris.Fuzz()


if __name__ == "__main__":
    main()
