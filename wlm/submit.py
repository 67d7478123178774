"""`shifter-wlm submit`: run by the plugin as the user, where a job or a step is submitted.

Checks what was asked for, asks the gateway once for the image's identifier (with `--wait` it has the image pulled
first), and prints the variables that the job carries. Anything wrong is one line on stderr and exit status 1: nothing
is submitted then. After this no part of the job needs the gateway, and a tag that moves on does not move the job.
"""

import os
import subprocess
import sys

from runtime import gateway, munge, reference, udiroot
from wlm.failure import NodeFault, UserMistake
from wlm.request import JobRequest, check_image, check_text, parse_modules, parse_user_volumes, to_variables

TYPE_CHECKING = False
if TYPE_CHECKING:
    from runtime.udiroot import Udiroot
    from runtime.volumes import Volume

LOOKUP_FAILED = 2


class LookupFailed(Exception):
    """The image is not to be had."""


def main(arguments: "dict[str, str]") -> int:
    """Exit status; see the module."""
    try:
        conf = udiroot.read(arguments["config"], trusted=False)
        found = variables(arguments, conf)
        if "sshd" in arguments and "SHIFTER_IMAGE" in found:
            from wlm import sshd

            found["SHIFTER_SSHKEY"] = sshd.keys(munge.default_socket())
        lines = [f"{name}={check_text(name, value)}" for name, value in found.items()]
        print("\n".join(lines))
    except (LookupFailed, gateway.GatewayError) as error:
        print(f"shifter: {error}", file=sys.stderr)
        return LOOKUP_FAILED
    except (UserMistake, NodeFault, udiroot.ConfigInvalid, ValueError) as error:
        print(f"shifter: {error}", file=sys.stderr)
        return 1
    return 0


def variables(arguments: "dict[str, str]", conf: "Udiroot") -> "dict[str, str]":
    """The job's variables for what was asked.

    Volumes and modules that were not asked for come from the environment: a user's own defaults, or, for a step, what its
    job has. Without an image only what was asked for changes. Raises UserMistake, LookupFailed, GatewayError, ValueError.
    """
    volume, module = (
        check_text(name, arguments.get(part, os.environ.get(name, "")))
        for part, name in (("volume", "SHIFTER_VOLUME"), ("module", "SHIFTER_MODULE"))
    )
    volumes, modules = parse_user_volumes(volume), parse_modules(module, conf) if module else None
    check_sources(volumes)
    if "ccm" in arguments:
        if "image" in arguments:
            raise UserMistake("--ccm makes a container of the node itself: leave --image out")
        check_image("local", "/", conf)
        return to_variables(JobRequest("local", "/", "local:/", volumes, modules, True))
    if "image" not in arguments:
        changed = {"SHIFTER_VOLUME": ";".join(str(volume) for volume in volumes)} if "volume" in arguments else {}
        if "module" in arguments and modules is not None:
            changed["SHIFTER_MODULE"] = ",".join(modules) or "none"
        return changed
    asked = reference.parse(arguments["image"], conf.default_image_type)
    kind, identifier = identify(asked, conf, wait="wait" in arguments)
    return to_variables(JobRequest(kind, identifier, str(asked), volumes, modules))


def identify(asked: reference.Reference, conf: "Udiroot", *, wait: bool) -> "tuple[str, str]":
    """("id", identifier) or ("local", path): what nodes need to know. Raises UserMistake, LookupFailed, GatewayError."""
    if asked.kind in ("id", "local"):
        check_image(asked.kind, asked.tag, conf)
        return asked.kind, asked.tag
    client = gateway.Gateway(conf.image_gateway, conf.system, conf.gateway_timeout)
    try:
        return "id", str(client.lookup(asked.kind, asked.tag, lease=True)["id"])
    except gateway.NotFound as error:
        if not wait:
            raise LookupFailed(
                f"{error}; pull it first (shifterimg pull {asked}), or submit with --image-wait"
            ) from None
    pull(asked, conf)
    return "id", str(client.lookup(asked.kind, asked.tag, lease=True)["id"])


def pull(asked: reference.Reference, conf: "Udiroot") -> None:
    """Has the image pulled and shows how it goes, on stderr: stdout is read by the plugin. Raises LookupFailed."""
    program = os.path.join(conf.udi_root_path, "bin", "shifterimg")
    done = subprocess.run([program, "pull", str(asked)], stdout=sys.stderr, check=False)
    if done.returncode != 0:
        raise LookupFailed(f"{asked} could not be pulled: the line above says why")


def check_sources(volumes: "tuple[Volume, ...]") -> None:
    """Raises UserMistake for a volume whose source the user cannot see now: the job would fail on every node.

    Where only compute nodes have a path this is a refusal too, as the documentation has it: paths must exist at
    submission.
    """
    for volume in volumes:
        if volume.cache is not None:
            continue  # the source is made on the node
        try:
            os.stat(volume.source)
        except OSError as error:
            raise UserMistake(f"volume '{volume}': {volume.source}: {error.strerror}") from None
