"""`shifter-wlm prolog`: run as root on every node of a job that has its nodes to itself, before the job starts there.

Makes the job's container environment with setupRoot, and what goes with it: the sshd, the memory cgroup. It is
idempotent, and removes first what a crashed job left. Variables of the job are a user's text and are checked again
here. Exit status: 0 done; 2 the user's mistake and 3 this node's fault, both with the reason on stdout and written
down for the job's steps; 1 when even that was not possible (Slurm then requeues the job).
"""

import errno
import os
import pwd

from runtime import setuproot, udiroot
from wlm import child, memory_cgroup, sshd
from wlm.arguments import number
from wlm.epilog import remove, remove_tree
from wlm.failure import NodeFault, UserMistake
from wlm.request import JobRequest, from_variables, to_variables
from wlm.state import State

TYPE_CHECKING = False
if TYPE_CHECKING:
    from runtime.udiroot import Udiroot

USER_MISTAKE, NODE_FAULT = 2, 3
IN_THE_IMAGE = (
    *(f"cannot make a {what} of the container: " for what in ("directory", "file", "link")),
    *(f"cannot open a {what} of the container: " for what in ("directory", "mount point")),
    "cannot write in the container: ",
)  # what the launcher says of a place in an image that is not as containers need it
NODES_OWN = tuple(
    map(os.strerror, (errno.ENOMEM, errno.ENOSPC, errno.EIO, errno.EMFILE, errno.ENFILE))
)  # whatever a job asks for


def main(arguments: "dict[str, str]") -> int:
    """Exit status; see the module."""
    try:
        conf = udiroot.read(arguments["config"])
        state = State(conf, number(arguments, "job"))
        state.begin(number(arguments, "uid"))
        try:
            prepare(arguments, conf, state)
        except (UserMistake, NodeFault) as error:
            reason = f"job {state.job}: {error}"
            state.write("failed", reason)
            print(f"shifter: {reason}")
            return USER_MISTAKE if isinstance(error, UserMistake) else NODE_FAULT
    except (udiroot.ConfigInvalid, OSError) as error:
        print(f"shifter: prolog: {error}")
        return 1
    return 0


def prepare(arguments: "dict[str, str]", conf: "Udiroot", state: State) -> None:
    """Raises UserMistake, NodeFault."""
    for left in state.others():  # their epilog never ran: this node is ours alone now
        remove(conf, State(conf, left), arguments.get("memory-cgroup", ""))
    uid, gid = number(arguments, "uid"), number(arguments, "gid")
    try:
        user = pwd.getpwuid(uid).pw_name
    except KeyError:
        raise NodeFault(f"uid {uid} is not known on this node") from None
    request = from_variables(os.environ, conf)
    if request.ccm and "ccm" not in arguments:
        raise UserMistake("--ccm is not enabled here (enable_ccm=1 in plugstack.conf)")
    setup(conf, state, request, arguments, user=user, uid=uid, gid=gid)
    if "memory-cgroup" in arguments:
        memory_cgroup.make(arguments["memory-cgroup"], uid, state.job, int(arguments.get("memory", "0")))
    state.ready(to_variables(request))
    if "sshd" in arguments and "sshd-later" not in arguments:
        pid = sshd.start(conf, state, request, user=user, uid=uid, gid=gid, port=number(arguments, "sshd"))
        if "memory-cgroup" in arguments:
            memory_cgroup.enter(arguments["memory-cgroup"], uid, state.job, pid)
    if request.ccm:
        state.write("ccm", "1")


def setup(
    conf: "Udiroot", state: State, request: JobRequest, arguments: "dict[str, str]", *, user: str, uid: int, gid: int
) -> None:
    """Runs setupRoot. Raises UserMistake (its exit status 1) or NodeFault (any other), with its line."""
    nodes = arguments.get("nodes", "")
    argv = ["-u", user, "-U", str(uid), "-G", str(gid), "-N", nodes]
    if request.volumes:
        argv += ["-v", request.volume_text()]
    if request.modules is not None:
        argv += ["-m", request.module_text()]
    injected = f"{state.directory}/{state.job}.inject"
    remove_tree(injected)  # of a prolog that was killed
    try:
        if "sshd" in arguments:
            sshd.inject(
                injected, os.environ.get("SPANK_SHIFTER_SSHKEY", ""), conf,
                user=user, uid=uid, gid=gid, port=number(arguments, "sshd"), nodes=nodes,
                environment=image_environment(conf, request),
            )  # fmt: skip
            argv += ["--inject", injected]
        status, said = child.call(setuproot.main, [*argv, request.kind, request.identifier], conf.path)
    finally:
        remove_tree(injected)
    if status != 0:
        reason = child.last_line(said, f"setupRoot ended with status {status}")
        reason = reason.removeprefix("setupRoot: ").removeprefix("shifter: ")
        raise UserMistake(reason) if status == 1 or asked_for(reason, request) else NodeFault(reason)


def asked_for(reason: str, request: JobRequest) -> bool:
    """Whether it is the job's volumes or image that the launcher could not do, as its line says: another job would not meet it.

    A perNodeCache of a size that no disk has; a volume that went after it was looked at; an image with a directory where
    a file of the container belongs. Without this a user could take node after node out of service.
    """
    if reason.startswith("cannot make a perNodeCache"):
        return any(volume.cache is not None for volume in request.volumes)
    if any(reason.startswith(f"cannot mount {volume.source} at ") for volume in request.volumes):
        return True
    return reason.startswith(IN_THE_IMAGE) and not reason.endswith(NODES_OWN)


def image_environment(conf: "Udiroot", request: JobRequest) -> "list[str]":
    """The image's ENV, for sessions of the sshd: what the gateway left beside the image, [] when it left nothing."""
    if request.kind != "id":
        return []
    import json  # only where there is an sshd

    try:
        with open(f"{conf.image_path}/{request.identifier}.json", encoding="utf-8") as file:
            return [item for item in json.load(file).get("env", []) if isinstance(item, str)]
    except (OSError, ValueError):
        return []
