"""The plans of a launch, made by the runtime's own planner for a node and an image that are only imagined.

`ImaginedImage` and `ImaginedNode` answer what the planner asks (`runtime.view`): the image is a Debian-like tree,
the node has whatever the site's udiRoot.conf names. No rule about containers stands here: what a start does is the
planner's word.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from runtime import keep, planner
from runtime.identity import User
from runtime.plan import Exec, Step
from runtime.reference import parse as parse_reference
from runtime.refusal import StartRefused
from runtime.request import Request
from runtime.sidecar import ImageRecord
from runtime.udiroot import ConfigInvalid, Udiroot, parse
from runtime.view import Entry
from sim.machine import Plans
from sim.parameters import Scenario
from sim.scenario import SHIPPED, ScenarioInvalid
from sim.workload import reference

if TYPE_CHECKING:
    from runtime.view import Host, View

USER, GROUP = 10_000, 10_000
#: What a Debian image has at its top: directories, and links where /usr is merged.
DIRECTORIES = (
    "boot",
    "dev",
    "etc",
    "home",
    "media",
    "mnt",
    "opt",
    "proc",
    "root",
    "run",
    "srv",
    "sys",
    "tmp",
    "usr",
    "var",
)
LINKS: Mapping[str, str] = {name: f"usr/{name}" for name in ("bin", "lib", "lib64", "sbin")}
BELOW: Mapping[str, tuple[str, ...]] = {
    "/usr": ("bin", "games", "include", "lib", "lib64", "libexec", "local", "sbin", "share", "src"),
    "/var": ("backups", "cache", "lib", "local", "log", "mail", "opt", "run", "spool", "tmp"),
}
FILES = frozenset({"/usr/bin/sh", "/etc/passwd", "/etc/group", "/etc/nsswitch.conf", "/etc/hosts", "/etc/resolv.conf"})
#: What the imagined site puts into every container's /etc (etcPath).
SITE_FILES = ("group", "nsswitch.conf", "passwd", "resolv.conf")


class ImaginedImage:
    """The planner's view of an image with the usual directories."""

    def kind(self, path: str) -> str:
        name = path.lstrip("/")
        if name in LINKS:
            return "link"
        parent, _, last = path.rpartition("/")
        if path == "/" or name in DIRECTORIES or last in BELOW.get(parent, ()):
            return "dir"
        return "file" if path in FILES else ""

    def readlink(self, path: str) -> str:
        return LINKS[path.lstrip("/")]

    def names(self, path: str) -> list[str]:
        if path.strip("/") == "":
            return sorted([*DIRECTORIES, *LINKS])
        files = [file.rpartition("/")[2] for file in FILES if file.rpartition("/")[0] == path]
        return sorted([*BELOW.get(path, ()), *files])

    def mode(self, path: str) -> int:
        return 0o1777 if path in ("/tmp", "/var/tmp") else 0o755  # noqa: S108 - names inside an image


class ImaginedNode:
    """The planner's view of a node that has every directory its udiRoot.conf names, and one user."""

    def passwd_text(self) -> str:
        return User("user", USER, GROUP, home="/home/user").line()

    def group_text(self) -> str:
        return f"users:x:{GROUP}:user\n"

    def library_user(self, user: int | str) -> User | None:
        return User("user", USER, GROUP, home="/home/user") if user in (USER, "user") else None

    def library_group(self, gid: int) -> str:
        return "users"

    def kind(self, path: str) -> str:
        return "file" if path.rpartition("/")[0] == "/etc" else "dir"

    def user_kind(self, path: str) -> str:
        return "dir"

    def walk(self, path: str) -> list[Entry]:
        return [Entry(name, "file") for name in SITE_FILES]

    def user_text(self, path: str) -> str:
        return ""

    def proc_options(self) -> str:
        return ""


def make(scenario: Scenario) -> Plans:
    """The plans of a scenario's start and of its setupRoot. Raises ScenarioInvalid where the site's configuration is refused."""
    if scenario.launch.strategy == "none":
        bare: tuple[Step, ...] = (Exec("append"),)
        return Plans(bare, bare[:0])
    conf = configuration(scenario)
    record = image_record(scenario)
    view: View = ImaginedImage()
    host: Host = ImaginedNode()
    name = reference(0) if scenario.launch.by_tag else f"id:{record.id}"
    start = Request(uid=USER, gid=GROUP, image=parse_reference(name, "docker"))
    try:
        return Plans(
            tuple(planner.plan(start, conf, record, view, host)),
            tuple(planner.plan(start.changed(prepare=True), conf, record, view, host)),
            kept=keep.may_keep(start, conf),
        )
    except StartRefused as refused:
        raise ScenarioInvalid(f"{conf.path}: the planner refuses the start: {refused}") from None


def configuration(scenario: Scenario) -> Udiroot:
    """The scenario's udiRoot.conf; the one that is shipped where it names none. Raises ScenarioInvalid."""
    path = Path(scenario.configuration) if scenario.configuration else SHIPPED / "udiRoot.conf"
    try:
        return parse(path.read_text(encoding="utf-8"), str(path))
    except OSError as error:
        raise ScenarioInvalid(f"configuration: {path}: {error.strerror}: name the site's udiRoot.conf") from None
    except UnicodeDecodeError:
        raise ScenarioInvalid(f"configuration: {path}: not UTF-8 text: name the site's udiRoot.conf") from None
    except ConfigInvalid as error:
        raise ScenarioInvalid(f"configuration: {error}") from None


def image_record(scenario: Scenario) -> ImageRecord:
    """The image as the gateway describes it to nodes, in the form that the strategy needs."""
    strategy = scenario.launch.strategy
    kind = {"erofs": "erofs", "unpacked": "local"}.get(strategy, "squashfs")
    return ImageRecord(
        id="0" * 64, path=f"/lustre/shifter/images/{'0' * 64}.{kind}", format=kind, env=("PATH=/usr/bin:/bin",)
    )
