"""What a session over a job's sshd begins with, in an image that need not have anything: a shell, and the image's LD_ variables.

OpenSSH refuses users whose shell is not there, and runs every command by it. Images have /bin/sh at most (alpine) or none
(distroless), users have /bin/bash. So in the containers of jobs with an sshd the user's shell is a script of ours, run by the
sh that came with the sshd; it goes on with the user's own shell where the image has that, else with the image's /bin/sh, else
with itself. What the image sets for its programs' dynamic loader comes into force only there: the sshd's programs have
libraries of their own, which another image's could not be mixed with.
"""

from runtime.identity import find_user, passwd_file
from runtime.view import Node

TYPE_CHECKING = False
if TYPE_CHECKING:
    from runtime.identity import User
    from runtime.udiroot import Udiroot

LOADERS = ("LD_", "GLIBC_TUNABLES=")  # ld.so(8): what the loader of every program heeds


def loader_variables(environment: "list[str]") -> "list[str]":
    """Those of an image's NAME=VALUE that its dynamic loader heeds."""
    return [item for item in environment if item.startswith(LOADERS)]


def shell(own: str, sh: str, environment: "list[str]") -> str:
    """The script: `own` is the user's shell, `sh` one that is always there, `environment` the image's."""
    exports = "".join(
        f"export {name}={quote(value)}\n"
        for name, _, value in (item.partition("=") for item in loader_variables(environment))
        if name.isidentifier() and value.isprintable()
    )
    # A shell without arguments is a session of its own, where sshd would have begun its name with a dash.
    return (
        f"#!{sh}\n"
        f"[ $# -gt 0 ] || set -- -l\n"
        f"for SHELL in {quote(own)} /bin/sh; do\n"
        '    [ -x "$SHELL" ] && break\n'
        f"    SHELL={sh}\n"
        "done\n"
        "export SHELL\n"
        f'[ "$SHELL" = {sh} ] && exec {sh} "$@"\n'
        f'{exports}exec "$SHELL" "$@"\n'
    )


def quote(text: str) -> str:
    """A word of a shell. shlex costs more to import than all of this."""
    return "'" + text.replace("'", "'\\''") + "'"


def account(uid: int, conf: "Udiroot") -> "User | None":
    """The user's entry, as containers get it."""
    return find_user(uid, conf, Node(0, 0, conf.etc_path))


def passwd(user: "User", shell: str, conf: "Udiroot") -> str:
    """The container's /etc/passwd, with another shell for the user."""
    return passwd_file(user.changed(shell=shell), conf, Node(0, 0, conf.etc_path))
