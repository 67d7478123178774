"""A start without privilege: the same plan, as far as a user namespace can carry it.

`opening` shows the image by FUSE, or takes a directory; `adapt` changes the steps of an ordinary plan: binds are recursive
(the kernel does not let a user uncover what is mounted below), the host's /proc is bound, and what needs root is left
out and said, or refused where the container would not be what was asked for.
"""

import os

from runtime.plan import Begin, Bind, Fuse, Local, NodeDisk, Proc, RootHook, Say, Step
from runtime.refusal import StartRefused

TYPE_CHECKING = False
if TYPE_CHECKING:
    from runtime.sidecar import ImageRecord
    from runtime.udiroot import Udiroot

PROGRAMS = {"squashfs": ("squashfuse_ll", "squashfuse"), "erofs": ("erofsfuse",), "xfs": ()}
DIRECTORIES = ("/usr/bin", "/bin", "/usr/local/bin", "/usr/sbin", "/sbin")


def opening(conf: "Udiroot", record: "ImageRecord") -> Step:
    """The step that shows the image. Raises StartRefused: no program for its format, or no /dev/fuse for users."""
    if record.format == "local":
        return Local(record.path)
    if PROGRAMS[record.format] and (closed := fuse_closed()):
        raise StartRefused(f"image {record.id}: {closed}, or use --image=local:DIR")
    for name in PROGRAMS[record.format]:
        for directory in DIRECTORIES:
            if os.access(f"{directory}/{name}", os.X_OK):
                return Fuse(f"{directory}/{name}", record.path, place(conf))
    wanted = " or ".join(PROGRAMS[record.format]) or "a setuid shifter"
    raise StartRefused(
        f"image {record.id}: {record.format} cannot be mounted without privilege: install {wanted}, or use --image=local:DIR"
    )


def fuse_closed() -> str:
    """Why the caller cannot use FUSE, and what to do; "" when nothing is in the way."""
    if not os.path.exists("/dev/fuse"):
        return "/dev/fuse is missing: have an administrator load the fuse module"
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        return "/dev/fuse is not yours to open: have an administrator chmod 666 /dev/fuse, as udev does"
    return ""


def place(conf: "Udiroot") -> str:
    """A directory that exists, to build the root on in a namespace of one's own."""
    return conf.udi_mount if os.path.isdir(conf.udi_mount) else "/mnt"


def adapt(steps: "list[Step]", conf: "Udiroot") -> "list[Step]":
    """An ordinary plan's steps as a user can do them. Raises StartRefused."""
    out: list[Step] = []
    for step in steps:
        if isinstance(step, Begin):
            out.append(step.changed(udi_mount=place(conf)))
        elif isinstance(step, Bind) and step.origin == "host" and "rec" not in step.flags.split(","):
            out.append(step.changed(flags=f"{step.flags},rec".lstrip(",")))
        elif isinstance(step, Proc):
            out.append(Bind("root", "host", "/proc", step.target, "rec"))
        elif isinstance(step, RootHook):
            out.append(Say(f"warning: hook {step.script} needs root: it is left out"))
        elif isinstance(step, NodeDisk):
            raise StartRefused("perNodeCache needs a setuid shifter: use a directory of yours as a volume")
        else:
            out.append(step)
    return out
