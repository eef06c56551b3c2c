"""Tells Envoy which instances serve which app, in a file that it watches."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from dovecote.errors import Invalid
from dovecote.gateway.clusters import Json, composite, instances_cluster

LINGER = 600.0  # seconds that an app at zero keeps its clusters, so that its requests in flight end in peace

_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_ADDRESS = re.compile(r"(\d{1,3}(?:\.\d{1,3}){3}):(\d{1,5})")
_CLUSTER = "type.googleapis.com/envoy.config.cluster.v3.Cluster"


def cluster_name(app: str) -> str:
    return f"app/{app}"


def instances_name(app: str) -> str:
    return f"app/{app}/instances"


def render_apps(apps: Mapping[str, Sequence[str]]) -> Json:
    """Two clusters an app: its instances, and the choice between them and the wake listener.

    One file for all of them: Envoy opens an inotify instance for each file it watches, and a user has 128.
    """
    resources: list[Json] = []
    for app, addresses in sorted(apps.items()):
        instances = instances_cluster(instances_name(app), [parse_address(address) for address in addresses])
        whole = composite(cluster_name(app), instances_name(app), instances_name(app), "wake")
        resources += [{"@type": _CLUSTER, **cluster} for cluster in (instances, whole)]
    return {"resources": resources}


def read_apps(response: Json) -> dict[str, tuple[str, ...]]:
    """What `render_apps` was given."""
    apps: dict[str, tuple[str, ...]] = {}
    for cluster in response["resources"]:
        if "load_assignment" in cluster:
            endpoints = [one for group in cluster["load_assignment"]["endpoints"] for one in group["lb_endpoints"]]
            sockets = [one["endpoint"]["address"]["socket_address"] for one in endpoints]
            name = cluster["name"].removeprefix("app/").removesuffix("/instances")
            apps[name] = tuple(f"{socket['address']}:{socket['port_value']}" for socket in sockets)
    return apps


def parse_address(address: str) -> tuple[str, int]:
    """`ip:port` in its parts. Raises Invalid."""
    match = _ADDRESS.fullmatch(address)
    if match is None or not 0 < int(match[2]) < 65536 or any(int(part) > 255 for part in match[1].split(".")):
        raise Invalid(f"not an address: {address!r}", hint="instances are named as ip:port")
    return match[1], int(match[2])


def plan_apps(
    told: Mapping[str, Sequence[str]], wanted: Mapping[str, Sequence[str]], empty_since: Mapping[str, float], now: float
) -> dict[str, tuple[str, ...]]:
    """Apps that Envoy is to know: those with instances, and those that lately had some. Others are asked about."""
    lingering = [app for app in told if app in wanted and now - empty_since.get(app, now) < LINGER]
    live = {app: tuple(addresses) for app, addresses in wanted.items() if addresses}
    return {app: live.get(app, ()) for app in {*lingering, *live}}


class AppFile:
    """What Envoy was told. The file is replaced as a whole, and not at all if nothing would change."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._told: dict[str, tuple[str, ...]] = {}
        self._empty_since: dict[str, float] = {}

    def open(self, *, is_kept: bool) -> None:
        """With `is_kept` takes over what a former process told, so that an Envoy which goes on keeps its routes."""
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            self._told = read_apps(json.loads(self.path.read_text())) if is_kept else {}
        except (OSError, ValueError, KeyError):
            is_kept = False
        if not is_kept:
            self._write()

    def set(self, apps: Mapping[str, Sequence[str]], now: float | None = None) -> None:
        """Blocking. Raises Invalid, and then nothing has changed."""
        now = time.monotonic() if now is None else now
        for app, addresses in apps.items():
            if not _NAME.fullmatch(app):
                raise Invalid(f"not a name of an app: {app!r}", hint="letters a-z, digits and dashes")
            for address in addresses:
                parse_address(address)
        planned = plan_apps(self._told, apps, self._empty_since, now)
        self._empty_since = {app: self._empty_since.get(app, now) for app in planned if not planned[app]}
        if planned != self._told:
            self._told = planned
            self._write()

    def _write(self) -> None:
        """Envoy sees the old file or the new one. No fsync: after a crash of the machine Envoy starts anew as well."""
        draft = self.path.with_name(f".{self.path.name}.new")
        draft.write_text(json.dumps(render_apps(self._told)))
        os.replace(draft, self.path)
