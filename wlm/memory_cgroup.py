"""The memory cgroup of a job's containers: `shifter/uid_<uid>/job_<jobid>` below where the hierarchy is mounted.

The layout is Slurm's own, so that a site's tools find it. On cgroup v1 the path is the memory hierarchy's mount (as
/sys/fs/cgroup/memory), on v2 the unified mount; which it is, the files there say. Where neither is mounted nothing is
made, and a line says so. Only the sshd, and with it all that is started over ssh, is put in: tasks belong to Slurm's
own cgroups.
"""

import errno
import os
import sys
import time

from wlm.failure import NodeFault

ROOT = "shifter"


def make(mount: str, uid: int, job: int, megabytes: int) -> None:
    """Makes the job's cgroup; limited to `megabytes` MiB unless that is 0. Raises NodeFault when the kernel refuses."""
    limit = _limit_file(mount)
    if limit is None:
        print(f"shifter: memory_cgroup={mount}: no memory cgroup is mounted there; none is used", file=sys.stderr)
        return
    try:
        path = mount
        for part in (ROOT, f"uid_{uid}", f"job_{job}"):
            _delegate(path)
            path = f"{path}/{part}"
            for last in (False, False, True):
                try:
                    os.makedirs(path, mode=0o755, exist_ok=True)
                    break
                except FileNotFoundError:  # the end of the user's last job has just removed what is above
                    if last:
                        raise
        if megabytes:
            _write(f"{path}/{limit}", str(megabytes << 20))
    except OSError as error:
        raise NodeFault(f"memory cgroup {error.filename}: {error.strerror}") from None


def enter(mount: str, uid: int, job: int, pid: int) -> None:
    """Puts a process, and with it its later children, into the job's cgroup. Raises NodeFault."""
    if _limit_file(mount) is None:
        return
    try:
        _write(f"{mount}/{ROOT}/uid_{uid}/job_{job}/cgroup.procs", str(pid))
    except OSError as error:
        raise NodeFault(f"memory cgroup {error.filename}: {error.strerror}") from None


def remove(mount: str, job: int) -> None:
    """Removes the job's cgroup, whoever's it was, and what is empty above it. Raises OSError when
    processes are in.
    """
    root = f"{mount}/{ROOT}"
    if not os.path.isdir(root):
        return
    for user in os.listdir(root):
        path = f"{root}/{user}/job_{job}"
        if user.startswith("uid_") and os.path.isdir(path):
            _remove_empty(path)
            for parent in (f"{root}/{user}", root):
                try:
                    os.rmdir(parent)
                except OSError:
                    break  # another job is here


def _remove_empty(path: str, patience: float = 5.0) -> None:
    """Removes a cgroup; waits `patience` seconds for processes that are just ending. Raises OSError when some stay."""
    until = time.monotonic() + patience
    while True:
        try:
            os.rmdir(path)
            return
        except FileNotFoundError:
            return  # another epilog of this job was faster: emulated nodes share one tree
        except OSError as error:
            if error.errno != errno.EBUSY or time.monotonic() > until:
                raise
        time.sleep(0.05)


def _limit_file(mount: str) -> "str | None":
    """The file that limits memory in a cgroup of this mount, None when there is no memory controller."""
    if os.path.exists(f"{mount}/memory.usage_in_bytes"):
        return "memory.limit_in_bytes"
    try:
        with open(f"{mount}/cgroup.controllers", encoding="ascii") as file:
            return "memory.max" if "memory" in file.read().split() else None
    except OSError:
        return None


def _delegate(path: str) -> None:
    """On v2 a cgroup's children have the memory controller only if it says so."""
    control = f"{path}/cgroup.subtree_control"
    if os.path.exists(control):
        _write(control, "+memory")


def _write(path: str, text: str) -> None:
    with open(path, "w", encoding="ascii") as file:
        file.write(text)
