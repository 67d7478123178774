"""Volumes: what may be written, what a user may ask, and the canonical signature of a set."""

import pytest

from runtime.volumes import VolumeInvalid, check_user_volumes, parse_size, parse_volumes, signature


@pytest.mark.parametrize(
    "target", ["/etc", "/etc/passwd", "/var/log", "/opt", "/opt/udiImage", "/opt/udiImage/x", "/", "/proc/1", "/dev"]
)
def test_targets_that_are_the_systems(target: str) -> None:
    with pytest.raises(VolumeInvalid, match="is the system's in a container: choose another target"):
        check_user_volumes(parse_volumes(f"/a:{target}"))


@pytest.mark.parametrize(
    "text",
    ["/a:opt", "/a:etc", "a:/mnt", "/a", "/a:", ":/mnt", "/a:/b/../c", "/../a:/b", "/a:/b:rec=k=v", "/a:/b:ro:ro"],
)
def test_volumes_that_are_malformed(text: str) -> None:
    with pytest.raises(VolumeInvalid, match=r"volume '.+'"):
        parse_volumes(text)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("/a:/c;/b:/c", "target /c is used twice"), ("/a:/c;/b:/c/", "used twice"), ("/a:/b:rec", "flag 'rec' is for the site"),
        ("/a:/b:slave", "is for the site"), ("/a:/b:shared", "is for the site"),
    ],
)  # fmt: skip
def test_what_a_user_may_not_ask(text: str, reason: str) -> None:
    with pytest.raises(VolumeInvalid, match=reason):
        check_user_volumes(parse_volumes(text))


@pytest.mark.parametrize(
    "flags", ["perNodeCache", "perNodeCache=fs=xfs", "perNodeCache=size=0", "perNodeCache=size=1m,colour=red"]
)
def test_node_caches_that_are_malformed(flags: str) -> None:
    with pytest.raises(VolumeInvalid):
        parse_volumes(f"/a:/b:{flags}")


@pytest.mark.parametrize(
    "target",
    ["/mnt", "/opt/myStuff", "/var/tmp", "/var/tmp/x", "/input", "/etcetera", "/optional", "/mnt/", "//mnt//x/"],
)
def test_targets_that_are_a_users(target: str) -> None:
    check_user_volumes(parse_volumes(f"/a:{target}"))


def test_the_signature_is_sorted_and_complete() -> None:
    volumes = parse_volumes("/d:/c;/a:/b;/q:/r;/a:/c:rec:perNodeCache=size=100M:ro")
    assert signature(volumes) == (
        "/a:/b;/a:/c:ro:rec:perNodeCache=size=104857600,bs=1048576,method=loop,fstype=xfs;/d:/c;/q:/r"
    )


def test_a_signature_means_the_same_when_it_is_read_again() -> None:
    volumes = parse_volumes("/q:/r:ro;/a:/c:perNodeCache=size=1g,bs=4k,fs=xfs; /x/:/y// ;")
    assert signature(parse_volumes(signature(volumes))) == signature(volumes)
    assert signature(parse_volumes("/x:/y;/a:/b")) == signature(parse_volumes("/a:/b/;//x:/y"))


@pytest.mark.parametrize(
    ("text", "size"),
    [("10", 10), ("10b", 10), ("1k", 1 << 10), ("1M", 1 << 20), ("2g", 2 << 30), ("1T", 1 << 40), ("1p", 1 << 50),
     ("1e", 1 << 60), ("1.5g", 3 << 29), ("100MB", 100 << 20)],
)  # fmt: skip
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "b", "-1", "0", "1x", "1.2.3", "nan", "1e400", "inf"])
def test_sizes_that_are_none(text: str) -> None:
    with pytest.raises(VolumeInvalid, match="is not a positive number"):
        parse_size(text)
