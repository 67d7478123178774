"""The plan cache: writes what `launcher/cache.c` reads.

A file holds the request in the launcher's own bytes, the identity of every file that the plan was computed from, and
the steps. The launcher uses it only for an equal request and while each identity is unchanged; so a plan that depends
on anything else (a gateway's answer, a file of the user's, a whole host tree) is not kept: `may_keep`.
"""

import os
import time

from runtime import __version__, plan

TYPE_CHECKING = False
if TYPE_CHECKING:
    from runtime.nodestate import Prepared
    from runtime.request import Request
    from runtime.sidecar import ImageRecord
    from runtime.udiroot import Udiroot

LIFETIME = 3600
"""Seconds; what no file shows (a user's entry in LDAP) is asked again after them."""
MOST = 2048
"""Plans that a node keeps; the oldest go first."""
SIZE_LIMIT = 8 << 20  # bytes, as in launcher/cache.c


def may_keep(request: "Request", conf: "Udiroot") -> bool:
    """Whether the plan of this request depends on files of the site alone."""
    return conf.plan_cache and request.image.kind == "id" and not request.environment_file


def identity(path: str) -> str:
    """Device, inode, size and times of a file, or `absent`, as the launcher prints them."""
    try:
        status = os.stat(path)
    except OSError:
        return "absent"
    times = [f"{ns // 10**9}.{ns % 10**9:09d}" for ns in (status.st_mtime_ns, status.st_ctime_ns)]
    return f"{status.st_dev}:{status.st_ino}:{status.st_size}:{times[0]}:{times[1]}"


def needs(conf: "Udiroot", record: "ImageRecord") -> list[str]:
    """The files that a plan was computed from."""
    out = [conf.path, os.path.dirname(__file__), f"{conf.image_path}/{record.id}.{record.format}", record.sidecar]
    if record.sidecar.endswith(".meta"):
        out.append(f"{conf.image_path}/{record.id}.json")
    out.append(f"{conf.loop_mount}/prepared.json")
    if conf.etc_path:
        out += [conf.etc_path, f"{conf.etc_path}/passwd", f"{conf.etc_path}/group"]
        out += [entry.path for entry in os.scandir(conf.etc_path) if entry.is_dir(follow_symlinks=False)]
    if conf.allow_libc_pwd_calls or conf.populate_etc_dynamically:
        out += ["/etc/passwd", "/etc/group"]
    if conf.site_resources:
        out.append(conf.site_resources)  # bound when it is there
    copied = [conf.opt_udi_image] + [module.copy_path for module in conf.modules]
    for directory in filter(None, copied):
        out.append(directory)
        out.extend(path for path, _, _ in os.walk(directory))
    return out


def write(
    conf: "Udiroot", name: str, request_records: list[list[str]], files: list[str], steps: list[plan.Step],
) -> None:  # fmt: skip
    """Keep a plan that was computed from `files` under `name`. A node that cannot (no space) goes without."""
    until = int(time.time()) + LIFETIME
    parts = [plan.encode_record(["plan", __version__, str(until)])]
    parts += [plan.encode_record(fields) for fields in request_records]
    for path in dict.fromkeys(files):
        parts.append(plan.encode_record(["needs", path, identity(path)]))
    parts += [plan.encode(step) for step in steps]
    data = b"".join(parts)
    if len(data) >= SIZE_LIMIT:
        return
    directory = f"{conf.loop_mount}/plans"
    fresh = f"{directory}/.{os.getpid()}"
    try:
        descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
        os.rename(fresh, f"{directory}/{name}")
        forget_oldest(directory)
    except OSError:
        return


def forget_oldest(directory: str) -> None:
    """Keep the newer half when there are too many plans."""
    names = os.listdir(directory)
    if len(names) > MOST:
        aged = sorted((os.lstat(f"{directory}/{name}").st_mtime, name) for name in names)
        for _, name in aged[: len(aged) // 2]:
            os.unlink(f"{directory}/{name}")


def fnv(data: bytes) -> str:
    """FNV-1a, 64 bits, as the launcher names plans."""
    value = 0xCBF29CE484222325
    for byte in data:
        value = ((value ^ byte) * 0x100000001B3) & 0xFFFFFFFFFFFFFFFF
    return f"{value:016x}"


def write_setup(
    conf: "Udiroot", key: list[str], what: "Prepared", who: list[str], files: list[str], steps: list[plan.Step]
) -> None:
    """Keep the plan of a prepared environment, what it prepares and for whom, under setupRoot's arguments."""
    if not conf.plan_cache:
        return
    described = ["prepared", what.identifier, str(what.uid), what.volumes, what.own, *what.modules]
    but = f"{conf.loop_mount}/prepared.json"  # it changes with each environment
    name = "setup-" + fnv(plan.encode_record(key))
    write(conf, name, [key, described, ["who", *who]], [path for path in files if path != but], steps)


def read_setup(conf: "Udiroot", key: list[str]) -> "tuple[Prepared, list[str], bytes] | None":
    """What `write_setup` kept for these arguments, if it still holds: (what, who, steps in wire form)."""
    from runtime.nodestate import Prepared

    first = plan.encode_record(key)
    try:
        with open(f"{conf.loop_mount}/plans/setup-{fnv(first)}", "rb") as file:
            data = file.read(SIZE_LIMIT)
        records = list(plan.decode_records(data))
    except (OSError, plan.PlanInvalid):
        return None
    if (
        len(records) < 5
        or records[0][:2] != ["plan", __version__]
        or int(records[0][2]) < time.time()
        or records[1] != key
    ):
        return None
    described, who, steps = records[2], records[3][1:], [fields for fields in records[4:] if fields[0] != "needs"]
    if any(fields[0] == "needs" and identity(fields[1]) != fields[2] for fields in records[4:]):
        return None
    what = Prepared(described[1], int(described[2]), described[3], tuple(described[5:]), "", described[4])
    return what, who, b"".join(map(plan.encode_record, steps))
