"""`shifter-wlm VERB ...`: the programs that the SPANK plugin, and prolog and epilog scripts of other workload
managers, call.

submit runs as the user where a job is submitted; prolog, epilog and extern run as root on a node. Only the verb's
module is imported: each runs once a job on every node of it.
"""

import os
import sys

from wlm.arguments import ArgumentsInvalid, parse

VALUES = {
    "submit": ("config", "image", "volume", "module"),
    "prolog": ("config", "job", "uid", "gid", "nodes", "memory", "sshd", "memory-cgroup"),
    "epilog": ("config", "job", "memory-cgroup"),
    "extern": ("config", "job", "uid", "setup", "sshd"),
}
FLAGS = {"submit": ("ccm", "wait", "sshd"), "prolog": ("sshd-later", "ccm")}
USAGE = "usage: shifter-wlm submit|prolog|epilog|extern --config UDIROOT.CONF ...; see docs/slurm.md"


KEPT = ("SLURM_CONF", "SLURMD_NODENAME")


def clean_environment() -> None:
    """As root: drops every variable but the few that are read here. A job's user chooses SPANK_ variables, and so their names."""
    for name in list(os.environ):
        if name not in KEPT and not name.startswith("SPANK_SHIFTER_"):
            del os.environ[name]
    os.environ["PATH"] = "/usr/sbin:/usr/bin:/sbin:/bin"


def main(argv: "list[str]") -> int:
    """Runs a verb. Exit status: the verb's; 1 for a wrong command line."""
    if len(argv) < 1 or argv[0] not in VALUES:
        print(USAGE, file=sys.stderr)
        return 0 if argv[:1] in (["--help"], ["-h"]) else 1
    verb = argv[0]
    try:
        arguments = parse(argv[1:], VALUES[verb], FLAGS.get(verb, ()))
        if "config" not in arguments:
            raise ArgumentsInvalid("argument --config is missing")
        if verb == "submit":
            from wlm import submit

            return submit.main(arguments)
        clean_environment()
        if verb == "prolog":
            from wlm import prolog

            return prolog.main(arguments)
        if verb == "epilog":
            from wlm import epilog

            return epilog.main(arguments)
        from wlm import extern

        return extern.main(arguments)
    except ArgumentsInvalid as error:
        print(f"shifter-wlm {verb}: {error}", file=sys.stderr)
        return 1
