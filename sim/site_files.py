"""The files of a site in a directory: where each lies, and what the configuration of its parts says.

Files that a person may want to change (imagemanager.json, udiRoot.conf, registry.yml, shifter_etc_files/) are written once
and kept from then on; when a port changed since, only the values that hold it are replaced. Every directory can be read by
every user, as on a real site's nodes; the munge key and the registry's secret cannot.
"""

import json
import re
import secrets
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sim.busybox_image import architecture

MUNGE_KEY_BYTES = 128
ETC_FILES = ("passwd", "group", "nsswitch.conf")


@dataclass(frozen=True)
class Layout:
    """The paths below a site's directory D, which is absolute."""

    directory: Path

    @property
    def imagemanager(self) -> Path:
        return self.directory / "etc" / "imagemanager.json"

    @property
    def udiroot(self) -> Path:
        return self.directory / "etc" / "udiRoot.conf"

    @property
    def etc_files(self) -> Path:
        return self.directory / "etc" / "shifter_etc_files"

    @property
    def registry_config(self) -> Path:
        return self.directory / "etc" / "registry.yml"

    @property
    def munge_key(self) -> Path:
        return self.directory / "munge" / "munge.key"

    @property
    def record(self) -> Path:
        return self.directory / "run" / "site.json"

    @property
    def lock(self) -> Path:
        return self.directory / "run" / "lock"

    @property
    def bin(self) -> Path:
        return self.directory / "bin"

    def log(self, daemon: str) -> Path:
        return self.directory / "log" / f"{daemon}.log"

    def make_directories(self) -> None:
        """Create what is absent, readable by all; `scratch` is for every user to write to, as a site's scratch is."""
        for name in (
            "",
            "etc",
            "etc/shifter_etc_files",
            "images",
            "cache",
            "expand",
            "state",
            "registry",
            "munge",
            "run",
        ):
            _make(self.directory / name, 0o755)
        for name in ("log", "bin", "libexec", "var", "var/udiMount", "var/loopMount"):
            _make(self.directory / name, 0o755)
        _make(self.directory / "scratch", 0o1777)


def _make(directory: Path, mode: int) -> None:
    try:
        directory.mkdir(parents=True)
    except FileExistsError:  # from the last time, or another command was here first: the lock lies in one of these
        return
    directory.chmod(mode)  # whatever the umask


@dataclass(frozen=True)
class Endpoints:
    """What the site's parts need to know of each other. `locations` are further registries: name -> URL, "" for the usual one."""

    name: str
    registry_port: int
    gateway_port: int
    munge_socket: Path
    locations: Mapping[str, str]

    @property
    def registry(self) -> str:
        return f"127.0.0.1:{self.registry_port}"

    @property
    def gateway(self) -> str:
        return f"http://127.0.0.1:{self.gateway_port}"


def write(layout: Layout, endpoints: Endpoints) -> None:
    """Write every file that is absent, and the ports into those that exist. Raises ValueError when one cannot be read."""
    _write_registry_config(layout, endpoints)
    _write_imagemanager(layout, endpoints)
    _write_udiroot(layout, endpoints)
    for name in ETC_FILES:
        target = layout.etc_files / name
        source = Path("/etc") / name
        if not target.exists():
            if source.exists():
                shutil.copyfile(source, target)
            else:
                target.write_text("passwd: files\ngroup: files\nhosts: files dns\n")
            target.chmod(0o644)


def write_munge_key(layout: Layout) -> None:
    """Make the site's own munge key, if it has none: munged needs it before the ports are known."""
    if not layout.munge_key.exists():
        layout.munge_key.touch(mode=0o600)
        layout.munge_key.write_bytes(secrets.token_bytes(MUNGE_KEY_BYTES))


def _write_registry_config(layout: Layout, endpoints: Endpoints) -> None:
    file = layout.registry_config
    address = f"  addr: {endpoints.registry}\n"
    if file.exists():
        file.write_text(re.sub(r"^  addr: .*\n", address, file.read_text(), count=1, flags=re.MULTILINE))
        return
    file.touch(mode=0o600)
    file.write_text(
        "version: 0.1\n"
        "storage:\n"
        f"  filesystem:\n    rootdirectory: {json.dumps(str(layout.directory / 'registry'))}\n"
        "  cache:\n    blobdescriptor: inmemory\n"
        "  delete:\n    enabled: true\n"
        "http:\n"
        f"{address}"
        f"  secret: {secrets.token_hex(16)}\n"
    )


def _write_imagemanager(layout: Layout, endpoints: Endpoints) -> None:
    file, name = layout.imagemanager, endpoints.name
    try:
        document = json.loads(file.read_text()) if file.exists() else _new_imagemanager(layout, endpoints)
        document["ListenPort"] = endpoints.gateway_port
        document["Locations"][document["DefaultImageLocation"]]["url"] = f"http://{endpoints.registry}"
        document["Platforms"][name]["mungeSocketPath"] = str(endpoints.munge_socket)
        for location, url in endpoints.locations.items():
            document["Locations"][location] = {"remotetype": "dockerv2", "authentication": "http"}
            if url:
                document["Locations"][location]["url"] = url
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{file}: {error!r}: mend the file, or remove it to have it written anew") from error
    file.write_text(json.dumps(document, indent=2) + "\n")
    file.chmod(0o644)


def _new_imagemanager(layout: Layout, endpoints: Endpoints) -> dict[str, Any]:
    return {
        "ListenHost": "127.0.0.1",
        "ListenPort": endpoints.gateway_port,
        "StateDirectory": str(layout.directory / "state"),
        "WorkerThreads": 4,
        "LogLevel": "INFO",
        "DefaultImageLocation": "site",
        "DefaultImageFormat": "squashfs",
        "PullUpdateTimeout": 300,
        "ImageExpirationTimeout": "90:00:00:00",
        "CacheDirectory": str(layout.directory / "cache"),
        "ExpandDirectory": str(layout.directory / "expand"),
        "ImportUsers": "all",
        "Authentication": "munge",
        "Locations": {"site": {"remotetype": "dockerv2", "authentication": "http", "url": ""}},
        "Platforms": {
            endpoints.name: {
                "mungeSocketPath": "",
                "accesstype": "local",
                "admins": ["root"],
                "arch": architecture(),
                "local": {"imageDir": str(layout.directory / "images")},
            }
        },
    }


def _write_udiroot(layout: Layout, endpoints: Endpoints) -> None:
    file, directory = layout.udiroot, layout.directory
    gateway = f"imageGateway={endpoints.gateway}\n"
    if file.exists():
        file.write_text(re.sub(r"^imageGateway=.*\n", gateway, file.read_text(), count=1, flags=re.MULTILINE))
        return
    values = {
        "udiMount": directory / "var" / "udiMount",
        "loopMount": directory / "var" / "loopMount",
        "imagePath": directory / "images",
        "udiRootPath": directory,
        "etcPath": layout.etc_files,
        "rootfsType": "tmpfs",
        "perNodeCachePath": directory / "var",
        "mkfsXfsPath": _tool("mkfs.xfs"),
        "modprobePath": _tool("modprobe"),
        "insmodPath": _tool("insmod"),
        "cpPath": _tool("cp"),
        "mvPath": _tool("mv"),
        "chmodPath": _tool("chmod"),
        "ddPath": _tool("dd"),
        "allowLocalChroot": 0,
        "autoLoadKernelModule": 0,
        "mountUdiRootWritable": 1,
        "maxGroupCount": 31,
        "gatewayTimeout": 10,
        "defaultImageType": "docker",
        "system": endpoints.name,
    }
    lines = [f"# The site in {directory}. The launcher knows this file's path by compilation.\n"]
    lines += [f"{key}={value}\n" for key, value in values.items()]
    file.write_text("".join(lines) + gateway)
    file.chmod(0o644)


def _tool(name: str) -> str:
    """Where the host has a tool that udiRoot.conf must name by its absolute path."""
    found = shutil.which(name, path="/usr/sbin:/usr/bin:/sbin:/bin")
    return found or f"/usr/sbin/{name}"
