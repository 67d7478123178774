"""GPUs for containers, from the node's CDI specifications (Container Device Interface, versions up to 1.0).

``edits`` turns a selection (``all``, ``none``, ``0,1``, ``vendor.com/gpu=0``) into what a start has to add: mounts,
environment and library directories. A container has the node's own /dev, so a device node costs nothing there; what
limits a program to some GPUs is the variable that its vendor's libraries read (CUDA_VISIBLE_DEVICES and its like),
which is set to the selection, or kept as the caller has it (a plan is remembered, so it holds no caller's value).
Nothing is executed: a specification's hooks that make
links or refresh the linker's cache become mounts and directories of LD_LIBRARY_PATH, others are named in ``notes``.
Specifications say what root mounts, so a file that anybody but root may write is refused.
"""

from __future__ import annotations

import json
import os
import posixpath
import stat
from itertools import pairwise

from runtime import block_yaml
from runtime.record import Record
from runtime.refusal import StartRefused

TYPE_CHECKING = False  # see runtime/munge.py
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from typing import Any

DIRECTORIES = ("/etc/cdi", "/var/run/cdi")
"""Where specifications are; a device of a later directory takes the place of one of the same name in an earlier one."""

GPU_CLASS = "gpu"
VISIBLE = {
    "nvidia.com": ("CUDA_VISIBLE_DEVICES",),
    "amd.com": ("ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES"),
    "intel.com": ("ZE_AFFINITY_MASK",),
}
"""Which variables each vendor's libraries read, the one to set first; an unknown vendor is taken to read CUDA's."""

_OF_NO_USE = frozenset({"chmod", "disable-device-node-modification", "enable-cuda-compat"})
_LONGEST = 16 << 20  # bytes of one specification


class Mount(Record):
    """A host path to bind. ``kind``: dir, file or device; ``name``: the CDI device that asks for it."""

    source: str
    target: str
    kind: str
    read_only: bool
    name: str


class Edits(Record):
    """What a start adds. ``libraries`` go in front of LD_LIBRARY_PATH; ``notes`` are lines for ``-v``.

    ``keep``: variables of the caller's that stay although the environment is cleared; ``files``: what this was
    computed from, so that a remembered plan can tell whether it still holds.
    """

    mounts: tuple[Mount, ...] = ()
    environment: tuple[tuple[str, str], ...] = ()
    keep: tuple[str, ...] = ()
    libraries: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    files: tuple[str, ...] = ()


class Device(Record):
    """One device of a specification: its edits, those of its specification first."""

    vendor: str
    name: str
    file: str
    edits: tuple[Mapping[str, Any], ...]


def edits(selection: str, directories: Sequence[str] = DIRECTORIES) -> Edits:
    """What ``selection`` adds to a start. Raises StartRefused.

    ``all`` is every GPU of the node, of which the caller's own VISIBLE variables, commonly the batch system's, may
    leave some; ``none`` and "" add nothing.
    """
    names = [name.strip() for name in selection.split(",") if name.strip()]
    if not names or names == ["none"]:
        return Edits()
    known = read_devices(directories)
    if not known:
        raise StartRefused(
            f"--gpu={selection}: no GPU is described on this node ({', '.join(directories)}): "
            "run without --gpu, or tell the administrator"
        )
    chosen = [device for name in names for device in _named(name, known)]
    found = _merged(chosen)
    files = (*directories, *dict.fromkeys(device.file for device in known.values()))
    if "all" in names:
        keep = tuple(variable for family in VISIBLE.values() for variable in family)
        return found.changed(keep=keep, files=files)
    return found.changed(environment=(*found.environment, *_visible(chosen)), files=files)


def read_devices(directories: Sequence[str]) -> dict[str, Device]:
    """Qualified name (``vendor.com/gpu=0``) -> device, of all GPU specifications. Raises StartRefused."""
    found: dict[str, Device] = {}
    for directory in directories:
        here: dict[str, Device] = {}
        try:
            names = sorted(os.listdir(directory)) if os.path.isdir(directory) else []
        except OSError as error:
            raise StartRefused(f"{directory}: {error.strerror}: tell the administrator") from None
        for name in names:
            if name.endswith((".json", ".yaml", ".yml")):
                for qualified, device in _specification(f"{directory}/{name}"):
                    if qualified in here:
                        raise StartRefused(
                            f"{qualified} is described twice, in {here[qualified].file} and {device.file}: "
                            "tell the administrator"
                        )
                    here[qualified] = device
        found.update(here)
    return found


def _specification(path: str) -> Iterable[tuple[str, Device]]:
    value = _read(path)
    kind = value.get("kind") if isinstance(value, dict) else None
    if not isinstance(kind, str) or kind.count("/") != 1 or not isinstance(value.get("cdiVersion"), str):
        raise StartRefused(f"{path}: is no CDI specification (kind, cdiVersion): tell the administrator")
    vendor, _, device_class = kind.partition("/")
    if device_class != GPU_CLASS:
        return
    common = _mapping(value.get("containerEdits"), path)
    for device in _list(value.get("devices"), path):
        each = _mapping(device, path)
        name = each.get("name")
        if not isinstance(name, (str, int)) or str(name) == "":
            raise StartRefused(f"{path}: a device of it has no name: tell the administrator")
        own = _mapping(each.get("containerEdits"), path)
        yield f"{kind}={name}", Device(vendor, str(name), path, (common, own))


def _read(path: str) -> Any:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise StartRefused(f"{path}: {error.strerror}: tell the administrator") from None
    with os.fdopen(descriptor, encoding="utf-8", errors="surrogateescape") as file:
        status = os.fstat(descriptor)
        if status.st_uid != 0 or status.st_mode & 0o022 or not stat.S_ISREG(status.st_mode):
            raise StartRefused(f"{path}: must be a file of root's that nobody else may write: chown root, chmod go-w")
        text = file.read(_LONGEST)
    try:
        return json.loads(text) if path.endswith(".json") else block_yaml.parse(text)
    except ValueError as error:  # of JSON and of block_yaml
        raise StartRefused(f"{path}: cannot be read: {error}: tell the administrator") from None


def _named(name: str, known: Mapping[str, Device]) -> list[Device]:
    """The devices that one item of a selection means."""
    if name == "all":
        # a specification's own "all" has edits for all; else take them one by one
        whole = [device for device in known.values() if device.name == "all"]
        vendors = {device.vendor for device in whole}
        return whole + [device for device in known.values() if device.vendor not in vendors]
    if "=" in name and name in known:
        return [known[name]]
    found = [device for device in known.values() if device.name == name and "=" not in name]
    if not found:
        raise StartRefused(f"--gpu: there is no GPU {name!r} on this node; known are {', '.join(sorted(known))}")
    if len(found) > 1:
        choices = sorted(qualified for qualified, device in known.items() if device.name == name)
        raise StartRefused(f"--gpu: {name!r} may be {' or '.join(choices)}: give the whole name")
    return found


def _visible(chosen: Sequence[Device]) -> list[tuple[str, str]]:
    """The variables that tell the vendors' libraries to use these GPUs."""
    found: dict[str, list[str]] = {}
    for device in chosen:
        variable = VISIBLE.get(device.vendor, VISIBLE["nvidia.com"])[0]
        names = found.setdefault(variable, [])
        if device.name not in names:
            names.append(device.name)
    return [(variable, ",".join(names)) for variable, names in found.items()]


def _merged(chosen: Sequence[Device]) -> Edits:
    mounts: dict[str, Mount] = {}
    environment: dict[str, str] = {}
    libraries: dict[str, None] = {}
    notes: dict[str, None] = {}
    hooks: list[tuple[Device, Sequence[str]]] = []
    for device in chosen:
        for edit in device.edits:
            for pair in _texts(edit.get("env"), device.file):
                name, _, value = pair.partition("=")
                environment[name] = value
            for mount in [*_devices(edit, device), *_mounts(edit, device)]:
                mounts.setdefault(mount.target, mount)
            given = [_mapping(hook, device.file).get("args") for hook in _list(edit.get("hooks"), device.file)]
            hooks.extend((device, _texts(arguments, device.file)) for arguments in given)
            if edit.get("additionalGids"):
                notes[f"{device.file}: additionalGids has no effect: a container has its user's groups"] = None
    for device, arguments in hooks:
        _hook(device, arguments, mounts, libraries, notes)
    return Edits(
        mounts=tuple(mounts.values()), environment=tuple(environment.items()), libraries=tuple(libraries),
        notes=tuple(notes),
    )  # fmt: skip


def _devices(edit: Mapping[str, Any], device: Device) -> Iterable[Mount]:
    for node in _list(edit.get("deviceNodes"), device.file):
        each = _mapping(node, device.file)
        target = _path(each.get("path"), device.file)
        source = _path(each.get("hostPath") or target, device.file)
        if not os.path.exists(source):
            raise StartRefused(
                f"{device.vendor}/{GPU_CLASS}={device.name}: {source} is not there: the driver is not loaded, or "
                f"{device.file} is out of date: tell the administrator"
            )
        if source == target and target.startswith("/dev/"):
            continue  # every container has the node's /dev
        if target.startswith("/dev/"):
            raise StartRefused(f"{device.file}: {target} from {source}: a container's /dev is the node's own")
        yield Mount(source, target, "device", False, device.name)


def _mounts(edit: Mapping[str, Any], device: Device) -> Iterable[Mount]:
    for mount in _list(edit.get("mounts"), device.file):
        each = _mapping(mount, device.file)
        source, target = (_path(each.get(key), device.file) for key in ("hostPath", "containerPath"))
        options = _texts(each.get("options"), device.file)
        if not os.path.exists(source):
            raise StartRefused(f"{device.file}: {source} is not there: make the specification anew (driver update?)")
        yield Mount(source, target, "dir" if os.path.isdir(source) else "file", "rw" not in options, device.name)


def _hook(
    device: Device, arguments: Sequence[str], mounts: dict[str, Mount], libraries: dict[str, None],
    notes: dict[str, None],
) -> None:  # fmt: skip
    """Do what a well-known hook would do, without running it."""
    names = [argument for argument in arguments if not argument.startswith("-")]
    if "create-symlinks" in names:
        for text in _values(arguments, "--link"):
            value, separator, link = text.partition("::")
            target = posixpath.normpath(posixpath.join(posixpath.dirname(link), value))
            if separator and target in mounts and link.startswith("/"):
                # a second mount of the same file needs no writable directory, as a link would
                mounts.setdefault(link, mounts[target].changed(target=link))
            elif separator:
                notes[f"{device.file}: link {link} to {value} is not made: no mount provides {target}"] = None
    elif "update-ldcache" in names:
        for folder in _values(arguments, "--folder"):
            libraries[folder] = None
    elif not _OF_NO_USE.intersection(names):
        notes[f"{device.file}: hook {' '.join(arguments[:3])} is not run; no hook is"] = None


def _values(arguments: Sequence[str], option: str) -> list[str]:
    """What stands behind every ``option``, as ``option value`` or ``option=value``, in order."""
    found: list[str] = []
    for before, argument in pairwise(["", *arguments]):
        if before == option:
            found.append(argument)
        elif argument.startswith(option + "="):
            found.append(argument[len(option) + 1 :])
    return found


def _path(value: object, file: str) -> str:
    if not isinstance(value, str) or not value.startswith("/") or ".." in value.split("/"):
        raise StartRefused(f"{file}: {value!r} is no absolute path: tell the administrator")
    return posixpath.normpath(value)


def _mapping(value: object, file: str) -> dict[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise StartRefused(f"{file}: {str(value)[:40]!r} stands where an object is expected: tell the administrator")
    return value


def _list(value: object, file: str) -> list[Any]:
    if value is None:
        return []
    if not isinstance(value, list):
        raise StartRefused(f"{file}: {str(value)[:40]!r} stands where a list is expected: tell the administrator")
    return value


def _texts(value: object, file: str) -> list[str]:
    return [str(item) for item in _list(value, file)]
