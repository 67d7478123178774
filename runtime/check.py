"""`shifter --check`: is this node fit for containers? One line a condition: ok, or what to do.

Run without privilege (the launcher gives it up before), so it shows what a user meets; root sees the held images too. It
changes nothing. Exit status 0 when everything that a start needs is there.
"""

import os
import sys

from runtime.record import Record
from runtime.udiroot import ConfigInvalid, Udiroot, read

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

KERNEL = (5, 12)
"""mount_setattr(2); the rest of the interface is older."""


class Finding(Record):
    """A line of the report. `needed`: whether starts fail without it."""

    what: str
    good: bool
    text: str
    needed: bool = True

    def line(self) -> str:
        mark = "ok  " if self.good else "FAIL" if self.needed else "note"
        return f"{mark} {self.what}: {self.text}"


def kernel(_conf: Udiroot) -> "Iterator[Finding]":
    """Version, file systems, loop devices."""
    release = os.uname().release
    numbers = tuple(int(part) for part in release.split("-")[0].split(".")[:2] if part.isdigit())
    good = numbers >= KERNEL
    yield Finding("kernel", good, release if good else f"{release}: {'.'.join(map(str, KERNEL))} or newer is needed")
    with open("/proc/filesystems", encoding="ascii") as file:
        known = {line.split()[-1] for line in file}
    for name, needed in (("squashfs", True), ("overlay", True), ("tmpfs", True), ("erofs", False), ("xfs", False)):
        hint = f"not in this kernel: load its module at boot (modprobe {name})"
        yield Finding(f"file system {name}", name in known, "known" if name in known else hint, needed)
    if not os.path.exists("/dev/loop-control"):
        yield Finding("loop devices", False, "/dev/loop-control is missing: load the loop module at boot")
        return
    try:
        with open("/sys/module/loop/parameters/max_loop", encoding="ascii") as file:
            most = int(file.read())
    except (OSError, ValueError):
        most = 0
    used = sum(os.path.exists(f"/sys/block/{name}/loop/backing_file") for name in os.listdir("/sys/block"))
    limit = f", made as needed ({most} at boot)" if most else ", made as needed"
    yield Finding("loop devices", True, f"{used} in use{limit}")


def places(conf: Udiroot) -> "Iterator[Finding]":
    """Directories and programs that udiRoot.conf names."""
    for key, path in (("udiMount", conf.udi_mount), ("loopMount", conf.loop_mount), ("etcPath", conf.etc_path)):
        if path:
            yield owned(key, path)
    listable = os.access(conf.image_path, os.R_OK | os.X_OK)
    yield Finding(
        "imagePath",
        os.path.isdir(conf.image_path),
        conf.image_path if listable else f"{conf.image_path}: not a directory here: mount it",
    )
    programs = [("sitePreMountHook", conf.site_pre_mount_hook), ("sitePostMountHook", conf.site_post_mount_hook)]
    programs += [(f"module_{module.name}_roothook", module.roothook) for module in conf.modules if module.enabled]
    for key, path in programs:
        if path:
            yield owned(key, path)
    directories = [("optUdiImage", conf.opt_udi_image), ("perNodeCachePath", conf.per_node_cache_path)]
    directories += [(f"module_{module.name}_copyPath", module.copy_path) for module in conf.modules if module.enabled]
    for key, path in directories:
        if path:
            there = os.path.isdir(path)
            yield Finding(key, there, path if there else f"{path} is no directory: make it, or take it out")
    volumes = [("siteFs", volume) for volume in conf.site_fs]
    for module in conf.modules:
        volumes += [(f"module_{module.name}_siteFs", volume) for volume in module.site_fs if module.enabled]
    for key, volume in volumes:
        there = os.path.exists(volume.source)
        yield Finding(
            f"{key} {volume}", there, "there" if there else f"{volume.source} is missing: mount it, or take it out"
        )


def owned(key: str, path: str) -> Finding:
    """Whether `path`, and every directory on the way to it, is root's alone to change."""
    ends = (path, os.path.realpath(path))
    try:
        for place in dict.fromkeys((*ends, *above(ends[0]), *above(ends[1]))):
            status = os.stat(place)
            kept = place not in ends and status.st_mode & 0o1000  # others may make names there, but not take ours
            if status.st_uid != 0 or (status.st_mode & 0o022 and not kept):
                return Finding(key, False, f"{place}: others can change it: chown root, chmod go-w")
    except OSError as error:
        return Finding(key, False, f"{path}: {error.strerror}: make it, owned by root")
    return Finding(key, True, path)


def above(path: str) -> "Iterator[str]":
    """The directories over an absolute path, up to /."""
    while path != "/":
        path = os.path.dirname(path)
        yield path


def launcher(_conf: Udiroot) -> "Iterator[Finding]":
    """The setuid bit, and whether the file system honours it."""
    path = os.path.join(os.path.dirname(os.path.abspath(__file__)), "../../../bin/shifter")
    path = os.path.normpath(path)
    try:
        status = os.stat(path)
    except OSError as error:
        yield Finding("launcher", False, f"{path}: {error.strerror}: install it")
        return
    yield owned("planner", os.path.dirname(os.path.abspath(__file__)))
    setuid = status.st_uid == 0 and bool(status.st_mode & 0o4000)
    nosuid = bool(os.statvfs(path).f_flag & os.ST_NOSUID)
    text = f"{path}: is on a file system mounted nosuid" if nosuid else f"{path}: chown root and chmod 4755 it"
    yield Finding("launcher", setuid and not nosuid, path if setuid and not nosuid else text)


def unprivileged(_conf: Udiroot) -> "Iterator[Finding]":
    """What a start in a user namespace (`--userns`) needs."""
    from runtime.rootless import DIRECTORIES, PROGRAMS, fuse_closed

    missing = fuse_closed()
    try:
        with open("/proc/sys/user/max_user_namespaces", encoding="ascii") as file:
            if int(file.read()) == 0:
                missing = "the kernel allows no user namespace: sysctl user.max_user_namespaces=10000"
    except (OSError, ValueError):
        missing = "this kernel has no user namespaces"
    names = PROGRAMS["squashfs"]
    if not any(os.access(f"{directory}/{name}", os.X_OK) for directory in DIRECTORIES for name in names):
        missing = missing or f"install {names[0]} (squashfuse) to show squashfs images"
    yield Finding(
        "--userns", not missing, missing or "user namespaces, squashfuse and /dev/fuse are there", needed=False
    )


def services(conf: Udiroot) -> "Iterator[Finding]":
    """munge and the gateway, as the caller meets them."""
    from runtime import gateway, munge

    try:
        munge.encode()
        yield Finding("munge", True, "gives credentials")
    except munge.MungeError as error:
        yield Finding("munge", False, f"{error}", needed=False)
    if not conf.image_gateway:
        yield Finding("gateway", False, "none in udiRoot.conf (imageGateway): images by id only", needed=False)
        return
    for url in conf.image_gateway:
        try:
            number = len(gateway.Gateway([url], conf.system, conf.gateway_timeout).images())
            yield Finding(f"gateway {url}", True, f"answers for {conf.system}: {number} images")
        except (gateway.GatewayError, ValueError) as error:
            yield Finding(f"gateway {url}", False, str(error), needed=False)


def held(conf: Udiroot) -> "Iterator[Finding]":
    """Images that the node keeps mounted; root alone can see them."""
    if os.geteuid() != 0:
        return
    import time

    from runtime.holds import holds

    for hold in holds(conf.loop_mount):
        ago = max(0, int(time.time() - hold.used))
        state = f"mounted (device {hold.device})" if hold.device else "not mounted"
        yield Finding(f"held image {hold.name}", True, f"{state}, used {ago} s ago, kept for {conf.hold_linger} s")


CHECKS: "tuple[Callable[[Udiroot], Iterator[Finding]], ...]" = (kernel, launcher, unprivileged, places, services, held)


def main(config: str) -> None:
    """Print the report; ends the process."""
    findings: list[Finding] = []
    try:
        conf = read(config)
    except ConfigInvalid as error:
        findings.append(Finding("configuration", False, str(error)))
    else:
        findings.append(owned("configuration", config))
        findings += [Finding("configuration", False, text, needed=False) for text in conf.warnings]
        for check in CHECKS:
            findings += check(conf)
    print("\n".join(finding.line() for finding in findings))
    sys.exit(0 if all(finding.good or not finding.needed for finding in findings) else 1)
