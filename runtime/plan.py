"""A container start as data: the steps that the planner computes, the launcher executes, and the simulator imagines.

A plan is a sequence of `Step` records. Each says in `as_whom` with whose rights it runs, and has two forms: one for
people (`describe`, `as_json`) and one for the launcher (`encode`, `decode`), which are the only description of that
wire form outside `launcher/steps.c`. This module knows no policy: what steps a start needs is decided in
`planner.py`.

Wire form: a record is a 32-bit little-endian length (of what follows) and NUL-terminated fields: verb, as-whom, then
the step's fields in order; a tuple field is the last one and spreads over the remaining fields. Text is UTF-8 with
surrogateescape, so any file name survives. A field cannot hold NUL: `PlanInvalid`.
"""

from runtime.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from typing import ClassVar

RECORD_LIMIT = 1 << 20
"""Longest record in bytes, either way; the launcher refuses a longer one."""


class PlanInvalid(Exception):
    """A record or a field that the wire form cannot hold, or does not know."""


class Step(Record):
    """One thing to do. `verb` names it on the wire; fields are text, except a last field that may be a tuple of
    texts."""

    verb: "ClassVar[str]" = ""
    whom: "ClassVar[str]" = "root"

    @property
    def as_whom(self) -> str:
        """With whose rights the launcher runs it: "root" (file-system rights of root) or "user" (the caller's)."""
        return str(self.__dict__.get("owner", self.whom))

    def fields(self) -> list[str]:
        """The step's fields as texts, in wire order."""
        out: list[str] = []
        for name in self.FIELDS:
            if name == "owner":
                continue
            value = self.__dict__[name]
            if isinstance(value, tuple):
                out.extend(value)
            else:
                out.append(value)
        return out


class Begin(Step):
    """Make the image, which a step before opened, the root at `udi_mount`: in a mount namespace of the start's own."""

    verb = "begin"
    propagation: str  # slave | private: whether mounts made later on the host reach the namespace
    udi_mount: str
    where: str = "namespace"  # or host: setupRoot prepares the environment for all


class Join(Step):
    """Enter the prepared environment at `udi_mount` instead; `root` says which one it must be (device:inode, hex)."""

    verb = "join"
    udi_mount: str
    root: str


class Image(Step):
    """Open the image file as a read-only, nosuid, nodev mount, shared by the node's instances: the origin "image"."""

    verb = "image"
    path: str  # absolute path of the image file, on the host
    format: str  # squashfs | erofs | xfs
    holds: str  # root's directory where the node keeps mounted images and their locks
    how: str = "keep"  # keep: mounted until nobody has used it for a while; share: only while instances run


class Local(Step):
    """Open a directory of the host, with the user's rights, in place of an image: the origin "image"."""

    verb = "local"
    whom = "user"
    path: str


class Fuse(Step):
    """Have a program show the image file, without privilege, in place of a mount: the origin "image"."""

    verb = "fuse"
    whom = "user"
    program: str
    path: str
    place: str  # a directory to work in


class Sync(Step):
    """Execute everything so far, then answer, with the image's descriptor: the planner may now look at it."""

    verb = "sync"


class Tmpfs(Step):
    """Mount a new tmpfs (nosuid, nodev) at `target` of the new root; "/" covers the image: then it is the root."""

    verb = "tmpfs"
    target: str
    mode: str  # octal
    kind: str = "tmpfs"  # tmpfs | ramfs
    size: str = ""  # as tmpfs(5) says: "" is the kernel's default


class MakeDir(Step):
    """Make one directory in the new root (its parent exists). One that exists already is left as it is."""

    verb = "mkdir"
    target: str
    mode: str


class Write(Step):
    """Write a new file in the new root; an empty one is the mount point for a file."""

    verb = "write"
    target: str
    mode: str
    text: str = ""


class Copy(Step):
    """Copy one regular file of the host into the new root, its owner too, and its mode but for setuid and others' writing."""

    verb = "copy"
    source: str
    target: str


class Symlink(Step):
    """Make a symbolic link in the new root."""

    verb = "symlink"
    target: str
    value: str


class Bind(Step):
    """Bind `source` over `target`. Flags, comma separated: rec ro nodev noexec slave private shared; nosuid always.

    `origin` is where source is looked up: "host", "image" or "new" (the new root). With owner "user", source is opened
    with the caller's rights, and must be readable by the caller.

    """

    verb = "bind"
    owner: str  # root | user
    origin: str
    source: str
    target: str
    flags: str = ""


class Overlay(Step):
    """At `target`, show what the last tmpfs, mounted there, holds over what it covers; read-only."""

    verb = "overlay"
    target: str


class Proc(Step):
    """Mount proc at `target`, with the host's own restrictions (hidepid, gid) in `options`."""

    verb = "proc"
    target: str
    options: str = ""


class Remount(Step):
    """Change the mount at `target`. Flags, comma separated: ro nodev noexec."""

    verb = "remount"
    target: str
    flags: str


class NodeDisk(Step):
    """A private, writable file system for one task of one node, in a sparse file that has no name, at `target`."""

    verb = "disk"
    directory: str  # where the backing file is made, on the host
    size: str  # bytes, decimal
    mkfs: str  # absolute path of mkfs.xfs
    target: str


class RootHook(Step):
    """Run `/bin/sh script` as root on the host, its working directory the container's root."""

    verb = "roothook"
    script: str


class Pivot(Step):
    """Enter the new root and let go of the host's file systems."""

    verb = "pivot"


class Drop(Step):
    """Become the caller for good: no capability, empty bounding set, no_new_privs. Only steps below may follow."""

    verb = "drop"


class EnvClear(Step):
    """Forget the caller's environment, but for variables that match a pattern of `keep`."""

    verb = "envclear"
    whom = "user"
    keep: tuple[str, ...] = ()


class EnvDefault(Step):
    """Set a variable that is not set."""

    verb = "envdefault"
    whom = "user"
    name: str
    value: str


class EnvSet(Step):
    """Set a variable."""

    verb = "envset"
    whom = "user"
    name: str
    value: str


class EnvUnset(Step):
    """Unset the variables that match a shell pattern."""

    verb = "envunset"
    whom = "user"
    pattern: str


class EnvPrepend(Step):
    """Put text in front of a colon-separated variable."""

    verb = "envprepend"
    whom = "user"
    name: str
    value: str


class EnvAppend(Step):
    """Put text behind a colon-separated variable."""

    verb = "envappend"
    whom = "user"
    name: str
    value: str


class Chdir(Step):
    """Enter a directory of the container: `path`, or the caller's when empty. Where that fails: "required" or "/"."""

    verb = "chdir"
    whom = "user"
    path: str
    otherwise: str = "/"


class UserHook(Step):
    """Run `/bin/sh script` in the container as the user; a status other than 0 ends the start."""

    verb = "userhook"
    whom = "user"
    script: str


class Exec(Step):
    """Become the command: `prefix`, then the caller's own arguments when `arguments` is "append" (else "none")."""

    verb = "exec"
    whom = "user"
    arguments: str
    prefix: tuple[str, ...] = ()


class Say(Step):
    """Print one line on the caller's standard error."""

    verb = "say"
    text: str


class Refuse(Step):
    """End the start: print `text` as the error, exit with status 1."""

    verb = "refuse"
    text: str


STEPS: tuple[type[Step], ...] = (
    Image, Local, Fuse, Sync, Begin, Join, Tmpfs, MakeDir, Write, Copy, Symlink, Bind, Overlay, Proc, Remount, NodeDisk, RootHook,
    Pivot, Drop, EnvClear, EnvDefault, EnvSet, EnvUnset, EnvPrepend, EnvAppend, Chdir, UserHook, Exec, Say, Refuse,
)  # fmt: skip
VERBS: dict[str, type[Step]] = {step.verb: step for step in STEPS}


def encode_record(fields: "Iterable[str]") -> bytes:
    """One record of the wire form from its fields. Raises PlanInvalid: a NUL in a field, or more than RECORD_LIMIT
    bytes."""
    body = b""
    for field in fields:
        if "\0" in field:
            raise PlanInvalid(f"a field cannot hold NUL: {field[:40]!r}")
        body += field.encode("utf-8", "surrogateescape") + b"\0"
    if len(body) > RECORD_LIMIT:
        raise PlanInvalid(f"a record of {len(body)} bytes is longer than the {RECORD_LIMIT} that the launcher takes")
    return len(body).to_bytes(4, "little") + body


def decode_records(data: bytes) -> "Iterator[list[str]]":
    """The records in `data`, each as its fields. Raises PlanInvalid where `data` is cut or malformed."""
    at = 0
    while at < len(data):
        size = int.from_bytes(data[at : at + 4], "little")
        body = data[at + 4 : at + 4 + size]
        if len(data) - at < 4 or len(body) != size or size == 0 or size > RECORD_LIMIT or body[-1] != 0:
            raise PlanInvalid(f"record at byte {at}: cut or malformed")
        yield [field.decode("utf-8", "surrogateescape") for field in body[:-1].split(b"\0")]
        at += 4 + size


def encode(step: Step) -> bytes:
    """A step's wire form."""
    return encode_record([step.verb, step.as_whom, *step.fields()])


def decode(data: bytes) -> list[Step]:
    """The steps in `data`, the inverse of `encode` on each. Raises PlanInvalid: unknown verb, wrong fields."""
    return [from_fields(fields) for fields in decode_records(data)]


def from_fields(fields: list[str]) -> Step:
    """A step from a record's fields (verb, as-whom, ...). Raises PlanInvalid."""
    if len(fields) < 2 or fields[0] not in VERBS:
        raise PlanInvalid(f"unknown step: {' '.join(fields)[:80]}")
    kind, whom, rest = VERBS[fields[0]], fields[1], fields[2:]
    names = [name for name in kind.FIELDS if name != "owner"]
    spread = bool(names) and isinstance(getattr(kind, names[-1], None), tuple)
    if len(rest) < len(names) - spread or (not spread and len(rest) > len(names)):
        raise PlanInvalid(f"step {kind.verb}: {len(names)} fields expected, {len(rest)} found")
    values: dict[str, object] = dict(zip(names, rest, strict=False))
    if spread:
        values[names[-1]] = tuple(rest[len(names) - 1 :])
    if "owner" in kind.FIELDS and whom in ("root", "user"):
        values["owner"] = whom
    elif whom != kind.whom:
        raise PlanInvalid(f"step {kind.verb}: cannot run as {whom}")
    return kind(**values)


def describe(step: Step) -> str:
    """A step as a line for people: as whom, verb, fields with their names; long texts are cut."""
    words = []
    for name in step.FIELDS:
        value = step.__dict__[name]
        if name == "owner" or value in ("", ()):
            continue
        text = " ".join(value) if isinstance(value, tuple) else value
        shown = text if len(text) <= 60 else f"{text[:57]}..."
        words.append(f"{name}={shown!r}" if name == "text" or " " in shown else f"{name}={shown}")
    return " ".join([f"{step.as_whom:4}", f"{step.verb:10}", *words]).rstrip()


def as_json(step: Step) -> dict[str, object]:
    """A step as an object for `--plan --json`: {"step", "as", and each field}."""
    fields = {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in ((name, step.__dict__[name]) for name in step.FIELDS)
        if name != "owner"
    }
    return {"step": step.verb, "as": step.as_whom, **fields}
