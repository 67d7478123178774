import pytest

from runtime.reference import ReferenceInvalid, parse

DIGEST = "@sha256:" + "0a" * 32


@pytest.mark.parametrize(
    ("text", "kind", "tag"),
    [
        ("ubuntu", "docker", "ubuntu:latest"),
        ("ubuntu:24.04", "docker", "ubuntu:24.04"),
        ("docker:ubuntu", "docker", "ubuntu:latest"),
        ("docker:ubuntu:24.04", "docker", "ubuntu:24.04"),
        ("custom:me/tool:1", "custom", "me/tool:1"),
        ("id:" + "ab" * 32, "id", "ab" * 32),
        ("local:/", "local", "/"),
        ("quay.io/biocontainers/barrnap:0.9--3", "docker", "quay.io/biocontainers/barrnap:0.9--3"),
        ("localhost:5000/a/b", "docker", "localhost:5000/a/b:latest"),
        ("localhost:5000/a/b:c", "docker", "localhost:5000/a/b:c"),
        ("docker:a" + DIGEST, "docker", "a" + DIGEST),
        ("a:1" + DIGEST, "docker", "a:1" + DIGEST),
    ],
)
def test_a_name_means_one_type_and_one_complete_tag(text: str, kind: str, tag: str) -> None:
    assert parse(text) == (kind, tag)


def test_a_name_without_type_gets_the_sites_default_type() -> None:
    assert str(parse("tool:1", "custom")) == "custom:tool:1"


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "nothing stands after the type"),
        ("docker:", "nothing stands after the type"),
        ("ubuntu:", "a part of it is empty"),
        ("a//b", "a part of it is empty"),
        ("/b", "a part of it is empty"),
        ("a/", "a part of it is empty"),
        ("ubuntu 24", "white space"),
        ("ubuntu\x1b[2J", "control character"),
        ("a@md5:00", "a digest is @sha256: and 64 digits"),
        ("a@sha256:" + "AB" * 32, "a digest is @sha256: and 64 digits"),
        ("a" * 1025, "longer than 1024"),
    ],
)
def test_what_is_no_name_is_refused_with_the_reason(text: str, why: str) -> None:
    with pytest.raises(ReferenceInvalid, match=why):
        parse(text)
