"""`shifter-gateway`: the image gateway as a process, and `Gateway`, which joins its parts.

Starts from one imagemanager.json, serves until SIGTERM or SIGINT, and leaves unfinished pulls to its next start or to
another gateway of the same store.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from types import FrameType

from eventsourcing.persistence import PersistenceError

from cas.errors import StoreError
from cas.store import Store
from catalog import publish as published
from catalog.acl import Access
from catalog.application import Catalog, StoreUnavailable, open_factory, open_mirror, open_side_table
from catalog.callers import Callers
from catalog.config import Configuration, load
from catalog.config_reader import ConfigError
from catalog.counters import Counters
from catalog.desk import Desk, Wallet
from catalog.examiner import Examined
from catalog.image_list import ImageList
from catalog.import_job import ImportJob
from catalog.leases import Leases, SideTableUnavailable
from catalog.lookup_log import LookupLog
from catalog.munge import MungeUnavailable
from catalog.publication import Publication
from catalog.pull import PulledImage, pull
from catalog.pull_job import Pull, PullJob, options_for
from catalog.rates import Rates
from catalog.record import Image
from catalog.rest import Gate, make_app
from catalog.routes import routes
from catalog.serving import Server
from catalog.workers import Job, Workers

log = logging.getLogger("shifter.gateway")

READY_LINE = "shifter-gateway: serving on"


class Gateway:
    """A gateway in this process. `app` is its WSGI application; `workers.start()` sets it to work.

    `pull` takes the place of catalog.pull.pull, `clock` (Unix seconds) that of the system's: for tests and the
    simulator. Raises StoreUnavailable, StoreError, MungeUnavailable.
    """

    def __init__(
        self,
        configuration: Configuration,
        *,
        pull: Pull = pull,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
        instance: str | None = None,
    ) -> None:
        self.configuration = configuration
        configuration.state_directory.mkdir(parents=True, exist_ok=True)
        self.catalog = Catalog(open_factory(configuration.store), clock)
        self.images = ImageList(
            configuration.state_directory / "images.sqlite", self.catalog.recorder, self.catalog.mapper
        )
        self.leases = Leases(
            open_side_table(self.catalog.factory, configuration.store),
            configuration.lease_seconds,
            instance=instance,
            monotonic=monotonic,
        )
        self.wallet = Wallet()
        self.counters = Counters()
        self.publication = Publication(configuration, self.images, _Published(), lambda name: self.workers.alone(name))
        self.pulls = PullJob(configuration, self.publication, self.wallet, pull, options_for)
        self.imports = ImportJob(configuration, self.publication, self.pulls.layers, options_for)
        self.workers = Workers(
            configuration,
            self.catalog,
            self.images,
            self.leases,
            self.publication,
            self.wallet,
            self._job,
            monotonic,
            self.counters,
        )
        self.desk = Desk(
            configuration,
            self.catalog,
            self.images,
            self.leases,
            self.publication,
            self.wallet,
            self.workers.wake,
            self.workers.settling.soon,
        )
        self.lookups = LookupLog(self.leases.table, clock, on=configuration.metrics)
        mirror = open_mirror(self.catalog.factory, self.images, configuration, self.leases)

        def each_beat() -> None:
            self.lookups.flush()
            mirror()

        self.workers.each_beat = each_beat
        limits = configuration.limits
        rates = Rates(limits.requests_per_second, limits.requests_burst, monotonic)
        strangers = Rates(limits.anonymous_per_second, limits.anonymous_burst, monotonic)
        self.gate = Gate(self.desk, Callers(configuration), rates, strangers)
        self.app = make_app(routes(self))

    def close(self) -> None:
        """Stops the workers and gives leases back."""
        all_ended = self.workers.stop()
        self.lookups.flush()
        if not all_ended:
            return  # the process ends, and with it what a job deep in a download still holds
        self.images.close()
        self.leases.table.close()
        self.catalog.close()

    def _job(self, kind: str) -> Job:
        job: Job = self.imports if kind == "import" else self.pulls
        return Examined(job, self.configuration, self.publication)


def publication_of(configuration: Configuration, images: ImageList, leases: Leases) -> Publication:
    """A Publication for a process without workers (shifter-admin): its turns are leases alone."""

    @contextmanager
    def alone(name: str) -> Iterator[None]:
        while not leases.take(f"alone:{name}"):
            leases.beat()
            time.sleep(0.05)
        try:
            yield
        finally:
            leases.drop(f"alone:{name}")

    return Publication(configuration, images, _Published(), alone)


class _Published:
    """catalog.publish for the catalog's own type of image."""

    def publish(self, image_dir: Path, images: Store, image: Image, access: Access) -> None:
        published.publish(image_dir, images, PulledImage(**vars(image)), access)

    def withdraw(self, image_dir: Path, image_id: str) -> None:
        published.withdraw(image_dir, image_id)


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Exit status 0 after SIGTERM or SIGINT, 1 when it cannot start, 2 for a wrong command line."""
    parser = argparse.ArgumentParser(
        prog="shifter-gateway",
        description="Serves container images to a cluster: pulls them from registries, converts them, keeps their history.",
        epilog="Example: shifter-gateway --config /etc/shifter/imagemanager.json. The configuration's keys: "
        "docs/administration.md.",
    )
    parser.add_argument("--version", action="version", version=f"shifter-gateway {version('shifter')}")
    parser.add_argument(
        "--config",
        type=Path,
        default=Path(os.environ.get("GWCONFIG", "/etc/shifter/imagemanager.json")),
        help="the configuration file (default: $GWCONFIG, else /etc/shifter/imagemanager.json)",
    )
    parser.add_argument("--host", help="the address to listen on, in place of ListenHost")
    parser.add_argument("--port", type=int, help="the port to listen on, in place of ListenPort")
    parser.add_argument(
        "--check", action="store_true", help="read the configuration, say what is wrong with it, and stop"
    )
    options = parser.parse_args(argv)
    try:
        configuration = load(options.config)
    except ConfigError as error:
        return _stop(str(error))
    for warning in configuration.warnings:
        print(f"shifter-gateway: warning: {warning}", file=sys.stderr)
    if options.check:
        print(f"{options.config}: valid")
        return 0
    logging.basicConfig(
        level={"WARN": "WARNING"}.get(configuration.log_level, configuration.log_level),
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
        stream=sys.stderr,
    )
    host = options.host or configuration.listen_host
    port = configuration.listen_port if options.port is None else options.port
    try:
        gateway = Gateway(configuration)
        server = Server(gateway.app, host, port, configuration)
    except (StoreUnavailable, StoreError, SideTableUnavailable, MungeUnavailable, PersistenceError) as error:
        return _stop(str(error))
    except OSError as error:
        return _stop(f"cannot listen on {host}:{port}: {error.strerror or error}")

    def end(number: int, frame: FrameType | None) -> None:
        raise SystemExit(0)

    signal.signal(signal.SIGTERM, end)
    gateway.workers.start()
    print(f"{READY_LINE} http://{server.host}:{server.port}", flush=True)
    try:
        server.run()
    except (KeyboardInterrupt, SystemExit):
        log.info("stopping")
    finally:
        server.close()
        gateway.close()
    return 0


def _stop(reason: str) -> int:
    print(f"shifter-gateway: {reason}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
