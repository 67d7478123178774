"""What the kernel would let a user do with a file, so that a gateway that runs as root can refuse what he could not.

From owner, mode and POSIX access control list, by the algorithm of acl(5). A file with a list shows in its mode, as the
group's rights, the most that the list gives anybody: without reading the list, the mode says too much and too little.
"""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Set

READ, SEARCH = 4, 1

# linux/posix_acl_xattr.h: a version, then (tag, rights, id) for each entry.
_HEAD, _ENTRY, _VERSION = struct.Struct("<I"), struct.Struct("<HHI"), 2
_USER, _GROUP_OBJ, _GROUP, _MASK = 0x02, 0x04, 0x08, 0x10


def rights(descriptor: int, uid: int, groups: Set[int]) -> int:
    """READ, SEARCH and 2 for writing, added up, that the user has on the open file (O_PATH will do). Raises OSError."""
    found = os.fstat(descriptor)
    mode = found.st_mode
    if uid == 0:
        return 7
    if uid == found.st_uid:
        return mode >> 6 & 7
    entries = _access_control_list(descriptor)
    if entries is None:
        return (mode >> 3 if found.st_gid in groups else mode) & 7
    mask = next((given for tag, given, _ in entries if tag == _MASK), 7)
    for tag, given, who in entries:
        if tag == _USER and who == uid:
            return given & mask
    mine = [
        given & mask
        for tag, given, who in entries
        if (tag == _GROUP_OBJ and found.st_gid in groups) or (tag == _GROUP and who in groups)
    ]
    if not mine:
        return mode & 7
    # The kernel looks for one entry with all that is asked for; READ and SEARCH are never asked for together here.
    together = 0
    for given in mine:
        together |= given
    return together


def _access_control_list(descriptor: int) -> list[tuple[int, int, int]] | None:
    try:
        raw = os.getxattr(f"/proc/self/fd/{descriptor}", "system.posix_acl_access")
    except OSError as error:
        if error.errno in {errno.ENODATA, errno.EOPNOTSUPP}:
            return None
        raise
    if len(raw) % _ENTRY.size != _HEAD.size or _HEAD.unpack_from(raw)[0] != _VERSION:
        raise OSError(errno.EINVAL, "its access control list is not understood")
    return list(_ENTRY.iter_unpack(raw[_HEAD.size :]))
