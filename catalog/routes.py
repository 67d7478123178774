"""Which path is answered by what: the one table of routes. docs/rest.md and catalog.openapi describe each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from catalog import openapi, rest_admin, rest_health, rest_history, rest_images, rest_login, rest_usage
from catalog.history import History

if TYPE_CHECKING:
    from catalog.gateway import Gateway

IMAGE = "/{system}/{itype}/{tag:path}"


def routes(gateway: Gateway) -> Mapping[str, object]:
    """Path templates of falcon and their resources. A trailing slash is the same path."""
    gate, leases, history = gateway.gate, gateway.leases, History(gateway.images)
    return {
        "/api/list/{system}": rest_images.List(gate),
        f"/api/lookup{IMAGE}": rest_images.Lookup(gate, gateway.lookups, gateway.counters),
        f"/api/pull{IMAGE}": rest_images.Pull(gate, leases, gateway.counters),
        f"/api/doimport{IMAGE}": rest_images.Import(gate, leases),
        "/api/queue/{system}": rest_images.Queue(gate, leases),
        f"/api/acl{IMAGE}": rest_images.Acl(gate),
        f"/api/image{IMAGE}": rest_images.Removal(gate),
        "/api/history/{system}": rest_history.Happened(gate, history),
        "/api/history/{system}/images": rest_history.Was(gate, history),
        "/api/usage/{system}": rest_usage.Used(gate, history),
        "/api/login/{system}": rest_login.Login(gate),
        f"/api/expire{IMAGE}": rest_admin.Expire(gate),
        "/api/autoexpire/{system}": rest_admin.AutoExpire(gate),
        f"/api/restore{IMAGE}": rest_admin.Restore(gate),
        "/api/metrics/{system}": rest_admin.Metrics(gate, leases, gateway.lookups),
        "/api/openapi.json": openapi.Description(),
        "/healthz": rest_health.Health(gateway),
        "/metrics": rest_health.Metrics(gateway),
    }
