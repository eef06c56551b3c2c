"""filesystem.Filesystem's watches: as a stream of events, or kept until they are asked for."""

from __future__ import annotations

import contextlib
import posixpath
from collections import OrderedDict
from collections.abc import AsyncGenerator
from contextlib import aclosing

from dovecote.api.e2b.call import Call, absolute
from dovecote.api.e2b.filesystem import Filesystem, shown
from dovecote.api.e2b.messages import Json, Message
from dovecote.control.sandboxes import FileChange, Sandboxes
from dovecote.errors import DovecoteError, Failed

PING: Json = {"keepalive": {}}
MOST = 1000  # watchers that are remembered
TYPES = {
    "create": "EVENT_TYPE_CREATE",
    "write": "EVENT_TYPE_WRITE",
    "remove": "EVENT_TYPE_REMOVE",
    "rename": "EVENT_TYPE_RENAME",
    "chmod": "EVENT_TYPE_CHMOD",
}


class Watched:
    """What a client asked to be told of one directory."""

    def __init__(self, path: str, has_entries: bool) -> None:
        self.path = path
        self.has_entries = has_entries
        self.has_missed = False


class Watching:
    def __init__(self, sandboxes: Sandboxes, filesystem: Filesystem) -> None:
        self._sandboxes = sandboxes
        self._filesystem = filesystem
        self._watched: OrderedDict[tuple[str, str], Watched] = OrderedDict()  # by session and watcher

    async def watch_dir(self, call: Call, message: Message) -> AsyncGenerator[Json, None]:
        watched, recursive = await self._asked(call, message)

        async def begin(user: str | None) -> AsyncGenerator[FileChange, None]:
            changes = self._sandboxes.watch(*call.place, watched.path, recursive=recursive, user=user)
            await anext(changes)  # `watching`
            return changes

        async with aclosing(await self._filesystem.as_user_or_root(call, begin)) as changes:
            yield {"start": {}}
            async for change in changes:
                if change.kind == "overflow":
                    raise _missed()
                for event in await self._events(call, watched, [change]):
                    yield {"filesystem": event}

    async def create_watcher(self, call: Call, message: Message) -> Json:
        watched, recursive = await self._asked(call, message)
        watcher_id = await self._filesystem.as_user_or_root(
            call,
            lambda user: self._sandboxes.watchers.create(*call.place, watched.path, recursive=recursive, user=user),
        )
        self._watched[call.session.id, watcher_id] = watched
        if len(self._watched) > MOST:
            self._watched.popitem(last=False)
        return {"watcherId": watcher_id}

    async def get_watcher_events(self, call: Call, message: Message) -> Json:
        """Raises Failed (changes_missed) after the events that came before some that were missed."""
        watcher_id = message.text("watcher_id")
        watched = self._watched.get((call.session.id, watcher_id), Watched("/", False))
        if watched.has_missed:
            watched.has_missed = False
            raise _missed()
        taken = self._sandboxes.watchers.take(*call.place, watcher_id)
        changes = [change for change in taken if change.kind != "overflow"]
        if len(changes) < len(taken):
            if not changes:
                raise _missed()
            watched.has_missed = True
        return {"events": await self._events(call, watched, changes)}

    async def remove_watcher(self, call: Call, message: Message) -> Json:
        watcher_id = message.text("watcher_id")
        self._watched.pop((call.session.id, watcher_id), None)
        self._sandboxes.watchers.delete(*call.place, watcher_id)
        return {}

    async def _asked(self, call: Call, message: Message) -> tuple[Watched, bool]:
        path = await absolute(self._sandboxes, call, message.text("path"), call.user)
        return Watched(path, message.flag("include_entry")), message.flag("recursive")

    async def _events(self, call: Call, watched: Watched, changes: list[FileChange]) -> list[Json]:
        """A rename is told as one of the old name and a creation of the new one, as inotify's libraries do."""
        events: list[Json] = []
        for change in changes:
            if change.kind not in TYPES:
                continue
            events.append(await self._event(call, watched, TYPES[change.kind], change.path))
            if change.kind == "rename" and change.target:
                events.append(await self._event(call, watched, TYPES["create"], change.target))
        return events

    async def _event(self, call: Call, watched: Watched, kind: str, path: str) -> Json:
        event: Json = {"name": shown(path), "type": kind}
        if watched.has_entries and kind not in (TYPES["remove"], TYPES["rename"]):
            with contextlib.suppress(DovecoteError):  # it may have gone again
                event["entry"] = await self._filesystem.entry(call, posixpath.join(watched.path, path).rstrip("/"))
        return event


def _missed() -> Failed:
    return Failed("changes were missed", code="changes_missed", hint="look at the directory, and watch fewer at once")
