"""`unsetupRoot`: take the prepared environment down, whole or half-done, from the batch system's epilog.

First no new start can join it, then its mounts go, the last made first; then images that the node has kept long enough. What
cannot be taken down (a process still works in it) is detached and named. Nothing that is not below udiMount is touched.
"""

import os
import sys

from runtime import __version__, nodestate
from runtime.holds import drop_idle, mounts, unmount
from runtime.udiroot import ConfigInvalid, Udiroot, read

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

USAGE = """\
usage: unsetupRoot

Take down the environment that setupRoot prepared on this node (for the batch system's epilog; root).
Images that have not been used for holdLinger seconds are unmounted too.

exit status: 0 all is gone, 2 something was in use (it is named on standard error)
"""


def clear(conf: Udiroot) -> list[str]:
    """Take down what is at udiMount; what was in use, a line each (it is detached all the same)."""
    nodestate.forget(conf)
    place = os.path.realpath(conf.udi_mount)
    below = [path for _, path in mounts("self") if path == place or path.startswith(place + "/")]
    if not below:
        return []
    busy = []
    for path in reversed(below):
        if not unmount(path):
            busy.append(f"{path} was in use{workers(place)}")
            unmount(path, lazy=True)
    return busy


def workers(place: str) -> str:
    """`: by process 1 (sh), ...` for the processes whose root or working directory is at `place`."""
    found = []
    for process in filter(str.isdigit, os.listdir("/proc")):
        try:
            links = [os.readlink(f"/proc/{process}/{name}") for name in ("root", "cwd")]
            with open(f"/proc/{process}/comm", encoding="utf-8", errors="replace") as file:
                name = file.read().strip()
        except OSError:
            continue
        if any(link == place or link.startswith(place + "/") for link in links):
            found.append(f"{process} ({name})")
    return f": by process {', '.join(found[:5])}" if found else ""


def main(argv: "Sequence[str]", configuration: str) -> int:
    """The program; its exit status."""
    if "--help" in argv or "-h" in argv:
        sys.stdout.write(USAGE)
        return 0
    if "--version" in argv:
        print(f"unsetupRoot {__version__}")
        return 0
    if argv:
        print(f"unsetupRoot: {argv[0]} is not known: it takes no arguments: see unsetupRoot --help", file=sys.stderr)
        return 1
    try:
        if os.geteuid() != 0:
            print("unsetupRoot: needs root: the batch system's epilog runs it", file=sys.stderr)
            return 1
        conf = read(configuration)
        left = clear(conf)
        drop_idle(conf)
    except ConfigInvalid as error:
        print(f"unsetupRoot: {error}", file=sys.stderr)
        return 2
    for line in left:
        print(f"unsetupRoot: {line}", file=sys.stderr)
    return 2 if left else 0
