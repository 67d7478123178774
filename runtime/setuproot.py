"""`setupRoot`: prepare an environment at udiMount that every start of a job on this node joins, from the batch system's prolog.

It computes the same plan as a start and has the launcher execute it in the host's mount namespace, up to the moment before a
user's command would run. It looks nothing up: the identifier is the one that was found when the job was submitted. Done
twice for the same request it does nothing the second time; for another request, the environment that is there goes first.
The plan of a request is kept on the node: the next job that asks for the same is spared most of Python.
Exit status: 1 when the request cannot be, 2 when this node cannot.
"""

import _socket
import fcntl
import os
import sys

from runtime import __version__, keep, nodestate
from runtime.refusal import StartRefused
from runtime.udiroot import ConfigInvalid, Udiroot, read
from runtime.unsetuproot import clear

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from runtime.plan import Step

USAGE = """\
usage: setupRoot [options] TYPE IDENTIFIER

Prepare an environment that containers of a job join without a set-up of their own (for the batch system's prolog; root).

  TYPE IDENTIFIER    the image: docker, custom or id and its identifier; or local and a directory
  -u USER -U UID -G GID   for whom
  -v VOLUMES         the user's volumes, FROM:TO[:flag];...
  -m MODULES         the site's modules, comma-separated, or none
  -N "HOST/N ..."    hosts of the job and their tasks: becomes /var/hostsfile
  -s PUBLIC_KEY      becomes /opt/udiImage/etc/user_auth.pub
  --inject DIR       copy DIR/etc and DIR/opt/udiImage into the environment
  -V                 say more
  --help, --version

exit status: 0 done, 1 the request cannot be, 2 this node cannot
example: setupRoot -u alice -U 1000 -G 1000 -v /scratch/alice:/data id 3f1c...
"""


class NodeFailed(Exception):
    """This node cannot prepare the environment; the launcher has said why."""


def prepare(argv: "Sequence[str]", conf: Udiroot) -> bool:
    """Prepare the environment; False when it is there already. Raises StartRefused, NodeFailed."""
    nodestate.make(conf)
    with open(f"{conf.loop_mount}/setup.lock", "w", encoding="ascii") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        key = ["setup", *argv]
        kept = keep.read_setup(conf, key)
        if kept is not None:
            what, who, steps = kept
            try:
                return execute(conf, what, who, lambda descriptor: send(descriptor, steps))
            except NodeFailed:
                pass  # it is planned anew, and whose fault it is will be seen
        from runtime import setuproot_request
        from runtime.channel import Launcher

        request, record, what = setuproot_request.wanted(setuproot_request.parse_arguments(argv, conf), conf)
        who = [str(request.uid), str(request.gid), ",".join(map(str, request.groups))]
        planned: list[Step] = []
        spooled: list[str] = []  # texts too long for a plan

        def converse(descriptor: int) -> None:
            launcher = Launcher(descriptor)
            try:
                planned.extend(setuproot_request.converse(launcher, request, conf, record, spooled))
            finally:
                launcher.socket.close()

        try:
            made = execute(conf, what, who, converse)
        finally:
            for path in spooled:
                os.unlink(path)
        if made and record.format != "local" and not request.inject and not spooled:
            keep.write_setup(conf, key, what, who, keep.needs(conf, record), planned)
        return made


def send(descriptor: int, steps: bytes) -> None:
    """Have steps executed that are in wire form already."""
    launcher = _socket.socket(fileno=descriptor)
    try:
        launcher.sendall(steps)
    finally:
        launcher.close()


def execute(conf: Udiroot, what: nodestate.Prepared, who: list[str], converse: "Callable[[int], None]") -> bool:
    """Have the launcher prepare `what` for `who` (uid, gid, groups), unless it is there; False when it is.

    `converse` sends the steps over a descriptor that it closes. Raises StartRefused, NodeFailed; a half-done environment is
    cleared.
    """
    there = nodestate.prepared(conf)
    if there is not None and there.changed(root="") == what:
        return False
    left = clear(conf)
    if left:
        raise StartRefused(f"{conf.udi_mount} holds another environment that is in use: {left[0]}", True)
    prefix = os.path.dirname(os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))
    ours, theirs = _socket.socketpair()
    command = [f"{prefix}/bin/shifter", "--steps", *who]
    start = [(os.POSIX_SPAWN_DUP2, theirs.fileno(), 0)]
    process = os.posix_spawn(command[0], command, {"LC_ALL": "C.UTF-8"}, file_actions=start)
    theirs.close()
    try:
        converse(ours.detach())
    except ConnectionError:
        pass  # the launcher has said what it could not do; its status follows
    finally:
        _, status = os.waitpid(process, 0)
    if status != 0:
        clear(conf)
        raise NodeFailed
    nodestate.record(conf, what.changed(root=nodestate.root_identity(conf.udi_mount)))
    return True


def main(argv: "Sequence[str]", configuration: str) -> int:
    """The program; its exit status."""
    if "--help" in argv or "-h" in argv:
        sys.stdout.write(USAGE)
        return 0
    if "--version" in argv:
        print(f"setupRoot {__version__}")
        return 0
    try:
        if os.geteuid() != 0:
            raise StartRefused("needs root: the batch system's prolog runs it")
        conf = read(configuration)
        made = prepare(argv, conf)
        if "-V" in argv:
            print(f"setupRoot: {conf.udi_mount}: {'prepared' if made else 'is prepared already'}", file=sys.stderr)
    except StartRefused as error:
        print(f"setupRoot: {error}", file=sys.stderr)
        return 2 if error.node else 1
    except ConfigInvalid as error:
        print(f"setupRoot: {error}", file=sys.stderr)
        return 2
    except NodeFailed:
        return 2
    return 0
