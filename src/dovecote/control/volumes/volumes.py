"""Volumes of a tenant: made, resized, mounted into sessions, deleted. All in one tenant's scope."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from dovecote.control.fleet import Fleet
from dovecote.control.sessions import Sessions
from dovecote.control.tenancy import Tenancy
from dovecote.control.volumes.limits import PathLimits, check_size
from dovecote.errors import Conflict, Forbidden, Invalid, NotFound
from dovecote.model.ids import new_id, parse_label
from dovecote.model.records import Session, Volume
from dovecote.model.states import SessionState
from dovecote.model.volumes import BUCKET, Mount, parse_mount
from dovecote.store import Store


@dataclass(frozen=True)
class VolumeView:
    """`used_bytes` is what its host counts now; None when the host does not have it."""

    volume: Volume
    used_bytes: int | None


class Volumes:
    def __init__(self, store: Store, fleet: Fleet, tenancy: Tenancy, sessions: Sessions) -> None:
        self._store = store
        self._fleet = fleet
        self._tenancy = tenancy
        self._sessions = sessions
        self.limits = PathLimits(store, fleet)

    async def create(self, tenant_id: str, name: str, *, max_bytes: int, user: str | None = None) -> Volume:
        """Raises Invalid, Conflict (exists), StorageFailed."""
        parse_label(name, "a volume")
        check_size(max_bytes)
        owner = await self._tenancy.user(tenant_id, user) if user is not None else None
        volume = Volume(
            id=new_id("vol"),
            tenant_id=tenant_id,
            name=name,
            user_id=owner.id if owner else None,
            host_id=self._fleet.place(prefer=None),
            max_bytes=max_bytes,
            created_at=datetime.now(UTC),
        )
        volume = await self._store.tenant(tenant_id).volumes.insert(volume)
        try:
            await self._fleet.host(volume.host_id).volumes.create(volume.id, max_bytes=max_bytes)
        except BaseException:
            await self._store.tenant(tenant_id).volumes.delete(volume.id)
            raise
        return volume

    async def get(self, tenant_id: str, name: str) -> Volume:
        """Raises NotFound (no_such_volume)."""
        found = await self._store.tenant(tenant_id).volumes.find(name=name)
        if found is None:
            raise NotFound(f"no volume {name!r}", code="no_such_volume", hint="`dovecote volume ls` lists them")
        return found

    async def by_id(self, tenant_id: str, volume_id: str) -> Volume:
        """Raises NotFound (no_such_volume)."""
        return await self._store.tenant(tenant_id).volumes.get(volume_id)

    async def view(self, volume: Volume) -> VolumeView:
        try:
            usage = await self._fleet.host(volume.host_id).volumes.usage(volume.id)
        except NotFound:
            return VolumeView(volume, None)  # a create that was cut off, or a pool that was lost
        return VolumeView(volume, usage.bytes)

    async def list(self, tenant_id: str, *, after: str | None = None, limit: int = 100) -> Sequence[Volume]:
        return await self._store.tenant(tenant_id).volumes.list(after=after, limit=limit)

    async def resize(self, tenant_id: str, name: str, *, max_bytes: int) -> Volume:
        """Effective at once, where it is mounted too. Raises Unsupported (cannot_shrink)."""
        check_size(max_bytes)
        volume = await self.get(tenant_id, name)
        await self._fleet.host(volume.host_id).volumes.limit(volume.id, max_bytes=max_bytes)
        return await self._store.tenant(tenant_id).volumes.swap(replace(volume, max_bytes=max_bytes))

    async def delete(self, tenant_id: str, name: str, *, force: bool = False) -> None:
        """With its files. Raises Conflict (in_use) while a session or a function names it, unless forced."""
        volume = await self.get(tenant_id, name)
        if not force:
            for user in await self._users(volume):
                raise Conflict(
                    f"volume {name} is mounted by {user}", code="in_use", hint="unmount it there, or delete it by force"
                )
        async for session in self._store.tenant(tenant_id).sessions.each(state=_NOT_ENDED):
            for mount in session.mounts:
                if mount.volume == volume.id:
                    await self._sessions.unmount(tenant_id, session.id, mount.at, force=True)
        async with self.limits.lock(volume.id):
            await self._fleet.host(volume.host_id).volumes.delete(volume.id)
            await self.limits.forget(volume)
            await self._store.tenant(tenant_id).volumes.delete(volume.id)

    async def _users(self, volume: Volume) -> Sequence[str]:
        scope = self._store.tenant(volume.tenant_id)
        async for session in scope.sessions.each(state=_NOT_ENDED):
            if any(mount.volume == volume.id for mount in session.mounts):
                return [f"session {session.id}"]
        async for function in scope.functions.each():
            revision = await scope.revisions.get(function.revision_id)
            if any(mount.volume == volume.id for mount in revision.mounts):
                return [f"function {function.name}"]
        return []

    async def resolve(
        self, tenant_id: str, mounts: Sequence[Mount], *, user_id: str | None = None, user: str | None = None
    ) -> tuple[Mount, ...]:
        """Mounts that name volumes by their names, as mounts that name them by their ids, for a user or for all.

        `user` is the tenant's own name for one, `user_id` ours. Limits that are asked for with them are set.

        Raises NotFound (no_such_volume), Invalid, Forbidden (not_its_user) for what belongs to another user.
        """
        found = []
        if user is not None and mounts:
            user_id = (await self._tenancy.user(tenant_id, user)).id
        for mount in mounts:
            if mount.volume.startswith(BUCKET):
                found.append(self._bucket(mount))
                continue
            volume = await self.get(tenant_id, mount.volume)
            if volume.user_id not in (None, user_id):
                raise Forbidden(
                    f"volume {volume.name} belongs to a user",
                    code="not_its_user",
                    hint="that user's sessions may mount it",
                )
            wanted = parse_mount(replace(mount, volume=volume.id))
            if wanted.max_bytes is not None:
                await self.limits.set(volume, wanted.path, wanted.max_bytes)
            found.append(replace(wanted, max_bytes=None))
        return tuple(found)

    def _bucket(self, mount: Mount) -> Mount:
        """Of the operator's buckets, which all tenants may read."""
        there = self._fleet.host(self._fleet.place(prefer=None)).buckets()
        if mount.volume.removeprefix(BUCKET) not in there:
            raise NotFound(
                f"no bucket {mount.volume!r}",
                code="no_such_volume",
                hint="the operator lists in DOVECOTE_MOUNT_BUCKETS: " + (", ".join(there) or "none so far"),
            )
        if not mount.read_only:
            raise Invalid(
                f"{mount.volume} can only be read", code="read_only", hint="mount it read-only: `:ro`, `read_only=True`"
            )
        if mount.max_bytes is not None:
            raise Invalid(f"{mount.volume} can only be read, so it has no limit", code="read_only")
        return parse_mount(mount)

    async def names(self, tenant_id: str, mounts: Sequence[Mount]) -> Sequence[Mount]:
        """The same the other way, for whoever reads them."""
        scope = self._store.tenant(tenant_id)
        shown = []
        for mount in mounts:
            if mount.volume.startswith(BUCKET):
                shown.append(mount)
                continue
            volume = await scope.volumes.find(id=mount.volume)
            shown.append(replace(mount, volume=volume.name if volume else mount.volume))
        return shown

    async def mount(self, tenant_id: str, session_id: str, mount: Mount) -> Session:
        """Into a session, at once where it lives, and again whenever it wakes. Raises Conflict (exists), NotFound."""
        session = await self._sessions.get(tenant_id, session_id)
        (wanted,) = await self.resolve(tenant_id, [mount], user_id=session.user_id)
        return await self._sessions.mount(tenant_id, session_id, wanted)


_NOT_ENDED = [state for state in SessionState if state is not SessionState.ENDED]
