"""`shifter-wlm epilog`: run as root on a node when a job for which the prolog began something has ended there.

Ends the job's sshd and all it started, removes the container environment with unsetupRoot, and the memory cgroup. It
takes away what a half-done prolog left too, and may be repeated. Exit status 0 when nothing is left; 1, with what is
left on stdout, otherwise: then the node must not get another job.
"""

import os

from runtime import udiroot, unsetuproot
from wlm import child, memory_cgroup, sshd
from wlm.arguments import number
from wlm.failure import NodeFault
from wlm.state import State

TYPE_CHECKING = False
if TYPE_CHECKING:
    from runtime.udiroot import Udiroot


def main(arguments: "dict[str, str]") -> int:
    """Exit status; see the module."""
    try:
        conf = udiroot.read(arguments["config"])
        state = State(conf, number(arguments, "job"))
        remove(conf, state, arguments.get("memory-cgroup", ""))
    except (udiroot.ConfigInvalid, NodeFault, OSError) as error:
        print(f"shifter: epilog: {error}")
        return 1
    return 0


def remove(conf: "Udiroot", state: State, memory: str = "") -> None:
    """Ends what is left of the job in its environment and removes that, and its cgroup below `memory` when that is given.

    The state file goes last. Raises NodeFault, OSError.
    """
    sshd.stop(conf, state)
    status, said = child.call(unsetuproot.main, [], conf.path)
    if status != 0:
        raise NodeFault(child.last_line(said, f"unsetupRoot ended with status {status}"))
    remove_tree(f"{state.directory}/{state.job}.inject")
    if memory:
        memory_cgroup.remove(memory, state.job)
    state.end()


def remove_tree(directory: str) -> None:
    """Removes a directory of ours, if it is there; nothing in it is a user's to change."""
    for path, directories, files in os.walk(directory, topdown=False):
        for name in files:
            os.unlink(f"{path}/{name}")
        for name in directories:
            os.rmdir(f"{path}/{name}")
    if os.path.isdir(directory):
        os.rmdir(directory)
