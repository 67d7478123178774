"""Volumes: what a user or the site wants to see where in the container (`FROM:TO[:flag...]`, several with `;`).

Parses and prints the text form, and holds the rules for what a user may ask. It promises that a `Volume` has absolute,
normalised paths without `..`, and flags that exist; it does not look at any file system.
"""

from runtime.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

SITE_FLAGS = ("ro", "rec", "slave", "private", "shared", "perNodeCache")
USER_FLAGS = ("ro", "perNodeCache")
CLOSED = ("/etc", "/var", "/opt/udiImage", "/proc", "/sys", "/dev")
"""Where a user's volume may not go, nor below; `/var/tmp` and what is below it is the exception. `/`, `/opt`
neither."""

UNITS = {"b": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40, "p": 1 << 50, "e": 1 << 60}


class VolumeInvalid(Exception):
    """A volume that cannot be: the text names it, the rule, and what is allowed."""


class NodeCache(Record):
    """perNodeCache: a file system of the task's own on the node. Sizes in bytes."""

    size: int
    block: int = 1 << 20
    method: str = "loop"
    fstype: str = "xfs"

    def __str__(self) -> str:
        return f"size={self.size},bs={self.block},method={self.method},fstype={self.fstype}"


class Volume(Record):
    """`source` on the host appears at `target` in the container. Both absolute, normalised."""

    source: str
    target: str
    flags: tuple[str, ...] = ()  # of SITE_FLAGS, in that order
    cache: NodeCache | None = None

    def __str__(self) -> str:
        words = [f"perNodeCache={self.cache}" if flag == "perNodeCache" else flag for flag in self.flags]
        return ":".join((self.source, self.target, *words))


def parse_size(text: str) -> int:
    """Bytes from `10`, `10k`, `1.5G`, `2TB` (powers of 1024). Raises VolumeInvalid."""
    number, unit = text.strip().lower(), 1
    if number.endswith("b") and len(number) > 1 and number[-2] in UNITS and number[-2] != "b":
        number = number[:-1]
    if number and number[-1] in UNITS:
        number, unit = number[:-1], UNITS[number[-1]]
    try:
        value = float(number) * unit if "." in number else int(number) * unit
        size = int(value)
    except (ValueError, OverflowError):
        size = 0
    if size <= 0:
        raise VolumeInvalid(f"size {text!r} is not a positive number with one of the units b k m g t p e")
    return size


def normal_path(path: str, what: str, volume: str) -> str:
    """`path` without doubled and trailing slashes. Raises VolumeInvalid: not absolute, or with `..`."""
    if not path.startswith("/"):
        shown = path or "nothing"
        raise VolumeInvalid(f"volume {volume!r}: {what} {shown!r} is not an absolute path: start it with /")
    parts = [part for part in path.split("/") if part not in ("", ".")]
    if ".." in parts:
        raise VolumeInvalid(f"volume {volume!r}: {what} {path!r} has '..': write the path without it")
    return "/" + "/".join(parts)


def parse_cache(options: str, volume: str) -> NodeCache:
    values: dict[str, str] = {}
    for item in filter(None, options.split(",")):
        name, equals, value = item.partition("=")
        name = {"fs": "fstype", "bs": "block"}.get(name, name)
        if not equals or name not in ("size", "block", "method", "fstype") or name in values:
            raise VolumeInvalid(f"volume {volume!r}: perNodeCache option {item!r}: one each of size= fs= bs= method=")
        values[name] = value
    if "size" not in values:
        raise VolumeInvalid(f"volume {volume!r}: perNodeCache needs a size, as in perNodeCache=size=100G")
    cache = NodeCache(
        parse_size(values["size"]),
        parse_size(values.get("block", "1m")),
        values.get("method", "loop"),
        values.get("fstype", "xfs"),
    )
    if cache.method != "loop":
        raise VolumeInvalid(f"volume {volume!r}: perNodeCache method {cache.method!r}: only loop is known")
    return cache


def parse_volume(text: str) -> Volume:
    """One volume. Raises VolumeInvalid."""
    fields = text.strip().split(":")
    if len(fields) < 2 or not fields[1]:
        raise VolumeInvalid(f"volume {text.strip()!r} has no target: write FROM:TO, as in /scratch/me:/data")
    source = normal_path(fields[0], "source", text)
    target = normal_path(fields[1], "target", text)
    flags: list[str] = []
    cache = None
    for field in fields[2:]:
        name, equals, value = field.partition("=")
        if name not in SITE_FLAGS or name in flags or (equals and name != "perNodeCache"):
            raise VolumeInvalid(f"volume {text.strip()!r}: flag {field!r}: once each of {' '.join(SITE_FLAGS)}")
        if name == "perNodeCache":
            cache = parse_cache(value, text)
        flags.append(name)
    if len({"slave", "private", "shared"} & set(flags)) > 1:
        raise VolumeInvalid(f"volume {text.strip()!r}: slave, private and shared exclude each other")
    return Volume(source, target, tuple(flag for flag in SITE_FLAGS if flag in flags), cache)


def parse_volumes(text: str) -> tuple[Volume, ...]:
    """Volumes separated by `;`; empty ones are skipped. Raises VolumeInvalid."""
    return tuple(parse_volume(item) for item in text.split(";") if item.strip())


def check_user_volumes(volumes: "Iterable[Volume]") -> None:
    """The rules for a user's volumes. Raises VolumeInvalid at the first that breaks one, naming the rule."""
    targets: set[str] = set()
    for volume in volumes:
        target = volume.target
        for flag in volume.flags:
            if flag not in USER_FLAGS:
                raise VolumeInvalid(
                    f"volume '{volume}': flag {flag!r} is for the site: users have {' '.join(USER_FLAGS)}"
                )
        inside = [place for place in CLOSED if target == place or target.startswith(place + "/")]
        if target in ("/", "/opt") or (inside and target != "/var/tmp" and not target.startswith("/var/tmp/")):  # noqa: S108 — the container's
            place = inside[0] if inside else target
            raise VolumeInvalid(
                f"volume '{volume}': {place} is the system's in a container: choose another target, as /mnt"
            )
        if target in targets:
            raise VolumeInvalid(f"volume '{volume}': target {target} is used twice: give each volume its own")
        targets.add(target)


def signature(volumes: "Iterable[Volume]") -> str:
    """The canonical text of a set of volumes: equal sets have equal signatures."""
    return ";".join(sorted(str(volume) for volume in volumes))
