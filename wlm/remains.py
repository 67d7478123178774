"""Processes that would keep a job's container on the node after the job: what the epilog must end before it can unmount.

The container belongs to one job, which has ended. So whatever has it as its root goes, whoever's it is (the sshd and
what was started over ssh), and so does every process of the job's user that works in it from outside: by its working
directory, an open file, a program or a library. A user who left one behind (`cd /var/udiMount; setsid sleep 9999 &`) would
otherwise take the node out of service. Somebody else's process outside, as an administrator's shell, is never touched.
"""

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator


def inside(udi_mount: str, user: str = "") -> "Iterator[int]":
    """Living processes that have the prepared container as their root, and those of the uid `user` that use something in it."""
    place = os.path.realpath(udi_mount)
    for name in filter(str.isdigit, os.listdir("/proc")):
        process = f"/proc/{name}"
        try:
            if os.readlink(f"{process}/root") == place or (_is_of(process, user) and _uses(process, place)):
                yield int(name)
        except OSError:  # it has just ended
            continue


def _is_of(process: str, user: str) -> bool:
    """Whether it runs as that uid. Its directory's owner would not tell: of one that may not be traced that is root."""
    if not user:
        return False
    os.readlink(f"{process}/exe")  # a thread of the kernel has none
    with open(f"{process}/status", encoding="utf-8", errors="replace") as file:
        return next(line.split()[1] for line in file if line.startswith("Uid:")) == user


def _uses(process: str, place: str) -> bool:
    """Whether a process has its working directory, an open file, its program or another mapped file at `place` or below."""
    links = [f"{process}/cwd", f"{process}/exe", *(f"{process}/fd/{name}" for name in os.listdir(f"{process}/fd"))]
    if any((target := _target(link)) == place or target.startswith(place + "/") for link in links):
        return True
    with open(f"{process}/maps", encoding="utf-8", errors="replace") as file:
        return any(f" {place}/" in line for line in file)


def _target(link: str) -> str:
    """Where a link of /proc leads; "" when that has just been closed."""
    try:
        return os.readlink(link)
    except OSError:
        return ""
