"""A volume's files, for whoever has no sandbox of their own that mounts it."""

from __future__ import annotations

import hmac
import posixpath

from dovecote.control.sessions import Sessions
from dovecote.control.volumes.volumes import Volumes
from dovecote.errors import Conflict, Forbidden, NotFound
from dovecote.model.records import Session, Volume
from dovecote.model.volumes import Mount
from dovecote.store import Store

AT = "/mnt/volume"
PREFIX = "volume:"  # of the keys of such sessions
SPEC = "nano"


class Contents:
    """Each volume has a session that mounts it and that nobody else uses: its files are read and written from inside.

    So nothing in a volume, whoever put it there, is followed by anybody but a sandbox. The session's token is the right
    to do so. It is made when it is first asked for, sleeps like any other, and ends with its volume.
    """

    def __init__(self, store: Store, sessions: Sessions, volumes: Volumes) -> None:
        self._store = store
        self._sessions = sessions
        self._volumes = volumes

    async def session(self, volume: Volume) -> Session:
        """The volume's own. May be repeated."""
        there = await self._find(volume)
        if there is not None:
            return there
        try:
            return await self._sessions.create(
                volume.tenant_id, key=PREFIX + volume.id, spec=SPEC, mounts=[Mount(volume.id, AT)], wake=False
            )
        except Conflict:
            there = await self._find(volume)  # another request was first
            if there is None:
                raise
            return there

    async def token(self, volume: Volume) -> str:
        """Lets its holder act on this volume's files alone."""
        session = await self.session(volume)
        return f"{session.slug}_{session.token}"

    async def admit(self, token: str, volume_id: str) -> Session:
        """The session to act in. Raises Forbidden (bad_token)."""
        slug, _, rest = token.partition("_")
        try:
            session = await self._sessions.by_slug(slug)
        except NotFound:
            raise _refused() from None
        is_it = session.key == PREFIX + volume_id and hmac.compare_digest(session.token.encode(), rest.encode())
        if not is_it:
            raise _refused()
        return session

    async def forget(self, volume: Volume) -> None:
        """Ends the volume's session, ahead of the volume's end. May be repeated."""
        there = await self._find(volume)
        if there is not None:
            await self._sessions.delete(volume.tenant_id, there.id)

    async def _find(self, volume: Volume) -> Session | None:
        sessions = self._store.tenant(volume.tenant_id).sessions
        return await sessions.find(key=PREFIX + volume.id, live_marker="live")


def place(path: str) -> str:
    """Where a path of the volume is inside; none leads out of it."""
    return posixpath.normpath(f"{AT}/{posixpath.normpath('/' + path).lstrip('/')}")


def is_for_volume(session: Session) -> bool:
    return session.key.startswith(PREFIX)


def _refused() -> Forbidden:
    return Forbidden("not the token of this volume", code="bad_token", hint="ask for the volume to learn its token")
