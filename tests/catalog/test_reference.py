"""References: many spellings, one canonical name, and where it lies."""

from __future__ import annotations

import pytest

from catalog.reference import Reference, ReferenceInvalid, locate, parse

HUB = ["docker.io", "quay.io"]
DIGEST = "sha256:" + "a" * 64


def canonical(text: str, default: str = "docker.io", locations: list[str] | None = None) -> str:
    return parse("m", "docker", text, default_location=default, locations=locations or HUB).tag


@pytest.mark.parametrize(
    "text",
    [
        "ubuntu",
        "ubuntu:latest",
        "library/ubuntu",
        "docker.io/ubuntu",
        "docker.io/library/ubuntu:latest",
        "index.docker.io/ubuntu",
        "registry-1.docker.io/library/ubuntu",
    ],
)
def test_the_spellings_of_one_image_of_docker_hub_are_one_reference(text: str) -> None:
    assert canonical(text) == "ubuntu:latest"


@pytest.mark.parametrize(
    ("text", "tag"),
    [
        ("quay.io/a/b:1", "quay.io/a/b:1"),
        ("user/app", "user/app:latest"),
        (f"ubuntu@{DIGEST}", f"ubuntu@{DIGEST}"),
        (f"ubuntu:22.04@{DIGEST}", f"ubuntu:22.04@{DIGEST}"),
        ("my_app-y/z__a.b:V1.0_b-c", "my_app-y/z__a.b:V1.0_b-c"),
    ],
)
def test_tags_digests_and_configured_registries_are_kept(text: str, tag: str) -> None:
    assert canonical(text) == tag


def test_a_prefix_that_names_the_default_location_is_dropped_and_others_are_kept() -> None:
    assert canonical("site/app:1", "site", ["site", "docker.io"]) == "app:1"
    assert canonical("docker.io/library/alpine", "site", ["site", "docker.io"]) == "docker.io/alpine:latest"
    assert canonical("site:5000/app", "site:5000", ["site:5000"]) == "app:latest"


def test_a_canonical_name_is_its_own_canonical_name() -> None:
    for text in ("docker.io/alpine:latest", "quay.io/a/b:1", f"x@{DIGEST}"):
        assert canonical(canonical(text, "site", ["site", *HUB]), "site", ["site", *HUB]) == canonical(
            text, "site", ["site", *HUB]
        )


def test_where_an_image_lies() -> None:
    hub = locate("ubuntu:22.04", default_location="docker.io", locations=HUB)
    assert (hub.location, hub.source.repository, hub.source.tag) == ("docker.io", "library/ubuntu", "22.04")
    quay = locate(f"quay.io/a/b@{DIGEST}", default_location="docker.io", locations=HUB)
    assert (quay.location, quay.source.repository, quay.source.tag, quay.source.digest) == (
        "quay.io",
        "a/b",
        None,
        DIGEST,
    )
    site = locate("ubuntu", default_location="site", locations=["site"])
    assert (site.location, site.source.repository, site.source.tag) == ("site", "ubuntu", "latest")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nvcr.io/a:1", "registry 'nvcr.io' is not configured here; configured: docker.io, quay.io"),
        ("localhost:5000/a", "registry 'localhost:5000' is not configured"),
        ("Ubuntu", "'Ubuntu' must be lower-case"),
        ("ubuntu:", "tag '' in 'ubuntu:' is not valid"),
        ("a:b:c", "must be lower-case"),
        ("../etc/passwd", "is not"),
        ("/a", "must be lower-case"),
        ("a//b", "must be lower-case"),
        ("ubuntu@sha256:abc", "digest 'sha256:abc'"),
        ("ubuntu@", "digest ''"),
        ("a b", "must be lower-case"),
        ("", "must be lower-case"),
        ("a" * 300, "is not valid"),
    ],
)
def test_what_cannot_name_an_image_is_refused_with_what_to_write(text: str, message: str) -> None:
    with pytest.raises(ReferenceInvalid) as caught:
        canonical(text)
    assert message in str(caught.value)


def test_images_of_other_types_keep_their_name() -> None:
    given = {"default_location": "site", "locations": ["site"]}
    assert parse("m", "custom", "load_test:v1", **given).tag == "load_test:v1"
    assert parse("m", "custom", "Load_Test", **given).tag == "Load_Test:latest"
    for bad in ("../x", "a/../b", "-x", "a b", ""):
        with pytest.raises(ReferenceInvalid):
            parse("m", "custom", bad, **given)


def test_a_reference_has_one_identity_everywhere_and_for_ever() -> None:
    # Streams in existing logs are found by this number: it must never change.
    assert str(Reference("mycluster", "docker", "ubuntu:22.04").uuid) == "1c918b51-472b-548f-9da0-7bafb1bae280"
