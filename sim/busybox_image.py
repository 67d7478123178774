"""An OCI image of this machine's busybox, made without network or any tool: the image that a site is tried out with.

Follows the OCI image layout 1.0 (oci-layout, index.json, blobs/sha256/). The same busybox gives the same bytes. It holds one
layer: /bin/busybox, a link for each of its applets, and the few files of /etc that programs look for.
"""

import gzip
import hashlib
import io
import json
import platform
import shutil
import struct
import subprocess
import tarfile
from pathlib import Path
from typing import Any

PT_INTERP = 3  # elf(5): the program header that names a dynamic linker


class ImageNotMade(Exception):
    """The image cannot be made; the text says what to install."""


def write(directory: Path, *, tag: str = "latest", busybox: Path | None = None) -> None:
    """Write an OCI layout to `directory` (made if absent), readable by all, with the image as `tag`.

    Raises ImageNotMade when this machine has no busybox, or one that needs shared libraries.
    """
    found = busybox or Path(shutil.which("busybox", path="/usr/local/bin:/usr/bin:/bin") or "/bin/busybox")
    try:
        program = found.read_bytes()
    except OSError as error:
        raise ImageNotMade(f"{found}: {error.strerror}: install busybox-static (`make build` does)") from error
    if _is_dynamic(program):
        raise ImageNotMade(f"{found} needs shared libraries: install busybox-static (`make build` does)")
    listed = subprocess.run([found, "--list"], capture_output=True, text=True, check=True).stdout.split()
    layer = _layer(program, listed)
    blobs = directory / "blobs" / "sha256"
    blobs.mkdir(parents=True, exist_ok=True)
    compressed = gzip.compress(layer, compresslevel=6, mtime=0)
    configuration = {
        "architecture": architecture(),
        "os": "linux",
        "config": {
            "Env": ["PATH=/usr/sbin:/usr/bin:/sbin:/bin"],
            "Cmd": ["/bin/sh"],
            "Labels": {"made-from": "busybox"},
        },
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(layer).hexdigest()}"]},
        "history": [{"created_by": "shifter-sim image"}],
    }
    manifest = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": _blob(blobs, "application/vnd.oci.image.config.v1+json", _json(configuration)),
        "layers": [_blob(blobs, "application/vnd.oci.image.layer.v1.tar+gzip", compressed)],
    }
    described = _blob(blobs, manifest["mediaType"], _json(manifest))
    index = {
        "schemaVersion": 2,
        "manifests": [{**described, "annotations": {"org.opencontainers.image.ref.name": tag}}],
    }
    (directory / "index.json").write_bytes(_json(index))
    (directory / "oci-layout").write_bytes(_json({"imageLayoutVersion": "1.0.0"}))


def architecture() -> str:
    """This machine's architecture as images call it: "amd64", "arm64" ..."""
    machine = platform.machine()
    return {"x86_64": "amd64", "aarch64": "arm64"}.get(machine, machine)


def _is_dynamic(program: bytes) -> bool:
    if program[:5] != b"\x7fELF\x02":  # not a 64-bit ELF file: a script, or something else that cannot stand alone
        return True
    offset, size, count = struct.unpack_from("<Q", program, 32)[0], *struct.unpack_from("<HH", program, 54)
    return any(struct.unpack_from("<I", program, offset + number * size)[0] == PT_INTERP for number in range(count))


def _layer(program: bytes, applets: list[str]) -> bytes:
    files = {
        "etc/os-release": 'NAME="BusyBox"\nID=busybox\nPRETTY_NAME="BusyBox, an image made by shifter-sim"\n',
        "etc/passwd": "root:x:0:0:root:/root:/bin/sh\n",
        "etc/group": "root:x:0:\n",
    }
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, mode in (("bin", 0o755), ("etc", 0o755), ("root", 0o700), ("tmp", 0o1777), ("var", 0o755)):
            member = tarfile.TarInfo(name)
            member.type, member.mode = tarfile.DIRTYPE, mode
            tar.addfile(member)
        _add(tar, "bin/busybox", program, 0o755)
        for applet in sorted(set(applets) - {"busybox"}):
            link = tarfile.TarInfo(f"bin/{applet}")
            link.type, link.linkname, link.mode = tarfile.SYMTYPE, "busybox", 0o777
            tar.addfile(link)
        for name, text in files.items():
            _add(tar, name, text.encode(), 0o644)
    return buffer.getvalue()


def _add(tar: tarfile.TarFile, name: str, content: bytes, mode: int) -> None:
    member = tarfile.TarInfo(name)
    member.size, member.mode = len(content), mode
    tar.addfile(member, io.BytesIO(content))


def _blob(blobs: Path, media_type: Any, content: bytes) -> dict[str, Any]:
    digest = hashlib.sha256(content).hexdigest()
    (blobs / digest).write_bytes(content)
    return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(content)}


def _json(document: object) -> bytes:
    return json.dumps(document, sort_keys=True, separators=(",", ":")).encode()
