"""`shifter --help` and `--version`; run without privilege."""

import sys

from runtime import __version__

USAGE = """\
usage: shifter [options] [command [argument ...]]

Run a command in a container made from an image of this system. Without a command: a shell.

  -i, --image [TYPE:]NAME[:TAG]  the image; types: docker (default), custom, id (identifier), local (directory)
  -V, --volume FROM:TO[:ro]      show the host's FROM at TO; repeat it, or separate several by ;
  -e, --env NAME=VALUE           set a variable (repeat it); NAME= sets it to nothing
      --env-file FILE            set the variables of FILE (NAME=VALUE lines)
  -E, --clearenv                 start from the image's environment only
      --keep-env NAMES           ... and these of the caller's (comma-separated, patterns such as SLURM_*)
      --unset-env PATTERNS       remove variables (comma-separated patterns)
      --entrypoint[=COMMAND]     run the image's entry point, or COMMAND, with the arguments
  -w, --workdir[=DIR]            start in DIR, or in the image's working directory (default: the current one)
  -m, --module NAMES             the site's modules to use (comma-separated), or none
      --gpu[=all|none|0,1]       give the container these GPUs
      --userns                   without privilege, in a user namespace (as where shifter is not setuid)
      --plan, --dry-run          print the steps of the start instead of doing them; --json: as JSON
      --check                    is this node fit for containers?
  -v, --verbose                  say more
  -h, --help    --version

The image may also be named by SHIFTER, or SHIFTER_IMAGE and SHIFTER_IMAGETYPE; volumes by SHIFTER_VOLUME, modules by
SHIFTER_MODULE. The exit status is the command's; 127: the command cannot be run; 1: the container cannot be started.

examples:
  shifter --image=docker:alpine:3.20 cat /etc/os-release
  shifter --image=docker:ubuntu:24.04 --volume=/scratch/$USER/run1:/data ./solver /data/input
"""


def main(_config: str = "") -> None:
    """Print the help."""
    sys.stdout.write(USAGE)


def version(_config: str = "") -> None:
    """Print the version."""
    sys.stdout.write(f"shifter {__version__}\n")
