"""Carries a pull out: joins the catalog's records to the pipeline of catalog.pull."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

from cas.store import Store
from catalog import reference as references
from catalog.config import Configuration, Location, Platform
from catalog.conversion_options import ConversionOptions
from catalog.credential import Credential
from catalog.desk import Wallet
from catalog.failure import PullFailed
from catalog.publication import Place, Publication
from catalog.pull import Observer, PulledImage
from catalog.record import Image, Record
from catalog.reference import RegistryReference
from catalog.workers import Watch


class Pull(Protocol):
    """The signature of catalog.pull.pull, so that a test or the simulator can put another in its place."""

    def __call__(
        self,
        source: RegistryReference,
        location: Location,
        platform: Platform,
        credential: Credential | None,
        layers: Store,
        images: Store,
        observer: Observer,
        options: ConversionOptions,
    ) -> PulledImage: ...


class PullJob:
    """A workers' Job. `deliver` takes a finished image to where its platform's nodes see it (remote platforms)."""

    def __init__(
        self,
        configuration: Configuration,
        publication: Publication,
        wallet: Wallet,
        pull: Pull,
        options: Callable[[Configuration, Platform], ConversionOptions],
    ) -> None:
        self._configuration = configuration
        self._publication = publication
        self._wallet = wallet
        self._pull = pull
        self._options = options
        self._layers: Store | None = None

    def carry_out(self, record: Record, watch: Watch) -> Image:
        platform = _known(self._configuration.platforms, record.reference.system)
        located = references.locate(
            record.reference.tag,
            default_location=self._configuration.default_location,
            locations=self._configuration.locations,
        )
        location = self._configuration.locations[located.location]
        assert record.attempt is not None
        place: Place = self._publication.place(platform)
        pulled = self._pull(
            located.source,
            location,
            platform,
            self._wallet.get(record.reference.uuid, record.attempt.number),
            self.layers(),
            place.store,
            watch,
            self._options(self._configuration, platform),
        )
        return Image.of(pulled)

    def layers(self) -> Store:
        """The store of downloaded layers, shared by all platforms."""
        if self._layers is None:
            # Layers of private images lie in it: nobody but the gateway needs to read them.
            self._layers = Store(self._configuration.cache_directory, private=True)
        return self._layers


def options_for(configuration: Configuration, platform: Platform) -> ConversionOptions:
    """How images for `platform` are written."""
    settings = configuration.pull
    return ConversionOptions(
        format=platform.format,
        arguments=configuration.converter_options.get(platform.format, ()),
        keep_user_xattrs=settings.keep_user_xattrs,
        keep_setuid=settings.keep_setuid,
        limits=settings.limits,
        scratch=configuration.expand_directory,
    )


def _known(platforms: Mapping[str, Platform], system: str) -> Platform:
    platform = platforms.get(system)
    if platform is None:
        raise PullFailed(f"system {system} is not configured here any more")
    return platform
