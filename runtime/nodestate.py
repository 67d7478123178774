"""What a node keeps below loopMount: held images (`holds/`), plans (`plans/`), and which environment is prepared.

All of it is root's alone (0700), belongs to this boot's mounts, and may be removed when no container runs. The prepared
environment itself is at udiMount; `prepared.json` says what it is, in a place that no image and no user can write.
"""

import os

from runtime.record import Record
from runtime.refusal import StartRefused
from runtime.sidecar import load_json

TYPE_CHECKING = False
if TYPE_CHECKING:
    from runtime.request import Request
    from runtime.sidecar import ImageRecord
    from runtime.udiroot import Module, Udiroot

DIRECTORIES = ("holds", "plans")
PREPARED = "prepared.json"


class Prepared(Record):
    """The environment that setupRoot left at udiMount. `root` is its device and inode, as the launcher checks them."""

    identifier: str
    uid: int
    volumes: str  # canonical signature
    modules: tuple[str, ...]
    root: str
    own: str  # tells one job's hosts, key and injected files from another's; starts do not look at it

    def serves(self, request: "Request", record: "ImageRecord", modules: "list[Module]", conf: "Udiroot") -> bool:
        """Whether a start with this request may join it."""
        from runtime.volumes import signature

        return (
            self.identifier == record.id
            and self.uid == request.uid
            and self.volumes == signature(request.volumes)
            and self.modules == tuple(module.name for module in modules)
            and request.gpu in (None, conf.gpu or "none")
        )


def make(conf: "Udiroot") -> None:
    """Make the directories of the node's state, where they are missing. Raises StartRefused: a node's fault."""
    for path, mode in ((conf.loop_mount, 0o755), (conf.udi_mount, 0o755)):
        if not os.path.isdir(path):
            _make(path, mode)
    for name in DIRECTORIES:
        _make(f"{conf.loop_mount}/{name}", 0o700)


def _make(path: str, mode: int) -> None:
    try:
        os.mkdir(path, mode)
    except FileExistsError:
        return
    except OSError as error:
        raise StartRefused(f"cannot make {path}: {error.strerror}: make it at boot, owned by root", True) from None


def root_identity(path: str) -> str:
    """Device and inode of what is mounted at `path`, in hexadecimal."""
    status = os.stat(path)
    return f"{status.st_dev:x}:{status.st_ino:x}"


def prepared(conf: "Udiroot") -> Prepared | None:
    """The prepared environment, if there is one and it is still the one that was recorded."""
    try:
        with open(f"{conf.loop_mount}/{PREPARED}", encoding="utf-8") as file:
            value = load_json(file.read())
        if not isinstance(value, dict):
            return None
        found = Prepared(
            str(value["identifier"]),
            int(value["uid"]),
            str(value["volMap"]),
            tuple(value["modules"]),
            str(value["root"]),
            str(value["own"]),
        )
        return found if root_identity(conf.udi_mount) == found.root else None
    except (OSError, ValueError, KeyError):
        return None


def quote(text: str) -> str:
    """A text as JSON."""
    escapes = {'"': '\\"', "\\": "\\\\"}
    return '"' + "".join(escapes.get(c) or (c if c >= " " else f"\\u{ord(c):04x}") for c in text) + '"'


def record(conf: "Udiroot", what: Prepared) -> None:
    """Say what is prepared at udiMount, for starts to find. Raises StartRefused: a node's fault."""
    modules = ",".join(map(quote, what.modules))
    text = (
        f'{{"identifier":{quote(what.identifier)},"uid":{what.uid},"volMap":{quote(what.volumes)},'
        f'"modules":[{modules}],"root":{quote(what.root)},"own":{quote(what.own)}}}\n'
    )
    path = f"{conf.loop_mount}/{PREPARED}"
    try:
        descriptor = os.open(f"{path}.new", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
        os.rename(f"{path}.new", path)
    except OSError as error:
        raise StartRefused(f"{path}: {error.strerror}: is loopMount full, or read-only?", True) from None


def forget(conf: "Udiroot") -> None:
    """From now on no start joins what is at udiMount."""
    try:
        os.unlink(f"{conf.loop_mount}/{PREPARED}")
    except FileNotFoundError:
        return
