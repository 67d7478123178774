"""The sshd in a job's containers: one a node, for one user and one key, from the job's start to its end.

`keys` makes, where the job is submitted, a key pair for the user and one for the hosts, sealed for root's eyes on the
nodes; with them `inject` fills the directory that setupRoot puts into the container: sshd_config, ssh_config,
known_hosts, the keys. `start` runs the sshd as the user, through `shifter`, inside the prepared container: it has no
rights that the user's own processes lack. The programs are the site's (wlm/sshd_bundle.py), with loader and libraries
of their own, so any image will do. `stop` ends it and all that was started through it.
"""

import errno
import fcntl
import os
import time

from wlm.failure import NodeFault, UserMistake
from wlm.remains import inside
from wlm.state import State

TYPE_CHECKING = False
if TYPE_CHECKING:
    from runtime.udiroot import Udiroot
    from wlm.request import JobRequest

PROGRAMS = "/opt/udiImage/ssh"  # in the container, from optUdiImage
JOB = "/opt/udiImage/job"  # in the container, from `inject`
START_SECONDS = 10.0
KILL = 9  # importing signal costs as much as all of this module


def keys(munge_socket: "str | None" = None) -> str:
    """A sealed pair of new private keys, the user's and the hosts', OpenSSH's text one after the other. Raises
    NodeFault, UserMistake.
    """
    import subprocess  # at submission only
    import tempfile

    from wlm.sealed import seal

    made = b""
    with tempfile.TemporaryDirectory(prefix="shifter-") as directory:
        for name in ("id", "host_key"):
            argv = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "shifter", "-f", f"{directory}/{name}"]
            try:
                subprocess.run(argv, check=True, capture_output=True)
            except (OSError, subprocess.CalledProcessError) as error:
                raise UserMistake(f"no key for the job's sshd: {error}: is ssh-keygen installed here?") from None
            for part in (name, f"{name}.pub"):
                with open(f"{directory}/{part}", "rb") as file:
                    made += file.read() + b"\0"
    return seal(made, munge_socket)


def inject(
    directory: str, sealed: str, conf: "Udiroot", *,
    user: str, uid: int, gid: int, port: int, nodes: str, environment: "list[str]",
) -> None:  # fmt: skip
    """Fills `directory` (root's, 0700) with what the container gets. Raises UserMistake for a credential that is not
    this user's.
    """
    from wlm import session
    from wlm.sealed import unseal

    try:
        payload, owner = unseal(sealed, munge_socket())
        private, public, host_private, host_public, _ = payload.decode("ascii").split("\0")
    except ValueError as error:
        raise UserMistake(f"the job's ssh key cannot be read ({error}): submit the job again") from None
    if owner not in (uid, 0):
        raise UserMistake("the job's ssh key is another user's: submit the job again")
    os.makedirs(directory, mode=0o700)
    names = [item.partition("/")[0] for item in nodes.split()]
    host_key = " ".join(host_public.split()[:2])
    files = {
        f"{JOB}/id": (private, 0o600),
        f"{JOB}/id.pub": (public, 0o644),
        f"{JOB}/authorized_keys": (public, 0o644),
        f"{JOB}/host_key": (host_private, 0o600),
        f"{JOB}/known_hosts": (f"* {host_key}\n", 0o644),
        "/etc/ssh/ssh_config": (ssh_config(user, port, names), 0o644),
    }
    account = session.account(uid, conf)
    if account is not None and os.path.exists(f"{conf.opt_udi_image}/ssh/sh"):  # not in bundles of an earlier version
        files[f"{JOB}/shell"] = session.shell(account.shell or "/bin/sh", f"{PROGRAMS}/sh", environment), 0o755
        files["/etc/passwd"] = session.passwd(account, f"{JOB}/shell", conf), 0o644
        loader = session.loader_variables(environment)
        environment = [item for item in environment if item not in loader]
    files[f"{JOB}/sshd_config"] = sshd_config(user, port, own_addresses(), environment), 0o644
    for name, (text, mode) in files.items():
        path = directory + name
        os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        with open(descriptor, "w", encoding="utf-8", errors="surrogateescape") as file:
            file.write(text)
            os.fchmod(file.fileno(), mode)
            if mode == 0o600:
                os.fchown(file.fileno(), uid, gid)


def sshd_config(user: str, port: int, addresses: "list[str]", environment: "list[str]") -> str:
    """man sshd_config. One user, one key; no root, no password. A session has the image's environment."""
    listen = "".join(f"ListenAddress {address}\n" for address in addresses)
    kept = [item for item in environment if item.isprintable() and '"' not in item and "\\" not in item and "=" in item]
    setenv = "SetEnv " + " ".join(f'"{item}"' for item in kept) + "\n" if kept else ""
    return (
        f"Port {port}\n{listen}"
        f"HostKey {JOB}/host_key\nAuthorizedKeysFile {JOB}/authorized_keys\nAllowUsers {user}\n"
        "PermitRootLogin no\nPasswordAuthentication no\nKbdInteractiveAuthentication no\nUsePAM no\n"
        "PidFile none\nPrintMotd no\nX11Forwarding no\n"
        f"Subsystem sftp {PROGRAMS}/sftp-server\n{setenv}"
    )


def ssh_config(user: str, port: int, nodes: "list[str]") -> str:
    """man ssh_config. Only the job's own nodes are treated specially; ~/.ssh/config still comes first."""
    return (
        f"Host {' '.join(nodes)}\n"
        f"    Port {port}\n    User {user}\n    IdentityFile {JOB}/id\n    IdentitiesOnly yes\n"
        f"    UserKnownHostsFile {JOB}/known_hosts\n    StrictHostKeyChecking yes\n    LogLevel ERROR\n"
    )


def own_addresses() -> "list[str]":
    """The addresses to which this node's name resolves: the sshd listens there, not on networks that have no use for
    it.
    """
    import socket

    name = os.environ.get("SLURMD_NODENAME") or os.uname().nodename
    try:
        return sorted({str(item[4][0]) for item in socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)})
    except OSError:
        return []  # the sshd then listens everywhere


def munge_socket() -> "str | None":
    """The socket of the munged that Slurm uses: AuthInfo=socket= of slurm.conf; None for munge's own default."""
    try:
        with open(os.environ.get("SLURM_CONF", "/etc/slurm/slurm.conf"), encoding="utf-8", errors="replace") as file:
            for line in file:
                key, _, value = line.strip().partition("=")
                if key.lower() == "authinfo" and "socket=" in value:
                    return value.partition("socket=")[2].split(",")[0]
    except OSError:
        return None
    return None


def start(conf: "Udiroot", state: State, request: "JobRequest", *, user: str, uid: int, gid: int, port: int) -> int:
    """Starts the sshd as the user and returns its pid once it answers. Raises NodeFault with what it said, UserMistake
    where it is the image that keeps it from running.
    """
    environment = {"PATH": "/usr/bin:/bin", "SHIFTER_IMAGE": request.identifier, "SHIFTER_IMAGETYPE": request.kind}
    environment["SHIFTER_VOLUME"] = request.volume_text()
    if request.modules is not None:
        environment["SHIFTER_MODULE"] = request.module_text()
    argv = [f"{conf.udi_root_path}/bin/shifter", "--unset-env=LD_*,GLIBC_TUNABLES"]
    argv += [f"{PROGRAMS}/sshd", "-D", "-e", "-f", f"{JOB}/sshd_config"]
    log = f"{state.directory}/{state.job}.sshd.log"
    child = os.fork()
    if child == 0:
        _become(argv, environment, log, user, uid, gid)
    state.write("sshd", f"{child} {_started(child)}")
    addresses = own_addresses() or ["127.0.0.1"]
    deadline = time.monotonic() + START_SECONDS
    while not all(_answers(address, port) for address in addresses):
        ended = os.waitpid(child, os.WNOHANG)[0] == child
        if ended or time.monotonic() > deadline:
            with open(log, encoding="utf-8", errors="replace") as file:
                lines = file.read().strip().splitlines()
            stop(conf, state)
            said = lines[-1] if lines else "it said nothing"
            if said.startswith("shifter: cannot ") and f": {os.strerror(errno.EACCES)}" in said:
                raise UserMistake("the sshd cannot run in this image: its directories are closed to its user")
            raise NodeFault(f"the sshd did not start: {said}")
        time.sleep(0.005)
    return child


def _become(argv: "list[str]", environment: "dict[str, str]", log: str, user: str, uid: int, gid: int) -> None:
    """In the child: becomes the user and the program. Never returns."""
    try:
        # Slurm may have started us with 0, 1 or 2 closed: neither file may get such a number, or the other's copy closes it.
        output = fcntl.fcntl(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), fcntl.F_DUPFD, 3)
        empty = fcntl.fcntl(os.open("/dev/null", os.O_RDONLY), fcntl.F_DUPFD, 3)
        os.setsid()
        os.chdir("/")
        for source, target in ((empty, 0), (output, 1), (output, 2)):
            os.dup2(source, target)
        os.closerange(3, 256)
        os.initgroups(user, gid)
        os.setresgid(gid, gid, gid)
        os.setresuid(uid, uid, uid)
        os.execve(argv[0], argv, environment)  # noqa: S606 — no shell is the point
    except OSError as error:
        os.write(2, f"{argv[0]}: {error.strerror}\n".encode())
    finally:
        os._exit(127)


def stop(conf: "Udiroot", state: State) -> None:
    """Ends the sshd and what else of the job works in the prepared container (wlm/remains.py). Raises NodeFault when one
    survives SIGKILL.
    """
    user = state.read("user")
    pid, _, begun = state.read("sshd").partition(" ")
    deadline = time.monotonic() + START_SECONDS
    while True:
        victims = set(inside(conf.udi_mount, user))
        if pid.isdigit() and _started(int(pid)) == begun:
            victims.add(int(pid))
        if not victims:
            break
        if time.monotonic() > deadline:
            raise NodeFault(f"processes {' '.join(map(str, sorted(victims)))} in {conf.udi_mount} do not end")
        for victim in victims:
            try:
                os.kill(victim, KILL)
            except ProcessLookupError:
                continue
        time.sleep(0.005)
    log = f"{state.directory}/{state.job}.sshd.log"
    if os.path.exists(log):
        os.unlink(log)


def _started(pid: int) -> str:
    """The start time of a living process, "" when there is none of that pid, or only its remains."""
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as file:
            fields = file.read().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] == "Z" else fields[19]


def _answers(address: str, port: int) -> bool:
    import socket

    try:
        with socket.create_connection((address, port), timeout=1.0):
            return True
    except OSError:
        return False
