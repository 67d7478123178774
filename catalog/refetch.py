"""Getting again, from its registry, what has rotted in a store: a layer as it is, an image file by pulling its image
again.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator

from cas.errors import StoreError
from cas.store import Store
from catalog import reference as references
from catalog.admin_session import Session
from catalog.failure import PullAborted, PullFailed
from catalog.fetch import fetch_layers
from catalog.pull import pull
from catalog.pull_job import options_for
from catalog.record import Record
from catalog.reference import RegistryReference
from catalog.registry import Registry
from catalog.resolve import resolve
from catalog.store_care import SiteStore


def refetch(session: Session, site: SiteStore, name: str, digest: str | None) -> str:
    """Tries to bring an object back; returns "" or why it could not be.

    Only images that a registry gives to anybody can be had: nobody's credential is kept. The image is pulled by its
    digest, and its layers with it when the layers' store lacks them; the same bytes come out, or the object stays
    missing.
    """
    reason = "set aside; no image of the catalog needs it"
    for record in session.images.all():
        if record.image is None or record.reference.itype != "docker" or not _has(record, site, name, digest):
            continue
        if not record.image.anonymous:
            reason = f"set aside; {record.reference} is not public: pull it again"
            continue
        try:
            _pull_again(session, site, record, digest)
        except (PullFailed, PullAborted, StoreError, references.ReferenceInvalid, KeyError) as error:
            reason = f"set aside; {record.reference} cannot be pulled again: {error}"
            continue
        if site.store.contains(name):
            return ""
        reason = f"set aside; {record.reference} does not bring it back"
    return reason


def _has(record: Record, site: SiteStore, name: str, digest: str | None) -> bool:
    image = record.image
    assert image is not None
    return image.object == name if site.images is not None else digest in (image.id, *image.layers)


def _pull_again(session: Session, site: SiteStore, record: Record, digest: str | None) -> None:
    configuration = session.configuration
    image = record.image
    assert image is not None
    platform = configuration.platforms[record.reference.system]
    located = references.locate(
        record.reference.tag, default_location=configuration.default_location, locations=configuration.locations
    )
    location = configuration.locations[located.location]
    options = options_for(configuration, platform)
    identity, quiet = f"sha256:{image.id}", _Quiet()
    if site.images is not None:
        source = RegistryReference(located.source.repository, None, identity)
        layers = Store(configuration.cache_directory)
        pull(source, location, platform, None, layers, site.store, quiet, options)
        return
    registry = Registry(
        name=location.name,
        url=location.url,
        repository=located.source.repository,
        credential=None,
        ca=location.sslcacert,
        proxy=location.proxy,
        limits=options.limits,
        pause=time.sleep,
        note=quiet.note,
    )
    with contextlib.closing(registry):
        what = str(record.reference)
        resolved = resolve(registry, identity, platform, what, options.limits)
        resolved.keep(site.store)
        fetch_layers(
            [registry],
            [layer for layer in resolved.manifest.layers if layer.sha256 == digest],
            site.store,
            options.limits,
            what=what,
            parallel=1,
            stop=threading.Event(),
            watch=lambda progress: None,
            note=quiet.note,
            claim=quiet.claim,
        )


class _Quiet:
    """An Observer to whom nobody listens."""

    def __init__(self) -> None:
        self._lock = threading.Lock()

    def stage(self, stage: object) -> None:
        pass

    def progress(self, *, done: int, total: int, layers_done: int, layers: int) -> None:
        pass

    def note(self, text: str) -> None:
        pass

    def check(self) -> None:
        pass

    @contextlib.contextmanager
    def claim(self, name: str) -> Iterator[None]:
        with self._lock:
            yield
