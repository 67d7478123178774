"""What a user could read, as the gateway judges it, is what the kernel lets that user read."""

from __future__ import annotations

import os
import struct
import subprocess
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from catalog.rights import READ, SEARCH, rights
from tests.catalog.gateway_fixture import ALICE, BOB
from tests.requires import requires_root

pytestmark = requires_root

NOBODY = 2**32 - 1
GROUP, OTHER_GROUP = 70001, 70002
BITS = st.integers(0, 7)


def access_control_list(
    owner: int, users: dict[int, int], group: int, groups: dict[int, int], mask: int, other: int
) -> bytes:
    entries = [(0x01, owner, NOBODY), *((0x02, given, uid) for uid, given in sorted(users.items()))]
    entries += [(0x04, group, NOBODY), *((0x08, given, gid) for gid, given in sorted(groups.items()))]
    entries += [(0x10, mask, NOBODY), (0x20, other, NOBODY)]
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


def kernel_lets(flag: str, path: Path, uid: int, groups: set[int]) -> bool:
    done = subprocess.run(["test", flag, path], user=uid, group=uid, extra_groups=sorted(groups))
    return done.returncode == 0


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    listed=st.none() | st.tuples(st.dictionaries(st.sampled_from([ALICE, BOB]), BITS),
                                 st.dictionaries(st.sampled_from([GROUP, OTHER_GROUP]), BITS), BITS),
    bits=st.tuples(BITS, BITS, BITS),
    owner=st.sampled_from([ALICE, BOB]),
    group=st.sampled_from([GROUP, OTHER_GROUP]),
    member=st.sets(st.sampled_from([GROUP, OTHER_GROUP])),
)  # fmt: skip
def test_the_gateway_judges_as_the_kernel_does(
    public_directory: Path,
    listed: tuple[dict[int, int], dict[int, int], int] | None,
    bits: tuple[int, int, int],
    owner: int,
    group: int,
    member: set[int],
) -> None:
    place = public_directory / "place"
    place.mkdir(exist_ok=True)
    os.chown(place, owner, group)
    os.setxattr(place, "system.posix_acl_access", access_control_list(7, {}, 7, {}, 7, 7))
    os.removexattr(place, "system.posix_acl_access")
    place.chmod(bits[0] << 6 | bits[1] << 3 | bits[2])
    if listed is not None:
        users, groups, mask = listed
        os.setxattr(
            place, "system.posix_acl_access", access_control_list(bits[0], users, bits[1], groups, mask, bits[2])
        )
    descriptor = os.open(place, os.O_PATH)
    try:
        judged = rights(descriptor, ALICE, member | {ALICE})
    finally:
        os.close(descriptor)
    for right, flag in ((READ, "-r"), (SEARCH, "-x")):
        lets = kernel_lets(flag, place, ALICE, member)
        if listed is not None and listed[2] == 0:
            assert lets or not judged & right  # Linux then skips the list and asks the rights of others; we need not
        else:
            assert bool(judged & right) == lets


def test_root_reads_all_and_an_access_control_list_that_shows_as_group_rights_gives_the_group_nothing(
    public_directory: Path,
) -> None:
    file = public_directory / "file"
    file.touch()
    os.chown(file, BOB, GROUP)
    os.setxattr(file, "system.posix_acl_access", access_control_list(6, {ALICE: 4}, 0, {}, 4, 0))
    assert file.stat().st_mode & 0o777 == 0o640
    with file.open() as opened:
        assert rights(opened.fileno(), 0, set()) == 7
        assert rights(opened.fileno(), ALICE, {ALICE}) == READ
        assert rights(opened.fileno(), OTHER_GROUP, {GROUP}) == 0
