"""Routes for monitoring: /healthz for a load balancer, /metrics for Prometheus. Neither tells a name of a user or image."""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import falcon
from eventsourcing.persistence import PersistenceError

from catalog.leases import SideTableUnavailable
from catalog.rest import send
from catalog.states import LIVE, State

if TYPE_CHECKING:
    from catalog.gateway import Gateway


class Health:
    """GET /healthz: 200 when event store, image list and side table answer, else 503 with what does not."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    def on_get(self, request: falcon.Request, response: falcon.Response) -> None:
        checks: dict[str, str] = {}
        gateway = self._gateway
        for name, check in (
            ("events", gateway.catalog.recorder.max_notification_id),
            ("images", gateway.images.connection),
            ("leases", gateway.leases.table.beats),
            ("workers", self._workers),
        ):
            try:
                check()
                checks[name] = "ok"
            except (PersistenceError, SideTableUnavailable, sqlite3.Error, OSError, RuntimeError) as error:
                checks[name] = str(error)
        healthy = all(state == "ok" for state in checks.values())
        status = falcon.HTTP_200 if healthy else falcon.HTTP_503
        send(response, {"healthy": healthy, "checks": checks}, status)

    def _workers(self) -> None:
        if not self._gateway.workers.healthy():
            raise RuntimeError("a worker thread has ended")


class Metrics:
    """GET /metrics: text format 0.0.4 of Prometheus. docs/administration.md explains each name."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    def on_get(self, request: falcon.Request, response: falcon.Response) -> None:
        response.content_type = "text/plain; version=0.0.4; charset=utf-8"
        response.text = "\n".join(self._lines()) + "\n"

    def _lines(self) -> Iterator[str]:
        gateway = self._gateway
        connection = gateway.images.connection()
        states = connection.execute("SELECT system, state, count(*) FROM records GROUP BY system, state").fetchall()
        yield from _metric(
            "shifter_references", "gauge", "Image references by state.",
            ((f'system="{system}",state="{state}"', count) for system, state, count in states),
        )  # fmt: skip
        waiting = [(system, state, count) for system, state, count in states if State(state) in LIVE]
        yield from _metric(
            "shifter_queue_length", "gauge", "Pulls and imports that wait or run.",
            [("", sum(count for _, _, count in waiting))],
        )  # fmt: skip
        actions = connection.execute("SELECT action, count(*) FROM history GROUP BY action").fetchall()
        yield from _metric(
            "shifter_events_total", "counter", "Events in the log by kind.",
            ((f'action="{action}"', count) for action, count in actions),
        )  # fmt: skip
        known, newest = gateway.images.position(), gateway.catalog.recorder.max_notification_id() or 0
        yield from _metric("shifter_event_log_position", "gauge", "Number of the newest event.", [("", newest)])
        yield from _metric(
            "shifter_image_list_lag", "gauge", "Events not yet in the image list.", [("", newest - known)]
        )
        counters = gateway.counters
        for name, kind, help_text, label in (
            ("shifter_stage_seconds_total", "counter", "Seconds spent in a stage of pulls and imports.", "stage"),
            ("shifter_attempts_total", "counter", "Pulls and imports that ended here, by outcome.", "outcome"),
            ("shifter_bytes_total", "counter", "Bytes that workers had to bring, by source.", "source"),
            ("shifter_lookups_total", "counter", "Look-ups by outcome.", "outcome"),
            ("shifter_cache_hits_total", "counter", "Work saved because it was done before.", "what"),
        ):
            yield from _metric(name, kind, help_text, ((f'{label}="{one}"', count) for one, count in counters.of(name)))
        yield from _metric(
            "shifter_store_bytes", "gauge", "Bytes of images that can be run, each file once.",
            ((f'system="{system}"', size) for system, size in connection.execute(
                "SELECT system, sum(size) FROM (SELECT DISTINCT system, object, size FROM records WHERE usable) "
                "GROUP BY system")),
        )  # fmt: skip
        yield from _metric(
            "shifter_changes_unsettled", "gauge", "Changes to who may run an image that could not be told to the nodes.",
            ((f'system="{name}"', left) for name, left in gateway.workers.settling.left.items()),
        )  # fmt: skip
        yield from _metric("shifter_disk_free_bytes", "gauge", "Free space where images and layers lie.", self._free())

    def _free(self) -> Iterator[tuple[str, float]]:
        configuration = self._gateway.configuration
        places = {"cache": configuration.cache_directory}
        places |= {one.name: one.image_dir for one in configuration.platforms.values() if one.accesstype == "local"}
        for name, directory in places.items():
            if os.path.isdir(directory):  # noqa: PTH112 — the path is configured, and may be absent until the first pull
                yield f'place="{name}"', shutil.disk_usage(directory).free


def _metric(name: str, kind: str, help_text: str, samples: Iterable[tuple[str, float]]) -> Iterator[str]:
    yield f"# HELP {name} {help_text}"
    yield f"# TYPE {name} {kind}"
    for labels, value in samples:
        yield f"{name}{{{labels}}} {value:.15g}" if labels else f"{name} {value:.15g}"
