"""Routes of sessions."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

from fastapi import APIRouter, Query
from pydantic import Field

from dovecote.api.rest.here import After, Call, Here, Limit, NamedSnapshot, SessionId, pair
from dovecote.api.rest.shapes import (
    Body,
    InstanceShape,
    LagShape,
    NetworkShape,
    NewMount,
    Page,
    SampleShape,
    SessionShape,
    StartShape,
    duration,
    in_a_zone,
    session_shape,
)
from dovecote.control.metering import Sample
from dovecote.control.sessions import Wishes
from dovecote.model.states import AtTimeout, Park

routes = APIRouter(prefix="/v1/sessions", tags=["sessions"])

Seconds = Annotated[float, Field(gt=0, le=365 * 86400)]


class NewSession(Body):
    function: str = Field("sandbox", description="What it runs.")
    key: str | None = Field(None, description="Your own name for it; the server makes one if there is none.")
    user: str | None = Field(
        None, min_length=1, max_length=200, description="Your own name for the end user; `default`, or a snapshot's."
    )
    tier: str | None = Field(None, description="default, regular, vip or svip; the user's own if null.")
    idle_after_seconds: Seconds | None = Field(None, description="Parked after so long without use.")
    quiet_after_seconds: Seconds | None = Field(None, description="Frozen after so long without use.")
    ttl_seconds: Seconds | None = Field(None, description="Ends so long after its creation, used or not.")
    timeout_seconds: Seconds | None = Field(None, description="`at_timeout` comes so long from now; may be moved.")
    at_timeout: AtTimeout = Field(
        AtTimeout.END, description="end; pause: it stays until it is resumed; or park: that, but its files only."
    )
    park: Park = Field(
        Park.FILES, description="What is kept when nobody uses it: files, or memory where its level can."
    )
    resumes_on_use: bool = Field(True, description="Whether any use ends a pause; if not, only `:resume` does.")
    metadata: dict[str, str] = Field(default_factory=dict, description="Your own words, to find it by.")
    template: str | None = Field(None, max_length=200, description="Of a sandbox; the function's own if null.")
    spec: str | None = Field(None, max_length=40, description="Of a sandbox; the function's own if null.")
    level: str | None = Field(None, max_length=40, description="Isolation level of a sandbox.")
    network: NetworkShape | None = Field(None, description="What it may reach; as its function's if null.")
    snapshot: NamedSnapshot | None = Field(None, description="Begins with these files, and runs what they ran in.")
    env: dict[str, str] = Field(default_factory=dict, description="Environment of each of its commands.")
    mounts: list[NewMount] = Field(default_factory=list, max_length=32, description="Of volumes, into it alone.")
    wake: bool = Field(True, description="Whether to start its instance now.")


class NewTimeout(Body):
    timeout_seconds: Seconds | None = Field(description="From now; null for none.")


class Resume(Body):
    at_least_seconds: Seconds | None = Field(None, description="Its timeout is not sooner than that from now.")


class Pause(Body):
    hibernate: bool | None = Field(
        None, description="Whether its memory goes to the store; where its isolation level can if null."
    )


class ChangedSession(Body):
    tier: str | None = None
    idle_after_seconds: Seconds | None = None
    quiet_after_seconds: Seconds | None = None
    ttl_seconds: Seconds | None = None


@routes.post("", status_code=201, summary="Open a session")
async def create_session(here: Here, new: NewSession) -> SessionShape:
    rooms = here.rooms
    wishes = Wishes(
        function=new.function,
        key=new.key,
        user=new.user,
        tier=new.tier,
        idle_after=duration(new.idle_after_seconds),
        quiet_after=duration(new.quiet_after_seconds),
        ttl=duration(new.ttl_seconds),
        timeout=duration(new.timeout_seconds),
        at_timeout=new.at_timeout,
        park=new.park,
        resumes_on_use=new.resumes_on_use,
        env=new.env,
        metadata=new.metadata,
        mounts=[mount.record() for mount in new.mounts],
        template=new.template,
        spec=new.spec,
        level=new.level,
        network=new.network.record() if new.network else None,
    )
    wishes["mounts"] = await rooms.volumes.resolve(here.tenant_id, wishes["mounts"], **await _owner(here, new))
    if new.snapshot is not None:
        session = await rooms.snapshots.begin(here.tenant_id, new.snapshot, wake=new.wake, **wishes)
    else:
        session = await rooms.sessions.create(here.tenant_id, wake=new.wake, **wishes)
    return session_shape(session, rooms.addresses)


@routes.get("", summary="List sessions, in pages")
async def list_sessions(
    here: Here,
    function: Annotated[str | None, Query(max_length=40)] = None,
    user: Annotated[str | None, Query(max_length=200)] = None,
    state: Annotated[list[str] | None, Query(max_length=20, description="Any of these.")] = None,
    metadata: Annotated[list[str] | None, Query(max_length=64, description="`name:text`, each of these.")] = None,
    is_paused: bool | None = None,
    newest_first: bool = False,
    after: After = None,
    limit: Limit = 100,
) -> Page[SessionShape]:
    found = await here.rooms.sessions.list(
        here.tenant_id,
        function=function,
        user=user,
        state=state,
        metadata=dict(pair(each) for each in metadata or ()),
        is_paused=is_paused,
        newest_first=newest_first,
        after=after,
        limit=limit,
    )
    items = [session_shape(session, here.rooms.addresses) for session in found]
    return Page[SessionShape](items=items, next=found[-1].id if len(found) == limit else None)


@routes.get("/{session_id}", summary="One session")
async def get_session(here: Here, session_id: SessionId) -> SessionShape:
    return session_shape(await here.rooms.sessions.get(here.tenant_id, session_id), here.rooms.addresses)


@routes.patch("/{session_id}", summary="Change its times or tier, effective at once")
async def update_session(here: Here, session_id: SessionId, change: ChangedSession) -> SessionShape:
    session = await here.rooms.sessions.update(
        here.tenant_id,
        session_id,
        tier=change.tier,
        idle_after=duration(change.idle_after_seconds),
        quiet_after=duration(change.quiet_after_seconds),
        ttl=duration(change.ttl_seconds),
    )
    return session_shape(session, here.rooms.addresses)


@routes.delete("/{session_id}", status_code=204, summary="End it and delete its files")
async def delete_session(here: Here, session_id: SessionId) -> None:
    await here.rooms.sessions.delete(here.tenant_id, session_id)


@routes.post("/{session_id}:wake", summary="Bring it to ready, whatever it takes")
async def wake_session(here: Here, session_id: SessionId) -> SessionShape:
    return session_shape(await here.rooms.sessions.wake(here.tenant_id, session_id), here.rooms.addresses)


@routes.post("/{session_id}:pause", summary="Stop its processes where they are, until it is used or resumed")
async def pause_session(here: Here, session_id: SessionId, pause: Pause | None = None) -> SessionShape:
    hibernate = pause.hibernate if pause else None
    session = await here.rooms.sessions.pause(here.tenant_id, session_id, hibernate=hibernate)
    return session_shape(session, here.rooms.addresses)


@routes.post("/{session_id}:resume", summary="End a pause; ready whether it was paused or not")
async def resume_session(here: Here, session_id: SessionId, resume: Resume) -> SessionShape:
    at_least = duration(resume.at_least_seconds)
    session = await here.rooms.sessions.resume(here.tenant_id, session_id, at_least=at_least)
    return session_shape(session, here.rooms.addresses)


@routes.put("/{session_id}/timeout", summary="Move its timeout, or take it away")
async def set_timeout(here: Here, session_id: SessionId, new: NewTimeout) -> SessionShape:
    session = await here.rooms.sessions.set_timeout(here.tenant_id, session_id, duration(new.timeout_seconds))
    return session_shape(session, here.rooms.addresses)


@routes.put("/{session_id}/network", summary="What it may reach, effective at once for open connections too")
async def set_network(here: Here, session_id: SessionId, network: NetworkShape) -> SessionShape:
    session = await here.rooms.sessions.set_network(here.tenant_id, session_id, network.record())
    return session_shape(session, here.rooms.addresses)


@routes.post("/{session_id}:freeze", summary="Stop its CPU, keep its memory")
async def freeze_session(here: Here, session_id: SessionId) -> SessionShape:
    return session_shape(await here.rooms.sessions.freeze(here.tenant_id, session_id), here.rooms.addresses)


@routes.post("/{session_id}:park", summary="Save its files and stop its instance")
async def park_session(here: Here, session_id: SessionId) -> SessionShape:
    return session_shape(await here.rooms.sessions.park(here.tenant_id, session_id), here.rooms.addresses)


@routes.post("/{session_id}:save", summary="Save its files, keep it running")
async def save_session(here: Here, session_id: SessionId) -> SessionShape:
    return session_shape(await here.rooms.sessions.save(here.tenant_id, session_id), here.rooms.addresses)


@routes.put("/{session_id}/start", summary="Record how its server is started when it wakes")
async def set_start(here: Here, session_id: SessionId, start: StartShape) -> SessionShape:
    session = await here.rooms.sessions.set_start(here.tenant_id, session_id, start.record())
    return session_shape(session, here.rooms.addresses)


@routes.delete("/{session_id}/start", summary="Forget how its server is started")
async def clear_start(here: Here, session_id: SessionId) -> SessionShape:
    session = await here.rooms.sessions.set_start(here.tenant_id, session_id, None)
    return session_shape(session, here.rooms.addresses)


@routes.get("/{session_id}/instance", summary="The instance that it has now")
async def get_instance(here: Here, session_id: SessionId) -> InstanceShape:
    view = await here.rooms.sessions.instance(here.tenant_id, session_id)
    return InstanceShape(instance_id=view.instance_id, pid=view.pid, address=view.address, usage={**view.usage})


@routes.get("/{session_id}/metrics", summary="What it used in the last hour, oldest first; none while it rests")
async def get_metrics(
    here: Here, session_id: SessionId, since: datetime | None = None, until: datetime | None = None
) -> Page[SampleShape]:
    samples = await here.rooms.metering.history(
        here.tenant_id, session_id, since=in_a_zone(since), until=in_a_zone(until)
    )
    return Page[SampleShape](items=[_sample_shape(each) for each in samples], next=None)


@routes.get("/{session_id}/lag", summary="How far the store is behind its files")
async def get_lag(here: Here, session_id: SessionId) -> LagShape:
    lag = await here.rooms.sessions.lag(here.tenant_id, session_id)
    return LagShape(
        state=lag.state,
        saved_ago_seconds=lag.saved_ago,
        behind_seconds=lag.behind,
        pending=lag.pending,
        recovery_point_seconds=lag.recovery_point,
        error_code=lag.error_code,
    )


def _sample_shape(sample: Sample) -> SampleShape:
    return SampleShape(
        at=sample.at,
        cpu_percent=sample.cpu_percent,
        cpus=sample.limits.cpus,
        memory_bytes=sample.memory_bytes,
        cache_bytes=sample.cache_bytes,
        max_memory_bytes=sample.limits.memory_bytes,
        disk_bytes=sample.disk_bytes,
        max_disk_bytes=sample.limits.disk_bytes,
    )


async def _owner(here: Call, new: NewSession) -> dict[str, str]:
    """Whose session it becomes, in the words of `Volumes.resolve`."""
    if new.user is None and new.snapshot is not None:
        snapshot = await here.rooms.snapshots.find(here.tenant_id, new.snapshot)
        return {"user_id": (await here.rooms.sessions.get(here.tenant_id, snapshot.session_id)).user_id}
    return {"user": new.user or "default"}
