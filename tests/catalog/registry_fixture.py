"""A real registry of the distribution project on a free port, and images made by hand to put into it."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import subprocess
import tarfile
import threading
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import requests

from cas.store import Store
from catalog.conversion_options import ConversionOptions
from catalog.credential import Credential
from catalog.pull import PulledImage, pull
from catalog.reference import RegistryReference

OCI = "application/vnd.oci.image."


def file(name: str | bytes, content: bytes = b"", **fields: Any) -> tuple[tarfile.TarInfo, bytes]:
    return _member(name, tarfile.REGTYPE, content, fields)


def directory(name: str | bytes, **fields: Any) -> tuple[tarfile.TarInfo, bytes]:
    return _member(name, tarfile.DIRTYPE, b"", {"mode": 0o755, **fields})


def symlink(name: str | bytes, target: str, **fields: Any) -> tuple[tarfile.TarInfo, bytes]:
    return _member(name, tarfile.SYMTYPE, b"", {"linkname": target, "mode": 0o777, **fields})


def hardlink(name: str | bytes, target: str, **fields: Any) -> tuple[tarfile.TarInfo, bytes]:
    return _member(name, tarfile.LNKTYPE, b"", {"linkname": target, **fields})


def device(name: str, **fields: Any) -> tuple[tarfile.TarInfo, bytes]:
    return _member(name, tarfile.CHRTYPE, b"", {"devmajor": 1, "devminor": 3, **fields})


def whiteout(path: str) -> tuple[tarfile.TarInfo, bytes]:
    parent, _, base = path.rpartition("/")
    return file(f"{parent}/.wh.{base}" if parent else f".wh.{base}")


def opaque(path: str) -> tuple[tarfile.TarInfo, bytes]:
    return file(f"{path}/.wh..wh..opq")


def _member(name: str | bytes, kind: bytes, content: bytes, fields: dict[str, Any]) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name if isinstance(name, str) else name.decode("utf-8", "surrogateescape"))
    info.type, info.size = kind, len(content)
    for key, value in fields.items():
        setattr(info, key, value)
    return info, content


def tar(*members: tuple[tarfile.TarInfo, bytes], format: int = tarfile.GNU_FORMAT) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=format, errors="surrogateescape") as archive:
        for info, content in members:
            archive.addfile(info, io.BytesIO(content))
    return stream.getvalue()


def gz(content: bytes) -> bytes:
    return gzip.compress(content, 1, mtime=0)


def sha256(content: bytes) -> str:
    return "sha256:" + hashlib.sha256(content).hexdigest()


@dataclass(frozen=True)
class Built:
    """An image as a registry holds it: its manifest and, by digest, its blobs."""

    manifest: bytes
    media_type: str
    blobs: dict[str, bytes] = field(repr=False)

    @property
    def digest(self) -> str:
        return sha256(self.manifest)

    @property
    def id(self) -> str:
        return self.digest.removeprefix("sha256:")


def build(
    *layers: bytes,
    config: dict[str, Any] | None = None,
    arch: str = "amd64",
    media: Sequence[str] | None = None,
    docker: bool = False,
) -> Built:
    """An image of these layer blobs. media: the layers' media types; docker: schema 2 instead of OCI."""
    document = {
        "architecture": arch,
        "os": "linux",
        "config": config or {},
        "rootfs": {"type": "layers", "diff_ids": []},
    }
    content = json.dumps(document).encode()
    kinds = media or [
        ("application/vnd.docker.image.rootfs.diff.tar.gzip" if docker else OCI + "layer.v1.tar+gzip") for _ in layers
    ]
    kind = "application/vnd.docker.distribution.manifest.v2+json" if docker else OCI + "manifest.v1+json"
    config_kind = "application/vnd.docker.container.image.v1+json" if docker else OCI + "config.v1+json"
    manifest = {
        "schemaVersion": 2,
        "mediaType": kind,
        "config": {"mediaType": config_kind, "digest": sha256(content), "size": len(content)},
        "layers": [
            {"mediaType": k, "digest": sha256(layer), "size": len(layer)}
            for k, layer in zip(kinds, layers, strict=True)
        ],
    }
    blobs = {sha256(content): content, **{sha256(layer): layer for layer in layers}}
    return Built(json.dumps(manifest).encode(), kind, blobs)


def index(*images: tuple[Built, dict[str, str]]) -> Built:
    """An index over images, each with its platform."""
    document = {
        "schemaVersion": 2,
        "mediaType": OCI + "index.v1+json",
        "manifests": [
            {"mediaType": image.media_type, "digest": image.digest, "size": len(image.manifest), "platform": platform}
            for image, platform in images
        ],
    }
    return Built(json.dumps(document).encode(), OCI + "index.v1+json", {})


@dataclass(frozen=True)
class LiveRegistry:
    """A running docker-registry. address: host:port."""

    address: str
    root: Path

    @property
    def url(self) -> str:
        return f"http://{self.address}"

    def push(self, name: str, tag: str, image: Built) -> None:
        for digest, content in image.blobs.items():
            if requests.head(f"{self.url}/v2/{name}/blobs/{digest}", timeout=10).status_code == 200:
                continue
            started = requests.post(f"{self.url}/v2/{name}/blobs/uploads/", timeout=10)
            done = requests.put(started.headers["Location"], params={"digest": digest}, data=content, timeout=60)
            assert done.status_code == 201, done.text
        done = requests.put(
            f"{self.url}/v2/{name}/manifests/{tag}",
            data=image.manifest,
            headers={"Content-Type": image.media_type},
            timeout=10,
        )
        assert done.status_code == 201, done.text


def running_registry(root: Path, port: int, extra: str = "") -> Iterator[LiveRegistry]:
    """Starts docker-registry on loopback with its data below root; ends it when the caller is done."""
    root.mkdir(parents=True, exist_ok=True)
    configuration = root / "config.yml"
    configuration.write_text(
        "version: 0.1\nlog: {level: error, accesslog: {disabled: true}}\n"
        f"storage: {{filesystem: {{rootdirectory: {root / 'data'}}}, delete: {{enabled: true}}}}\n"
        f"http: {{addr: '127.0.0.1:{port}'}}\n{extra}"
    )
    with (root / "log").open("wb") as log:
        process = subprocess.Popen(["docker-registry", "serve", str(configuration)], stdout=log, stderr=log)
    try:
        live = LiveRegistry(f"127.0.0.1:{port}", root)
        _until_it_answers(live, process)
        yield live
    finally:
        process.terminate()
        process.wait()


def _until_it_answers(live: LiveRegistry, process: subprocess.Popen[bytes]) -> None:
    session = requests.Session()
    session.mount(
        "http://", requests.adapters.HTTPAdapter(max_retries=requests.adapters.Retry(20, backoff_factor=0.02))
    )
    end = time.monotonic() + 20
    while time.monotonic() < end and process.poll() is None:
        try:
            session.get(f"{live.url}/v2/", timeout=5)
            return
        except requests.ConnectionError:
            continue
    raise AssertionError(f"docker-registry does not answer: {(live.root / 'log').read_text()}")


class Watcher:
    """An observer that writes down what it hears."""

    def __init__(self) -> None:
        self.stages: list[str] = []
        self.last: dict[str, int] = {}
        self.notes: list[str] = []

    def stage(self, stage: str) -> None:
        self.stages.append(str(stage))

    def progress(self, **numbers: int) -> None:
        self.last = numbers

    def note(self, text: str) -> None:
        self.notes.append(text)

    def check(self) -> None:
        pass

    def claim(self, name: str) -> AbstractContextManager[bool]:
        return _claims[name]


_claims: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)


@dataclass
class Puller:
    """Pulls with stores of its own below `directory`."""

    directory: Path
    url: str
    options: ConversionOptions = field(default_factory=ConversionOptions)
    watcher: Watcher = field(default_factory=Watcher)
    location: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.layers = Store(self.directory / "cache", sync=False)
        self.images = Store(self.directory / "images" / "cas", sync=False)

    def pull(
        self, text: str, *, arch: str = "amd64", variant: str | None = None, credential: Credential | None = None
    ) -> PulledImage:
        name, _, digest = text.partition("@")
        repository, _, tag = name.partition(":")
        location = {
            "name": "testing",
            "url": self.url,
            "sslcacert": None,
            "auth_method": "token",
            "proxy": None,
            "mirrors": (),
            "connections": 4,
            "signature_policy": "none",
            "signature_keys": (),
        }
        return pull(
            RegistryReference(repository, tag or None, digest or None),
            SimpleNamespace(**{**location, **self.location}),  # type: ignore[arg-type]  # the fields that a pull reads
            SimpleNamespace(arch=arch, variant=variant),  # type: ignore[arg-type]  # the same
            credential,
            self.layers,
            self.images,
            self.watcher,
            self.options,
        )

    def litter(self) -> list[str]:
        """What lies in the temporary directories of both stores."""
        return [path.name for store in (self.layers, self.images) for path in (store.root / "tmp").iterdir()]
