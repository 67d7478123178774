"""What the gateway left beside an image: how to run it, and who may.

`find` reads `<imageDir>/<id>.json`; where there is none, the older `<id>.meta`, whose format cannot hold every value,
so only what it can hold unambiguously is taken from it. It promises a record that the caller may use: an image that
the caller may not run is reported exactly like one that does not exist. The image file itself is opened by the
launcher.
"""

import os

from runtime.record import Record
from runtime.refusal import StartRefused

FORMATS = ("squashfs", "erofs", "xfs")
SIZE_LIMIT = 8 << 20  # bytes of a sidecar file
_PLAIN = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-")


class ImageRecord(Record):
    """An image on this node. `path` is its file with every link resolved; empty `uids` and `gids` with not `public`:
    nobody."""

    id: str
    path: str
    format: str = "squashfs"
    entrypoint: tuple[str, ...] | None = None
    cmd: tuple[str, ...] | None = None
    workdir: str | None = None
    env: tuple[str, ...] = ()
    public: bool = True
    uids: tuple[int, ...] = ()
    gids: tuple[int, ...] = ()
    sidecar: str = ""

    def may_run(self, uid: int, groups: tuple[int, ...]) -> bool:
        """Whether the image is public, or this user's, or one of these groups'."""
        return self.public or uid in self.uids or any(group in self.gids for group in groups)


def find(image_path: str, identifier: str, uid: int, groups: tuple[int, ...]) -> ImageRecord:
    """The record of an image that this user may run. Raises StartRefused."""
    absent = StartRefused(f"no image id:{identifier} on this system: pull it, or see `shifterimg images`")
    if not identifier or identifier[0] == "." or not _PLAIN.issuperset(identifier) or len(identifier) > 200:
        raise absent
    base = f"{image_path}/{identifier}"
    for suffix, parse in ((".json", parse_json), (".meta", parse_meta)):
        try:
            with open(base + suffix, encoding="utf-8", errors="surrogateescape") as file:
                text = file.read(SIZE_LIMIT + 1)
        except FileNotFoundError:
            continue
        except OSError as error:
            raise StartRefused(f"{base}{suffix}: {error.strerror}: tell the administrator", node=True) from None
        try:
            record = parse(text, identifier)
        except (ValueError, KeyError, TypeError) as error:
            raise StartRefused(f"{base}{suffix}: malformed: {error}: have the image pulled again") from None
        if not record.may_run(uid, groups):
            raise absent
        path = os.path.realpath(f"{base}.{record.format}")
        if not path.startswith(os.path.realpath(image_path) + "/") or not os.path.isfile(path):
            raise StartRefused(f"image id:{identifier}: its file {base}.{record.format} is missing: pull it again")
        return record.changed(path=path, sidecar=base + suffix)
    raise absent


def parse_json(text: str, identifier: str) -> ImageRecord:
    """The record in `<id>.json`; docs/architecture.md has its fields. Raises ValueError, KeyError, TypeError."""
    value = load_json(text)
    if not isinstance(value, dict) or value["version"] != 1 or value["id"] != identifier:
        raise ValueError(f"not a version 1 record of {identifier}")
    if value["format"] not in FORMATS:
        raise ValueError(f"format {value['format']!r}")
    return ImageRecord(
        id=identifier,
        path="",
        format=value["format"],
        entrypoint=words(value.get("entrypoint")),
        cmd=words(value.get("cmd")),
        workdir=value.get("workdir") or None,
        env=words(value.get("env")) or (),
        public=value["public"] is True,
        uids=tuple(int(uid) for uid in value.get("uids") or ()),
        gids=tuple(int(gid) for gid in value.get("gids") or ()),
    )


def words(value: object) -> tuple[str, ...] | None:
    """A list of texts, or None. Raises ValueError."""
    if value is None:
        return None
    if not isinstance(value, list) or not all(isinstance(item, str) and "\0" not in item for item in value):
        raise ValueError(f"not a list of texts: {value!r}")
    return tuple(value)


def load_json(text: str) -> object:
    """`json.loads` by the C scanner alone: importing json, and re with it, costs 6 ms of a start."""
    try:
        from _json import make_scanner
    except ImportError:
        import json

        return json.loads(text)

    class Context:
        strict = True
        object_hook = object_pairs_hook = None
        parse_float, parse_int, parse_constant = float, int, float
        memo: dict[str, str] = {}  # noqa: RUF012 - the scanner wants an attribute, and this class lives for one call

    begin = text.lstrip(" \t\r\n")
    try:
        value, end = make_scanner(Context())(begin, 0)  # type: ignore[arg-type]  # any object with these attributes
    except StopIteration:
        raise ValueError("not JSON") from None
    if begin[end:].strip(" \t\r\n"):
        raise ValueError("more than one JSON value")
    return value


def parse_meta(text: str, identifier: str) -> ImageRecord:
    """The record in `<id>.meta`: `KEY: value` lines. Raises ValueError where it is ambiguous about who may run the
    image."""
    values: dict[str, str] = {}
    env: list[str] = []
    for line in text.split("\n"):
        key, colon, value = line.partition(":")
        value = value.strip()
        if not colon:
            continue
        if key == "ENV":
            env.append(value)
        elif key in values:
            raise ValueError(f"{key} stands twice")
        else:
            values[key] = value
    uids, gids = numbers(values.get("USERACL", "")), numbers(values.get("GROUPACL", ""))
    image_format = values.get("FORMAT", "")
    if image_format not in FORMATS:
        raise ValueError(f"FORMAT {image_format!r}")
    return ImageRecord(
        id=identifier,
        path="",
        format=image_format,
        entrypoint=quoted(values.get("ENTRY", "")),
        cmd=quoted(values.get("CMD", "")),
        workdir=values.get("WORKDIR") or None,
        env=tuple(item for item in env if "=" in item),
        public=not uids and not gids,
        uids=uids,
        gids=gids,
    )


def numbers(text: str) -> tuple[int, ...]:
    """Comma-separated ids; empty items are skipped. Raises ValueError."""
    return tuple(int(item) for item in text.strip("[]").split(",") if item.strip())


def quoted(text: str) -> tuple[str, ...] | None:
    """`['a', 'b c']` as a tuple; plain text is one word; empty is None."""
    text = text.strip()
    if text in ("", "None", "[]"):
        return None
    if not (text.startswith("[") and text.endswith("]")):
        return (text,)
    inner = text[1:-1].strip()
    if len(inner) < 2 or inner[0] not in "'\"" or inner[-1] != inner[0]:
        raise ValueError(f"list {text!r}")
    parts = inner[1:-1].split(inner[0])
    if any(part.strip() != "," for part in parts[1::2]):
        raise ValueError(f"list {text!r}")
    return tuple(parts[0::2])
