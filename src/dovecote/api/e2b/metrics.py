"""E2B's routes of what sandboxes use."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated

from fastapi import APIRouter, Query
from fastapi.responses import JSONResponse

from dovecote.api.e2b.here import Here, SandboxId, found
from dovecote.control.metering import Sample
from dovecote.errors import NotFound

routes = APIRouter()

MOST_SANDBOXES = 100
LATEST = 253_402_300_799  # the last second that a date can say

Second = Annotated[int | None, Query(ge=0, le=LATEST)]


# Ahead of the one below, which would take `metrics` for a sandbox.
@routes.get("/sandboxes/metrics")
async def get_metrics_of_many(
    here: Here, ids: Annotated[str, Query(alias="sandbox_ids", max_length=10_000)]
) -> JSONResponse:
    """The newest sample of each; those that are not there are left out."""
    answers: dict[str, object] = {}
    for sandbox_id in [each for each in ids.split(",") if each][:MOST_SANDBOXES]:
        try:
            session = await found(here, sandbox_id)
        except NotFound:
            continue
        samples = await here.rooms.metering.history(here.tenant_id, session.id)
        if samples:
            answers[sandbox_id] = _shape(samples[-1])
    return JSONResponse({"sandboxes": answers})


@routes.get("/sandboxes/{sandbox_id}/metrics")
async def get_metrics(here: Here, sandbox_id: SandboxId, start: Second = None, end: Second = None) -> JSONResponse:
    session = await found(here, sandbox_id)
    since = None if start is None else datetime.fromtimestamp(start, UTC)
    until = None if end is None else datetime.fromtimestamp(end, UTC)
    samples = await here.rooms.metering.history(here.tenant_id, session.id, since=since, until=until)
    return JSONResponse([_shape(each) for each in samples])


def _shape(sample: Sample) -> dict[str, object]:
    return {
        "timestamp": sample.at.isoformat(),
        "timestampUnix": int(sample.at.timestamp()),
        "cpuCount": max(1, round(sample.limits.cpus)),
        "cpuUsedPct": sample.cpu_percent,
        "memUsed": sample.memory_bytes,
        "memTotal": sample.limits.memory_bytes,
        "memCache": sample.cache_bytes,
        "diskUsed": sample.disk_bytes,
        "diskTotal": sample.limits.disk_bytes,
    }
