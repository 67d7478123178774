"""`shifter-wlm extern`: run as root by the plugin beside the extern step's task, once the job's environment is ready.

Runs the site's extern_setup program, then, when the sshd is to belong to the extern step (extern_cgroup=1), starts it
in the cgroups of that step's task and stays as its parent, so that Slurm sees, accounts and ends it with the step.
"""

import os
import pwd
import sys

from runtime import udiroot
from wlm import child, sshd
from wlm.arguments import number
from wlm.failure import NodeFault, UserMistake
from wlm.request import from_variables
from wlm.state import State

SETUP_SECONDS = 60


def main(arguments: "dict[str, str]") -> int:
    """Exit status: 0; 1 with a line in the node's log otherwise. The job runs on either way."""
    try:
        conf = udiroot.read(arguments["config"])
        state = State(conf, number(arguments, "job"))
        uid = number(arguments, "uid")
        enter_cgroups(sibling())
        if "setup" in arguments:
            environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "SHIFTER_UDIMOUNT": conf.udi_mount}
            environment.update(SLURM_JOB_ID=str(state.job), SLURM_JOB_UID=str(uid))
            status, said = child.run([arguments["setup"]], environment, SETUP_SECONDS)
            if status != 0:
                raise NodeFault(f"{arguments['setup']} ended with {status}: {child.last_line(said, 'it said nothing')}")
        if "sshd" in arguments:
            account = pwd.getpwuid(uid)
            request = from_variables(state.variables(), conf, "")
            pid = sshd.start(
                conf, state, request,
                user=account.pw_name, uid=uid, gid=account.pw_gid, port=number(arguments, "sshd"),
            )  # fmt: skip
            os.waitpid(pid, 0)
    except (UserMistake, NodeFault, udiroot.ConfigInvalid, child.ChildFailed, OSError) as error:
        print(f"shifter: extern step: {error}", file=sys.stderr)
        return 1
    return 0


def sibling() -> int:
    """The extern step's task: the other child of the step's daemon, our parent; the daemon itself when it has none (yet)."""
    daemon = os.getppid()
    with open(f"/proc/{daemon}/task/{daemon}/children", encoding="ascii") as file:
        others = [int(word) for word in file.read().split() if int(word) != os.getpid()]
    return others[0] if others else daemon


def enter_cgroups(pid: int) -> None:
    """Moves this process into every cgroup of `pid` (cgroups(7)); where a hierarchy is not mounted there is nothing
    to enter.
    """
    mounts = {}
    with open("/proc/self/mounts", encoding="utf-8", errors="surrogateescape") as file:
        for line in file:
            _, where, kind, flags, *_ = line.split()
            if kind == "cgroup2":
                mounts[""] = where
            elif kind == "cgroup":
                mounts.update(dict.fromkeys(flags.split(","), where))
    with open(f"/proc/{pid}/cgroup", encoding="utf-8") as file:
        for line in file:
            _, controllers, path = line.rstrip("\n").split(":", 2)
            mount = mounts.get(controllers.split(",")[0])
            target = f"{mount}{path}/cgroup.procs"
            if mount and path != "/" and os.path.exists(target):
                with open(target, "w", encoding="ascii") as procs:
                    procs.write(str(os.getpid()))
