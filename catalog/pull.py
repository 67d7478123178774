"""One image from a registry into the stores: the pipeline from a reference to a verified image file.

Resolve the reference, choose the manifest of the platform, fetch the missing layers, merge them as a stream into the
squashfs writer, verify what it wrote, put it into the store. No unpacked tree lies on a disk on the way. A pull
either returns a PulledImage, whose object is durable, or raises, and leaves nothing behind but complete layers. It
knows no events and no ACLs: its caller hears of it by an Observer.
"""

from __future__ import annotations

import contextlib
import threading
from typing import TYPE_CHECKING

from cas.errors import StoreError
from cas.store import Object, Store
from catalog.assemble import Observer, PulledImage, assemble, pulled_image
from catalog.conversion_options import ConversionOptions, OptionsInvalid
from catalog.conversions import conversion_key, recall
from catalog.credential import Credential
from catalog.failure import PullAborted, PullFailed
from catalog.fetch import Progress, fetch_layers
from catalog.manifest import Descriptor
from catalog.registry import Registry
from catalog.registry_auth import Refused
from catalog.resolve import Resolved, resolve
from catalog.signature import Unsigned, load_keys, verify
from catalog.states import Stage

if TYPE_CHECKING:
    from catalog.config import Location, Platform
    from catalog.reference import RegistryReference

__all__ = ["ConversionOptions", "Credential", "Observer", "PullAborted", "PullFailed", "PulledImage", "pull"]


def pull(
    source: RegistryReference,
    location: Location,
    platform: Platform,
    credential: Credential | None,
    layers: Store,
    images: Store,
    observer: Observer,
    options: ConversionOptions,
) -> PulledImage:
    """Pulls an image.

    The registry is asked without the credential first: what it gives so is public. Raises PullFailed with the reason
    in a sentence, and PullAborted when the observer says so.
    """
    try:
        with contextlib.ExitStack() as stack:
            pipeline = _Pipeline(source, location, platform, layers, images, observer, options)
            return pipeline.run(credential, stack)
    except StoreError as error:
        raise PullFailed(str(error)) from error
    except OptionsInvalid as error:
        raise PullFailed(f"{error}: tell the administrator") from error


class _Pipeline:
    """One pull. Its `stop` ends the waits of all its threads."""

    def __init__(
        self,
        source: RegistryReference,
        location: Location,
        platform: Platform,
        layers: Store,
        images: Store,
        observer: Observer,
        options: ConversionOptions,
    ) -> None:
        self.source = source
        self.location = location
        self.platform = platform
        self.layers = layers
        self.images = images
        self.observer = observer
        self.options = options
        self.limits = options.limits
        self.what = str(source)
        self.stop = threading.Event()
        self.caller = threading.get_ident()

    def run(self, credential: Credential | None, stack: contextlib.ExitStack) -> PulledImage:
        self.observer.stage(Stage.PULLING)
        self.observer.check()
        registry, resolved, anonymous = self._enter(credential, stack)
        self._check_signature(registry, resolved)
        resolved.keep(self.layers)
        key = conversion_key([layer.sha256 for layer in resolved.manifest.layers], self.options)
        stored = recall(self.images, key) or self._fetch_and_assemble(registry, resolved, key, stack)
        return pulled_image(resolved, stored, self.options, self.platform.arch, anonymous=anonymous)

    def _fetch_and_assemble(
        self, registry: Registry, resolved: Resolved, key: str, stack: contextlib.ExitStack
    ) -> Object:
        wanted = resolved.manifest.layers
        mirrors = [self._registry(None, stack, url=mirror) for mirror in self.location.mirrors]
        names = fetch_layers(
            [*mirrors, registry],
            wanted,
            self.layers,
            self.limits,
            what=self.what,
            parallel=self.location.connections,
            stop=self.stop,
            watch=self._watch,
            note=self.observer.note,
            claim=self.observer.claim,
        )
        self.observer.stage(Stage.EXAMINATION)
        ordered = [names[layer.sha256] for layer in wanted]
        return assemble(key, ordered, self.layers, self.images, self.observer, self.options, what=self.what)

    def _check_signature(self, registry: Registry, resolved: Resolved) -> None:
        """Does what the location's policy says. Raises PullFailed."""
        policy = self.location.signature_policy
        if policy == "none":
            return
        try:
            verify(resolved.digests, load_keys(self.location.signature_keys), _Signatures(registry, self.what))
        except Unsigned as error:
            if policy == "require":
                raise PullFailed(f"{self.what} is refused, as this site takes signed images only: {error}") from error
            self.observer.note(f"{self.what} is not signed as it should be: {error}")

    def _enter(self, credential: Credential | None, stack: contextlib.ExitStack) -> tuple[Registry, Resolved, bool]:
        """The registry as whom it lets in, anonymously if it does, with what it has for the reference."""
        registry = self._registry(None, stack)
        try:
            return registry, self._resolve(registry), True
        except Refused:
            if credential is None:
                raise
        registry = self._registry(credential, stack)
        return registry, self._resolve(registry), False

    def _registry(
        self, credential: Credential | None, stack: contextlib.ExitStack, *, url: str | None = None
    ) -> Registry:
        """The repository at the location, or at a mirror of it, which gets no credential."""
        registry = Registry(
            name=self.location.name if url is None else url,
            url=url or self.location.url,
            repository=self.source.repository,
            credential=credential,
            ca=self.location.sslcacert,
            proxy=self.location.proxy,
            limits=self.limits,
            pause=self._pause,
            note=self.observer.note,
        )
        stack.callback(registry.close)
        return registry

    def _resolve(self, registry: Registry) -> Resolved:
        reference = self.source.digest or self.source.tag or "latest"
        return resolve(registry, reference, self.platform, self.what, self.limits)

    def _pause(self, seconds: float) -> None:
        """Waits, ready to stop. Threads of the download hear of it by `stop`, the calling thread asks the observer
        itself.
        """
        left = seconds
        while True:
            if threading.get_ident() == self.caller:
                self.observer.check()
            if self.stop.wait(min(left, 1.0)):
                raise PullAborted("the pull was stopped")
            left -= 1.0
            if left <= 0:
                return

    def _watch(self, progress: Progress) -> None:
        self.observer.check()
        done, layers_done = progress.now()
        self.observer.progress(done=done, total=progress.total, layers_done=layers_done, layers=progress.layers)


class _Signatures:
    """A catalog.signature.Repository: where the registry has an image, seen from its signatures."""

    def __init__(self, registry: Registry, what: str) -> None:
        self._registry = registry
        self._what = f"the signature of {what}"

    def manifest(self, reference: str) -> bytes:
        return self._registry.manifest(reference, self._what)[0]

    def referrers(self, digest: str) -> bytes:
        return self._registry.referrers(digest, self._what)

    def blob(self, descriptor: Descriptor) -> bytes:
        return self._registry.small_blob(descriptor, self._what, self._what)
