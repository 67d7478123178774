"""Held images: which the node keeps mounted, which are in use, and dropping those that nobody has used for a while.

A hold is a mount below `<loopMount>/holds` that every instance of the image is a bind of (launcher/hold.c makes it).
One is in use while any process's mount namespace has a mount of its device. `drop_idle` takes off what lingered; it
runs after a new hold was made, in the epilog, and from a timer, and never takes one that is in use.
"""

import fcntl
import os
import time

from runtime.record import Record
from runtime.udiroot import ConfigInvalid, Udiroot, read

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator


class Hold(Record):
    """A held image. `device` is major:minor as in mountinfo, "" when nothing is mounted; `used` is in seconds since
    1970."""

    name: str
    path: str
    device: str
    used: float


def holds(loop_mount: str) -> list[Hold]:
    """The node's holds, in order of name."""
    directory = f"{os.path.realpath(loop_mount)}/holds"
    mounted = {path: device for device, path in mounts("self") if path.startswith(directory + "/")}
    out = []
    try:
        names = sorted(os.listdir(directory))
    except FileNotFoundError:
        return []
    for name in names:
        path = f"{directory}/{name}"
        if not name.endswith(".lock"):
            try:
                used = os.lstat(path + ".lock").st_mtime
            except FileNotFoundError:
                used = 0.0
            out.append(Hold(name, path, mounted.get(path, ""), used))
    return out


def mounts(process: str) -> "Iterator[tuple[str, str]]":
    """(device, mount point) of each mount in a process's namespace; nothing when the process is gone."""
    try:
        with open(f"/proc/{process}/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
            for line in file:
                fields = line.split(" ", 5)
                yield fields[2], fields[4].encode("latin-1", "replace").decode("unicode_escape")
    except OSError:  # the process ended: ENOENT, ESRCH, or EINVAL while it does
        return


def devices_in_use(but: str) -> set[str]:
    """Devices mounted in any namespace, outside the directory `but` of our own."""
    seen: set[tuple[str, str]] = set()
    used: set[str] = set()
    for process in os.listdir("/proc"):
        if not process.isdigit():
            continue
        try:
            namespace = os.readlink(f"/proc/{process}/ns/mnt")
            root = os.readlink(f"/proc/{process}/root")
        except OSError:
            continue
        if (namespace, root) in seen:
            continue
        seen.add((namespace, root))
        used.update(device for device, path in mounts(process) if not path.startswith(but + "/"))
    return used


def drop_idle(conf: Udiroot, linger: float | None = None) -> list[str]:
    """Take off the holds that nobody uses and that were used last more than `linger` seconds ago; their names.

    `linger` None is what udiRoot.conf says. A hold that cannot be taken off stays: the next caller tries again.
    """
    patience = conf.hold_linger if linger is None else linger
    drop_locks(f"{os.path.realpath(conf.loop_mount)}/holds", patience)
    dropped = []
    idle = [hold for hold in holds(conf.loop_mount) if hold.used + patience <= time.time()]
    if not idle:
        return []
    used = devices_in_use(f"{os.path.realpath(conf.loop_mount)}/holds")
    for hold in idle:
        if hold.device and hold.device in used:
            continue
        descriptor = os.open(hold.path + ".lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)  # a start that is making or finding it now goes first
            if os.fstat(descriptor).st_mtime + patience > time.time():
                continue
            if hold.device and not unmount(hold.path):
                continue
            os.rmdir(hold.path)
            os.unlink(hold.path + ".lock")
            dropped.append(hold.name)
        except OSError:
            continue
        finally:
            os.close(descriptor)
    return dropped


def drop_locks(directory: str, patience: float) -> None:
    """Take off the lock files that have no hold: of starts that failed before they made one, and of images that are not kept.

    The latter say which loop device the image has (launcher/image.c); they stay while that device is attached.
    """
    try:
        names = set(os.listdir(directory))
    except FileNotFoundError:
        return
    for name in names:
        hold = name.removesuffix(".lock")
        if hold == name or hold in names:
            continue
        try:
            descriptor = os.open(f"{directory}/{name}", os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            device = os.path.basename(os.pread(descriptor, 64, 0).decode("ascii", "replace"))
            attached = device and os.path.exists(f"/sys/block/{device}/loop/backing_file")
            fresh = os.fstat(descriptor).st_mtime + patience > time.time()
            if not attached and not fresh and not os.path.lexists(f"{directory}/{hold}"):
                os.unlink(f"{directory}/{name}")
        except OSError:  # a start is making the hold now
            continue
        finally:
            os.close(descriptor)


def unmount(path: str, *, lazy: bool = False) -> bool:
    """umount2(2), links not followed; whether it worked."""
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    return int(libc.umount2(os.fsencode(path), 8 | (2 if lazy else 0))) == 0  # UMOUNT_NOFOLLOW, MNT_DETACH


def make_room(config: str) -> None:
    """Drop every hold that is not in use: a start lacks a loop device."""
    try:
        drop_idle(read(config), linger=0)
    except (ConfigInvalid, OSError):
        return


def main(config: str) -> None:
    """Drop what lingered; quiet, for it runs behind a start."""
    try:
        drop_idle(read(config))
    except (ConfigInvalid, OSError):
        return
