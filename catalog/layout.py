"""Images that come as files: OCI layouts, and the archives that `docker save`, `podman save` and `skopeo copy` write.

Reads a directory or a tar archive of an OCI image layout (index.json, blobs/), or a docker-archive (manifest.json
with its layers as tar files). Every blob is checked against its digest on its way into the layer store; a
docker-archive, which names none, gets a manifest made for it. From there on it is the same way as that of a pull.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import lzma
import os
import stat
import tarfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Protocol

from cas.errors import DigestMismatch, SizeMismatch, StoreError
from cas.store import Store
from catalog.assemble import Observer, PulledImage, assemble, pulled_image
from catalog.conversion_options import ConversionOptions, OptionsInvalid
from catalog.conversions import conversion_key, recall
from catalog.failure import PullFailed
from catalog.limits import Limits
from catalog.manifest import OCI_MANIFEST, Descriptor
from catalog.resolve import Source, resolve
from catalog.rights import READ, SEARCH
from catalog.states import Stage

if TYPE_CHECKING:
    from catalog.config import Platform

_NAME = "org.opencontainers.image.ref.name"
_LAYER = "application/vnd.oci.image.layer.v1.tar"
_LINKS = 8
_MEMBERS = 10_000
_CONFIG = "application/vnd.oci.image.config.v1+json"


def pull_layout(
    path: Path,
    platform: Platform,
    layers: Store,
    images: Store,
    observer: Observer,
    options: ConversionOptions,
    *,
    tag: str | None = None,
    allowed: Allowed = lambda descriptor, right: None,
) -> PulledImage:
    """Brings an image in from a file or directory. tag: which of several images in it; needed only then. allowed: asked
    for each directory and file in a directory, as it is opened.

    The image counts as not anonymous: nobody has shown that everybody may have it. Raises PullFailed, PullAborted.
    """
    what = path.name
    try:
        with _opened(path, options.limits, allowed, observer.check) as files:
            observer.stage(Stage.PULLING)
            source, reference = _source(files, layers, what, tag, options.limits)
            resolved = resolve(source, reference, platform, what, options.limits)
            resolved.keep(layers)
            wanted = resolved.manifest.layers
            key = conversion_key([layer.sha256 for layer in wanted], options)
            stored = recall(images, key)
            if stored is None:
                total, done = sum(layer.size for layer in wanted), 0
                names = []
                for number, layer in enumerate(wanted, 1):
                    observer.check()
                    names.append(source.bring(layer))
                    done += layer.size
                    observer.progress(done=done, total=total, layers_done=number, layers=len(wanted))
                observer.stage(Stage.EXAMINATION)
                stored = assemble(key, names, layers, images, observer, options, what=what)
            return pulled_image(resolved, stored, options, platform.arch, anonymous=False)
    except StoreError as error:
        raise PullFailed(str(error)) from error
    except OptionsInvalid as error:
        raise PullFailed(f"{error}: tell the administrator") from error
    except (OSError, EOFError, tarfile.TarError, zlib.error, lzma.LZMAError) as error:
        raise PullFailed(f"{path} cannot be read: {error}") from error


Allowed = Callable[[int, int], None]
"""Raises PullFailed when the right (catalog.rights) to an open file is not given."""


class Files(Protocol):
    """Files by name, in a directory or an archive."""

    def open(self, name: str) -> BinaryIO:
        """Raises FileNotFoundError."""


class _Directory:
    """Files below a directory, found by open directories: links in it are followed as long as they stay inside."""

    def __init__(self, root: int, allowed: Allowed) -> None:
        self._root, self._allowed = root, allowed

    def open(self, name: str) -> BinaryIO:
        try:
            return os.fdopen(self._found(name), "rb")
        except OSError:
            raise FileNotFoundError(name) from None

    def _found(self, name: str) -> int:
        left, links = list(reversed(Path(name).parts)), 0
        trail = [os.dup(self._root)]
        try:
            while left:
                part = left.pop()
                if part == ".." and len(trail) > 1:
                    os.close(trail.pop())
                    continue
                if part in ("..", "/"):
                    raise FileNotFoundError(name)  # out of the layout
                here = os.open(part, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=trail[-1])
                trail.append(here)
                found = os.fstat(here)
                if stat.S_ISLNK(found.st_mode):
                    links += 1
                    if links > _LINKS:
                        raise FileNotFoundError(name)
                    left += reversed(Path(os.readlink("", dir_fd=here)).parts)
                    os.close(trail.pop())
                elif stat.S_ISDIR(found.st_mode):
                    self._allowed(here, SEARCH)
                elif left or not stat.S_ISREG(found.st_mode):
                    raise FileNotFoundError(name)
            self._allowed(trail[-1], READ)
            return os.open(f"/proc/self/fd/{trail[-1]}", os.O_RDONLY | os.O_CLOEXEC)
        finally:
            for fd in trail:
                os.close(fd)


class _Archive:
    def __init__(self, archive: tarfile.TarFile, what: str, limits: Limits, check: Callable[[], None]) -> None:
        self._archive = archive
        self._members = {}
        total = 0
        for number, member in enumerate(archive):
            check()
            total += member.size
            if number >= _MEMBERS or member.size > limits.layer or total > limits.unpacked:
                raise PullFailed(f"{what} holds more than an image may: {number + 1} files, {total} bytes so far")
            if member.isfile() or member.issym():
                self._members[member.name.removeprefix("./")] = member

    def open(self, name: str) -> BinaryIO:
        member = self._members.get(name)
        for _ in range(8):
            if member is None or member.isfile():
                break
            # docker save names repeated layers by links: "../<id>/layer.tar".
            target = Path(member.name).parent / member.linkname
            member = self._members.get(_without_dots(target))
        file = self._archive.extractfile(member) if member is not None and member.isfile() else None
        if file is None:
            raise FileNotFoundError(name)
        return file  # type: ignore[return-value]  # a buffered reader, which is a BinaryIO in all but name


@contextlib.contextmanager
def _opened(path: Path, limits: Limits, allowed: Allowed, check: Callable[[], None]) -> Iterator[Files]:
    if path.is_dir():
        root = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            yield _Directory(root, allowed)
        finally:
            os.close(root)
        return
    with tarfile.open(path, "r:*") as archive:
        yield _Archive(archive, path.name, limits, check)


class _Bringing(Source, Protocol):
    def bring(self, layer: Descriptor) -> str: ...


def _source(files: Files, layers: Store, what: str, tag: str | None, limits: Limits) -> tuple[_Bringing, str]:
    """What kind of files these are, and the digest of the image in them that is meant."""
    index = _json(files, "index.json", limits)
    if isinstance(index, dict):
        return _Layout(files, layers, what, limits), _choose(index, what, tag)
    manifest = _json(files, "manifest.json", limits)
    if isinstance(manifest, list):
        archive = _DockerArchive(files, layers, what, limits, manifest, tag)
        return archive, archive.digest
    raise PullFailed(f"{what} is neither an OCI layout (index.json) nor a docker-archive (manifest.json)")


def _choose(index: dict[str, object], what: str, tag: str | None) -> str:
    entries = index.get("manifests")
    found: dict[str, str] = {}
    for entry in entries if isinstance(entries, list) else []:
        if isinstance(entry, dict) and isinstance(entry.get("digest"), str):
            notes = entry.get("annotations")
            name = notes.get(_NAME) if isinstance(notes, dict) else None
            found[name if isinstance(name, str) else entry["digest"]] = entry["digest"]
    if tag is not None and tag in found:
        return found[tag]
    if tag is None and len(found) == 1:
        return next(iter(found.values()))
    wanted = f"no image {tag!r}" if tag is not None else "several images"
    raise PullFailed(f"{what} holds {wanted if found else 'no image'}; available: {', '.join(sorted(found)) or 'none'}")


class _Layout:
    """A Source over an OCI layout."""

    def __init__(self, files: Files, layers: Store, what: str, limits: Limits) -> None:
        self._files, self._layers, self._what, self._limits = files, layers, what, limits

    def manifest(self, reference: str, what: str, size: int | None = None) -> tuple[bytes, str, str]:
        content = self._read(reference, f"the manifest {reference}")
        return content, "", reference

    def small_blob(self, descriptor: Descriptor, what: str, name: str) -> bytes:
        return self._read(descriptor.digest, name)

    def bring(self, layer: Descriptor) -> str:
        """Puts a layer into the store; returns its object name. Raises PullFailed, StoreError."""
        name = self._layers.find_sha256(layer.sha256)
        if name is not None and self._layers.renew(name):
            return name
        try:
            with self._open(layer.digest) as file:
                return self._layers.put_stream(file, sha256=layer.sha256, size=layer.size).name
        except (DigestMismatch, SizeMismatch) as error:
            raise PullFailed(f"{self._what} holds other bytes for layer {layer.digest}: {error}") from error

    def _read(self, digest: str, name: str) -> bytes:
        with self._open(digest) as file:
            content = file.read(self._limits.manifest + 1)
        if len(content) > self._limits.manifest:
            raise PullFailed(f"{name} in {self._what} is larger than {self._limits.manifest} bytes, which is the limit")
        if "sha256:" + hashlib.sha256(content).hexdigest() != digest:
            raise PullFailed(f"{self._what} holds other bytes for {name} than its digest says")
        return content

    def _open(self, digest: str) -> BinaryIO:
        algorithm, _, text = digest.partition(":")
        if algorithm != "sha256" or not text.isalnum():
            raise PullFailed(f"{self._what} names the digest {digest[:100]!r}, which is none")
        try:
            return self._files.open(f"blobs/{algorithm}/{text}")
        except FileNotFoundError:
            raise PullFailed(f"{self._what} lacks the blob {digest}") from None


class _DockerArchive:
    """A Source over what `docker save` writes: the layers are put into the store first, to learn their digests."""

    def __init__(
        self, files: Files, layers: Store, what: str, limits: Limits, manifest: list[object], tag: str | None
    ) -> None:
        self._names: dict[str, str] = {}
        entry = self._choose(manifest, what, tag)
        config, paths = entry.get("Config"), entry.get("Layers")
        if not isinstance(config, str) or not isinstance(paths, list) or not all(isinstance(one, str) for one in paths):
            raise PullFailed(f"manifest.json of {what} is malformed")
        if len(paths) > limits.layers:
            raise PullFailed(f"{what} has {len(paths)} layers, allowed are {limits.layers}")
        descriptors = []
        try:
            with files.open(config) as file:
                self._config = file.read(limits.manifest + 1)
            for path in paths:
                with files.open(path) as file:
                    put = layers.put_stream(file)
                self._names[put.sha256] = put.name
                descriptors.append({"mediaType": _LAYER, "digest": f"sha256:{put.sha256}", "size": put.size})
        except FileNotFoundError as error:
            raise PullFailed(f"{what} lacks the file {error}") from error
        described = {
            "mediaType": _CONFIG,
            "digest": "sha256:" + hashlib.sha256(self._config).hexdigest(),
            "size": len(self._config),
        }
        document = {"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": described, "layers": descriptors}
        self._manifest = json.dumps(document, sort_keys=True).encode()
        self.digest = "sha256:" + hashlib.sha256(self._manifest).hexdigest()

    @staticmethod
    def _choose(manifest: list[object], what: str, tag: str | None) -> dict[str, object]:
        entries = [entry for entry in manifest if isinstance(entry, dict)]
        tags = {id(entry): _texts(entry.get("RepoTags")) for entry in entries}
        fitting = [entry for entry in entries if tag is None or tag in tags[id(entry)]]
        if len(fitting) == 1:
            return fitting[0]
        names = sorted(name for found in tags.values() for name in found)
        wanted = f"no image {tag!r}" if tag is not None else "several images" if entries else "no image"
        raise PullFailed(f"{what} holds {wanted}; available: {', '.join(names) or 'none'}")

    def manifest(self, reference: str, what: str, size: int | None = None) -> tuple[bytes, str, str]:
        return self._manifest, OCI_MANIFEST, self.digest

    def small_blob(self, descriptor: Descriptor, what: str, name: str) -> bytes:
        return self._config

    def bring(self, layer: Descriptor) -> str:
        return self._names[layer.sha256]


def _json(files: Files, name: str, limits: Limits) -> object:
    """The JSON value in a file; None when there is no such file. Raises PullFailed."""
    try:
        with files.open(name) as file:
            content = file.read(limits.manifest + 1)
    except FileNotFoundError:
        return None
    if len(content) > limits.manifest:
        raise PullFailed(f"{name} is larger than {limits.manifest} bytes, which is the limit")
    try:
        value: object = json.load(io.BytesIO(content))
    except (ValueError, RecursionError) as error:
        raise PullFailed(f"{name} is not JSON: {error}") from error
    return value


def _texts(value: object) -> list[str]:
    return [text for text in value if isinstance(text, str)] if isinstance(value, list) else []


def _without_dots(path: Path) -> str:
    parts: list[str] = []
    for part in path.parts:
        if part == "..":
            parts = parts[:-1]
        elif part != ".":
            parts.append(part)
    return "/".join(parts)
