"""What a user does inside a session: commands, files, ports. Each call wakes it and keeps it awake while it lasts."""

from __future__ import annotations

import posixpath
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager, contextmanager

from dovecote.control.fleet import Connection, Guest
from dovecote.control.sandboxes.contexts import Context, Contexts
from dovecote.control.sandboxes.executions import Accepted, Began, Ended, Fault, Happening, Printed, Result, Truncated
from dovecote.control.sandboxes.watchers import Watchers
from dovecote.control.sessions import Live, Sessions
from dovecote.errors import Failed, Invalid, NoCapacity, NotFound
from dovecote.host.guest import (
    Command,
    CommandStatus,
    Dropped,
    Entry,
    Event,
    Exited,
    FileChange,
    Finished,
    Listing,
    Output,
    Port,
    Started,
    Stat,
)

__all__ = [
    "LOGIN_SHELL",
    "LONGEST_COMMAND",
    "Accepted",
    "Began",
    "CommandStatus",
    "Connection",
    "Context",
    "Contexts",
    "Dropped",
    "Ended",
    "Entry",
    "Event",
    "Exited",
    "Fault",
    "FileChange",
    "Finished",
    "Happening",
    "Listing",
    "Output",
    "Port",
    "Printed",
    "Result",
    "Sandboxes",
    "Started",
    "Stat",
    "Truncated",
    "Watchers",
]

MOST_ENTRIES = 100_000  # of one listing
LONGEST_COMMAND = 24 * 3600.0  # seconds
MOST_ACCOUNTS = 1 << 20  # bytes of /etc/passwd
MOST_CONNECTIONS = 500  # to ports of one session
MOST_OUTPUT = 64 << 20  # bytes that `run` collects
LOGIN_SHELL = ("/bin/sh", "-c", 'exec "${SHELL:-/bin/sh}" -l')  # the user's own; in every image that has a shell


class Sandboxes:
    """Raises what waking raises, and the guest's own errors (file_not_found, command_not_found, disk_full, ...)."""

    def __init__(self, sessions: Sessions) -> None:
        self._sessions = sessions
        self._connections: Counter[str] = Counter()  # by session
        self.contexts = Contexts(sessions)
        self.watchers = Watchers(self._begin_watch)

    # -- commands

    async def run(
        self,
        tenant_id: str,
        session_id: str,
        *,
        argv: Sequence[str],
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        user: str | None = None,
        stdin: bytes | None = None,
        timeout: float | None = 60,
        max_output: int = 1 << 20,
    ) -> Finished:
        """Runs to its end. `timeout` in seconds kills its whole tree; output beyond `max_output` bytes is dropped."""
        if not 0 < max_output <= MOST_OUTPUT:
            raise Invalid(f"max_output is from 1 to {MOST_OUTPUT} bytes")
        async with self._sessions.use(tenant_id, session_id) as live:
            command = self._command(live, argv, env, cwd, user, stdin=stdin is not None, timeout=timeout)
            return await live.guest.run(command, stdin=stdin, max_output=max_output)

    async def start(
        self,
        tenant_id: str,
        session_id: str,
        *,
        argv: Sequence[str],
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        user: str | None = None,
        stdin: bool = False,
        pty: tuple[int, int] | None = None,
        timeout: float | None = None,
        tag: str = "",
    ) -> Started:
        """Starts it and lets it go on by itself. `pty` is rows and columns."""
        async with self._sessions.use(tenant_id, session_id) as live:
            return await live.guest.start(
                self._command(live, argv, env, cwd, user, stdin=stdin, pty=pty, timeout=timeout, tag=tag)
            )

    async def stream(
        self,
        tenant_id: str,
        session_id: str,
        *,
        argv: Sequence[str],
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        user: str | None = None,
        stdin: bool = False,
        pty: tuple[int, int] | None = None,
        timeout: float | None = None,
        tag: str = "",
    ) -> AsyncGenerator[Event, None]:
        """Starts it and gives what happens. Leaving early detaches; the command goes on."""
        async with self._sessions.use(tenant_id, session_id) as live:
            command = self._command(live, argv, env, cwd, user, stdin=stdin, pty=pty, timeout=timeout, tag=tag)
            async for event in live.guest.stream(command):
                yield event

    async def attach(
        self, tenant_id: str, session_id: str, number: int, *, offset: int = 0
    ) -> AsyncGenerator[Event, None]:
        """What a command printed from `offset` on, and what it goes on to print, until it ends."""
        async with self._sessions.use(tenant_id, session_id) as live:
            async for event in live.guest.attach(number, offset=offset):
                yield event

    async def commands(self, tenant_id: str, session_id: str) -> list[CommandStatus]:
        async with self._sessions.use(tenant_id, session_id) as live:
            return await live.guest.list_commands()

    async def signal(self, tenant_id: str, session_id: str, number: int, signo: int) -> None:
        async with self._sessions.use(tenant_id, session_id) as live:
            await live.guest.signal(number, signo)

    async def write_stdin(
        self, tenant_id: str, session_id: str, number: int, data: bytes, *, timeout: float = 30
    ) -> None:
        """Returns when it has taken all of it. Raises DeadlineExceeded (stdin_blocked): it took a part, or nothing."""
        if not 0 < timeout <= LONGEST_COMMAND:
            raise Invalid(f"timeout is more than 0 and at most {LONGEST_COMMAND:.0f} seconds")
        async with self._sessions.use(tenant_id, session_id) as live:
            await live.guest.write_stdin(number, data, timeout=timeout)

    async def close_stdin(self, tenant_id: str, session_id: str, number: int) -> None:
        async with self._sessions.use(tenant_id, session_id) as live:
            await live.guest.close_stdin(number)

    async def resize(self, tenant_id: str, session_id: str, number: int, rows: int, cols: int) -> None:
        async with self._sessions.use(tenant_id, session_id) as live:
            await live.guest.resize(number, rows, cols)

    async def release(self, tenant_id: str, session_id: str, number: int) -> None:
        async with self._sessions.use(tenant_id, session_id) as live:
            await live.guest.release(number)

    # -- files; paths are the sandbox's own, relative ones start in the user's home

    async def read_file(
        self,
        tenant_id: str,
        session_id: str,
        path: str,
        *,
        user: str | None = None,
        offset: int = 0,
        length: int | None = None,
    ) -> AsyncGenerator[bytes, None]:
        async with self._sessions.use(tenant_id, session_id) as live:
            where, who = self._path(live, path, user)
            async for chunk in live.guest.read_file(where, user=who, offset=offset, length=length):
                yield chunk

    async def write_file(
        self,
        tenant_id: str,
        session_id: str,
        path: str,
        chunks: AsyncIterator[bytes] | bytes,
        *,
        user: str | None = None,
        mode: int | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        """Atomic: readers see the old file or the whole new one. Missing directories are made.

        A file that exists keeps its mode and metadata where none are given.
        """
        async with self._sessions.use(tenant_id, session_id) as live:
            where, who = self._path(live, path, user)
            await live.guest.write_file(where, chunks, user=who, mode=mode, metadata=metadata)

    async def stat(
        self, tenant_id: str, session_id: str, path: str, *, user: str | None = None, follow: bool = True
    ) -> Stat:
        """Without `follow` a link itself, with its target."""
        async with self._sessions.use(tenant_id, session_id) as live:
            where, who = self._path(live, path, user)
            return await live.guest.stat(where, user=who, follow=follow)

    async def list_dir(
        self,
        tenant_id: str,
        session_id: str,
        path: str,
        *,
        depth: int = 1,
        most: int = MOST_ENTRIES,
        user: str | None = None,
        follow: bool = True,
    ) -> Listing:
        """The listing says when there was more than `most`. Links in it are not followed."""
        async with self._sessions.use(tenant_id, session_id) as live:
            where, who = self._path(live, path, user)
            return await live.guest.list_dir(where, user=who, depth=depth, most=most, follow=follow)

    async def make_dir(self, tenant_id: str, session_id: str, path: str, *, user: str | None = None) -> bool:
        """With those above it. Says whether it was made; one that exists is no error."""
        async with self._sessions.use(tenant_id, session_id) as live:
            where, who = self._path(live, path, user)
            return await live.guest.make_dir(where, user=who)

    async def make_link(
        self, tenant_id: str, session_id: str, path: str, target: str, *, user: str | None = None
    ) -> None:
        """A symbolic link; `target` is taken as it is and need not be there."""
        async with self._sessions.use(tenant_id, session_id) as live:
            where, who = self._path(live, path, user)
            if not target:
                raise Invalid("a link has a target", code="malformed_path")
            await live.guest.make_link(where, target, user=who)

    async def alter(
        self,
        tenant_id: str,
        session_id: str,
        path: str,
        *,
        mode: int | None = None,
        metadata: Mapping[str, str] | None = None,
        user: str | None = None,
    ) -> Stat:
        """Sets permission bits; makes the metadata exactly what is given. What is None stays."""
        async with self._sessions.use(tenant_id, session_id) as live:
            where, who = self._path(live, path, user)
            await live.guest.alter(where, user=who, mode=mode, metadata=metadata)
            return await live.guest.stat(where, user=who)

    async def remove(
        self, tenant_id: str, session_id: str, path: str, *, recursive: bool = False, user: str | None = None
    ) -> None:
        async with self._sessions.use(tenant_id, session_id) as live:
            where, who = self._path(live, path, user)
            await live.guest.remove(where, user=who, recursive=recursive)

    async def rename(
        self, tenant_id: str, session_id: str, source: str, target: str, *, user: str | None = None
    ) -> None:
        """Over a file or an empty directory that is there; to another file system by a copy."""
        async with self._sessions.use(tenant_id, session_id) as live:
            old, who = self._path(live, source, user)
            new, _ = self._path(live, target, user)
            await live.guest.rename(old, new, user=who)

    async def watch(
        self, tenant_id: str, session_id: str, path: str, *, recursive: bool = False, user: str | None = None
    ) -> AsyncGenerator[FileChange, None]:
        """What changes in a directory, after a first `watching`. Stays until it is left or the directory is gone."""
        async with self._sessions.use(tenant_id, session_id) as live:
            where, who = self._path(live, path, user)
            async with aclosing(live.guest.watch(where, user=who, recursive=recursive)) as changes:
                async for change in changes:
                    yield change

    async def user(self, tenant_id: str, session_id: str) -> str:
        """Who commands and files are done as where nobody is named."""
        async with self._sessions.use(tenant_id, session_id) as live:
            return live.default_user[0]

    async def home(self, tenant_id: str, session_id: str, *, user: str | None = None) -> str:
        """Where a user's relative paths start. Raises NotFound (no_such_user)."""
        async with self._sessions.use(tenant_id, session_id) as live:
            name, home = live.default_user
            return home if user in (None, name) else await _home_of(live.guest, user)

    async def ports(self, tenant_id: str, session_id: str) -> list[Port]:
        async with self._sessions.use(tenant_id, session_id) as live:
            return await live.guest.ports()

    @asynccontextmanager
    async def dial(self, tenant_id: str, session_id: str, port: int) -> AsyncGenerator[Connection, None]:
        """TCP to one of its ports, those on its loopback too; for the recorded one its server is started.

        It stays awake while that is open. Raises Failed (port_closed, port_is_local), NoCapacity (too_many).
        """
        with self._connecting(session_id):
            async with self._sessions.use(tenant_id, session_id) as live:
                is_local = False
                try:
                    await self._sessions.ensure_open(live, port)
                except Failed as error:
                    if error.code != "port_is_local":
                        raise
                    is_local = True
                connection = await live.host.dial(live.instance_id, port, loopback=is_local)
                try:
                    yield connection
                finally:
                    connection.close()

    @contextmanager
    def _connecting(self, session_id: str) -> Iterator[None]:
        if self._connections[session_id] >= MOST_CONNECTIONS:
            message = f"{session_id} has {MOST_CONNECTIONS} connections to its ports"
            raise NoCapacity(message, code="too_many", hint="close some", retry_after=5)
        self._connections[session_id] += 1
        try:
            yield
        finally:
            self._connections[session_id] -= 1
            if not self._connections[session_id]:
                del self._connections[session_id]

    # -- inside

    async def _begin_watch(
        self, tenant_id: str, session_id: str, path: str, recursive: bool, user: str | None
    ) -> AsyncGenerator[FileChange, None]:
        """A watch that has begun. It keeps nothing awake: while the session is frozen, nothing changes."""
        async with self._sessions.use(tenant_id, session_id) as live:
            where, who = self._path(live, path, user)
            changes = live.guest.watch(where, user=who, recursive=recursive)
            await anext(changes)
            return changes

    def _path(self, live: Live, path: str, user: str | None) -> tuple[str, str]:
        if not path or "\0" in path:
            raise Invalid("a path has at least one character and no NUL", code="malformed_path")
        name, home = live.default_user
        return path if path.startswith("/") else f"{home}/{path}", user or name

    def _command(
        self,
        live: Live,
        argv: Sequence[str],
        env: Mapping[str, str] | None,
        cwd: str | None,
        user: str | None,
        *,
        stdin: bool = False,
        pty: tuple[int, int] | None = None,
        timeout: float | None = None,
        tag: str = "",
    ) -> Command:
        if not argv:
            raise Invalid("a command has at least one word")
        if timeout is not None and not 0 < timeout <= LONGEST_COMMAND:
            raise Invalid(f"timeout is more than 0 and at most {LONGEST_COMMAND:.0f} seconds")
        name, home = live.default_user
        return Command(
            argv=tuple(argv),
            env={**live.environment, **(env or {})},
            cwd=posixpath.join(home, cwd) if cwd else (home if user in (None, name) else ""),
            user=user or name,
            stdin=stdin,
            pty=pty,
            timeout=timeout,
            tag=tag,
        )


async def _home_of(guest: Guest, user: str) -> str:
    """As the sandbox's own /etc/passwd has it; whoever can write that owns the sandbox."""
    pieces = [piece async for piece in guest.read_file("/etc/passwd", user="root", length=MOST_ACCOUNTS)]
    for line in b"".join(pieces).decode("utf-8", "surrogateescape").split("\n"):
        fields = line.split(":")
        if len(fields) >= 7 and user in (fields[0], fields[2]) and fields[5].startswith("/"):
            return fields[5]
    raise NotFound(f"no such user in the sandbox ({user[:64]})", code="no_such_user", hint="see its /etc/passwd")
