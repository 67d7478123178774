"""Mounts of this machine below a directory, and taking them down: a site leaves none behind.

Reads /proc/self/mountinfo (proc(5)), so it sees this mount namespace only: what a container or an emulated node mounted in
its own namespace ends with it.
"""

import ctypes
import os
import re
from pathlib import Path

MNT_DETACH = 2  # umount2(2)
UMOUNT_NOFOLLOW = 8


def mounts_below(directory: Path) -> list[Path]:
    """Mount points in or below `directory`, in the order in which they were mounted."""
    found = []
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        point = Path(re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), line.split()[4]))
        if point == directory or directory in point.parents:
            found.append(point)
    return found


def unmount_below(directory: Path) -> list[Path]:
    """Undo every mount below `directory`, the last first; one that is busy is detached and goes with its last user.

    Returns what was unmounted. Raises OSError when the kernel refuses.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    points = mounts_below(directory)[::-1]
    for point in points:
        path = os.fsencode(point)
        if libc.umount2(path, UMOUNT_NOFOLLOW) != 0 and libc.umount2(path, UMOUNT_NOFOLLOW | MNT_DETACH) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), str(point))
    return points
