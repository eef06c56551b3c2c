"""A session in the hands of its owner: commands, files, ports, and when it sleeps."""

# Generated from _async/sessions.py by `python -m dovecote.sdk.generate`; change that and run it.

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from dovecote.sdk._activity import Activity
from dovecote.sdk._code import CodeEvent, Execution
from dovecote.sdk._commands import CommandView, Event, Finished, RawEvent
from dovecote.sdk._errors import CommandFailed
from dovecote.sdk._forwards import Forward, OnProblem
from dovecote.sdk._reading import read
from dovecote.sdk._shapes import Change, FileDiff, Instance, Lag, Network, Port, Sample, SessionView, Snapshot
from dovecote.sdk._sync.commands import Command, command_body, events_of, raw_events_of
from dovecote.sdk._sync.contexts import Contexts, code_events, collect, execution_body
from dovecote.sdk._sync.copying import Copies, Progress
from dovecote.sdk._sync.files import Files
from dovecote.sdk._sync.terminals import Terminal
from dovecote.sdk._sync.transport import Wire
from dovecote.sdk._sync.volumes import Mounts

WAKE_SECONDS = 90.0  # added to what a command may take


class Session:
    """A session. `view` is what the server last told of it; as a context manager it is deleted at the end."""

    def __init__(self, wire: Wire, view: SessionView) -> None:
        self._wire = wire
        self._path = f"/v1/sessions/{view.id}"
        self.view = view
        self.files = Files(wire, view.id)
        self.mounts = Mounts(wire, view.id)
        self._copies = Copies(wire, view.id, self.files)
        self.contexts = Contexts(wire, view.id)

    @property
    def id(self) -> str:
        return self.view.id

    @property
    def key(self) -> str:
        return self.view.key

    @property
    def state(self) -> str:
        return self.view.state

    def url(self, port: int) -> str:
        """Address of one of its ports through the gateway."""
        return self.view.port_address.replace("{port}", str(port))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.delete()

    # -- commands

    def run(
        self,
        command: str | Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        user: str | None = None,
        stdin: str | None = None,
        timeout: float = 60,
        max_output: int = 1 << 20,
        check: bool = False,
    ) -> Finished:
        """Runs it to its end: a line for the shell, or a list of words. `check` raises CommandFailed."""
        body = command_body(command, env, cwd, user, timeout) | {"stdin": stdin, "max_output_bytes": max_output}
        answer = self._wire.call("POST", f"{self._path}/commands", json=body, answer_within=timeout + WAKE_SECONDS)
        finished = read(Finished, answer)
        if check and not finished.is_ok:
            end = f"exit code {finished.exit_code}" if finished.signal is None else f"signal {finished.signal}"
            said = (finished.stderr or finished.stdout)[-2000:].strip()
            raise CommandFailed(f"{command!r} ended with {end}", code="command_failed", hint=said)
        return finished

    def stream(
        self,
        command: str | Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        user: str | None = None,
        timeout: float | None = None,
        stdin: bool = False,
        tag: str = "",
    ) -> Generator[Event, None, None]:
        """Runs it and gives what happens as it happens. Leaving early detaches; the command goes on."""
        body = command_body(command, env, cwd, user, timeout) | {"stream": True, "open_stdin": stdin, "tag": tag}
        return events_of(self._wire, "POST", f"{self._path}/commands", body, {})

    def stream_raw(
        self,
        command: str | Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        user: str | None = None,
        timeout: float | None = None,
        stdin: bool = False,
        tag: str = "",
    ) -> Generator[RawEvent, None, None]:
        """As `stream`, but bytes: what it prints may be no text."""
        body = command_body(command, env, cwd, user, timeout) | {"stream": True, "open_stdin": stdin, "tag": tag}
        body["encoding"] = "base64"
        return raw_events_of(self._wire, "POST", f"{self._path}/commands", body, {})

    def start(
        self,
        command: str | Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        user: str | None = None,
        timeout: float | None = None,
        stdin: bool = False,
        pty: tuple[int, int] | None = None,
        tag: str = "",
    ) -> Command:
        """Starts it and lets it go on by itself. `pty` is rows and columns of a terminal."""
        terminal = {"rows": pty[0], "cols": pty[1]} if pty else None
        body = command_body(command, env, cwd, user, timeout) | {
            "detach": True,
            "open_stdin": stdin,
            "pty": terminal,
            "tag": tag,
        }
        started = self._wire.call("POST", f"{self._path}/commands", json=body)
        return self.command(started["number"])

    def attach(self, number: int, *, offset: int = 0) -> Generator[Event, None, None]:
        """Output of a command that was started before, from `offset` on."""
        return self.command(number).output(offset=offset)

    def command(self, number: int) -> Command:
        """The command of that number, to attach to, signal or release."""
        return Command(self._wire, self.id, number)

    def terminal(
        self,
        command: str | None = None,
        *,
        cwd: str | None = None,
        user: str | None = None,
        rows: int = 24,
        cols: int = 80,
        number: int | None = None,
        offset: int = 0,
    ) -> Terminal:
        """A terminal, to use as a context manager: the user's login shell, or a line for the shell.

        With `number` it is one that runs already, from `offset` on. Leaving detaches; it goes on.
        """
        query = {"command": command, "cwd": cwd, "user": user, "rows": rows, "cols": cols}
        query |= {"number": number, "offset": offset}
        return Terminal(self._wire.access, f"{self._path}/terminal", query)

    def commands(self) -> list[CommandView]:
        return [read(CommandView, each) for each in (self._wire.call("GET", f"{self._path}/commands"))["items"]]

    # -- copies between here and there

    def upload(
        self, source: str | Path, path: str, *, user: str | None = None, progress: Progress | None = None
    ) -> str:
        """Copies a file or a directory into it and answers where; into `path` if that is a directory already.

        `progress` is called with the bytes so far, and of how many.
        """
        return self._copies.upload(Path(source), path, user, progress)

    def download(
        self, path: str, target: str | Path, *, user: str | None = None, progress: Progress | None = None
    ) -> Path:
        """Copies a file or a directory out of it and answers where; into `target` if that is a directory already.

        A file is whole or not there. Nothing is written outside of the target, whatever the sandbox sends.
        """
        return self._copies.download(path, Path(target), user, progress)

    # -- code

    def execute(
        self,
        code: str,
        *,
        language: str = "python",
        env: Mapping[str, str] | None = None,
        timeout: float = 300,
        max_output: int = 8 << 20,
        check: bool = False,
    ) -> Execution:
        """Runs code in the default context of a language to its end; what was run there before is still known."""
        events = self.stream_code(code, language=language, env=env, timeout=timeout, max_output=max_output)
        return collect(events, check=check)

    def stream_code(
        self,
        code: str,
        *,
        language: str = "python",
        env: Mapping[str, str] | None = None,
        timeout: float = 300,
        max_output: int = 8 << 20,
    ) -> Generator[CodeEvent, None, None]:
        """The same, and gives what it says as it says it."""
        body = execution_body(code, env, timeout, max_output) | {"language": language}
        return code_events(self._wire, "POST", f"{self._path}/execute", body)

    # -- where it is reached

    def ports(self) -> list[Port]:
        return [read(Port, each) for each in (self._wire.call("GET", f"{self._path}/ports"))["items"]]

    def forward(
        self, port: int, *, host: str = "127.0.0.1", local_port: int = 0, on_problem: OnProblem | None = None
    ) -> Forward:
        """One of its ports on this machine, for any protocol over TCP, to use as a context manager.

        `address` says where; `local_port` 0 is any that is free. Ports on the session's own 127.0.0.1 are reached too.
        """
        return Forward(self._wire.access, f"{self._path}/ports/{port}/tcp", host, local_port, on_problem)

    def set_start(self, command: str, port: int, cwd: str = "", env: Mapping[str, str] | None = None) -> SessionView:
        """Records how its server is started whenever it wakes; `wake` then starts it."""
        start = {"command": command, "port": port, "cwd": cwd, "env": dict(env or {})}
        return self._see("PUT", "/start", start)

    def clear_start(self) -> SessionView:
        return self._see("DELETE", "/start")

    def instance(self) -> Instance:
        """The instance that it has now. Raises NotFound or Conflict while it has none."""
        return read(Instance, self._wire.call("GET", f"{self._path}/instance"))

    def lag(self) -> Lag:
        """How far the store is behind its files. Does not wake it."""
        return read(Lag, self._wire.call("GET", f"{self._path}/lag"))

    def activity(self) -> Activity:
        """Why it is awake or rests, and what happens to it next. Does not wake it."""
        return read(Activity, self._wire.call("GET", f"{self._path}/activity"))

    def metrics(self) -> list[Sample]:
        """What it used in the last hour, oldest first; there are none of the time that it rested. Does not wake it."""
        return [read(Sample, each) for each in (self._wire.call("GET", f"{self._path}/metrics"))["items"]]

    # -- its life

    def refresh(self) -> SessionView:
        return self._see("GET", "")

    def wake(self) -> SessionView:
        """Ready whatever it takes, its started server included."""
        return self._see("POST", ":wake")

    def freeze(self) -> SessionView:
        return self._see("POST", ":freeze")

    def park(self) -> SessionView:
        return self._see("POST", ":park")

    def lease(self, seconds: float) -> SessionView:
        """Wakes it, and keeps it awake for so long from now; the last lease counts. Tiers say how long it may be."""
        return self._see("POST", "/lease", {"seconds": seconds})

    def release(self) -> SessionView:
        """Ends its lease: from now on its use alone counts."""
        return self._see("DELETE", "/lease")

    def pause(self, *, hibernate: bool | None = None) -> SessionView:
        """Its processes stop where they are until it is used again, or resumed. Raises Conflict (paused).

        Its memory goes to the store where its isolation level can. With `hibernate` True it must, or this raises
        Unsupported (cannot_hibernate); with False it stays on the host.
        """
        return self._see("POST", ":pause", {"hibernate": hibernate})

    def resume(self, *, at_least: float | None = None) -> SessionView:
        """Ready, paused or not. Its timeout is not sooner than `at_least` seconds from now."""
        return self._see("POST", ":resume", {"at_least_seconds": at_least})

    def set_timeout(self, timeout: float | None) -> SessionView:
        """In seconds from now; None for none."""
        return self._see("PUT", "/timeout", {"timeout_seconds": timeout})

    def set_network(self, network: Network) -> SessionView:
        """What it may reach from now on; open connections that it may not have end."""
        return self._see("PUT", "/network", asdict(network))

    def save(self) -> SessionView:
        return self._see("POST", ":save")

    # -- its past

    def snapshot(
        self, label: str = "", *, is_pinned: bool = False, outlives_session: bool = False, memory: bool = False
    ) -> Snapshot:
        """Saves its files under a name, with `memory` its processes too. A parked session is not woken for files."""
        body = {"label": label, "is_pinned": is_pinned, "outlives_session": outlives_session, "memory": memory}
        return read(Snapshot, self._wire.call("POST", f"{self._path}/snapshots", json=body))

    def snapshots(self) -> list[Snapshot]:
        """Oldest first."""
        found: list[Snapshot] = []
        after: str | None = None
        while True:
            page = self._wire.call("GET", f"{self._path}/snapshots", params={"after": after})
            found += [read(Snapshot, each) for each in page["items"]]
            after = page["next"]
            if after is None:
                return found

    def changes(self, snapshot_id: str, to: str | None = None) -> list[Change]:
        """What differs from a snapshot in another one, or as the session is now. Saves the session once a page."""
        found: list[Change] = []
        after: str | None = None
        while True:
            params = {"to": to, "after": after, "limit": 1000}
            page = self._wire.call("GET", f"{self._path}/snapshots/{snapshot_id}/changes", params=params)
            found += [read(Change, each) for each in page["items"]]
            after = page["next"]
            if after is None:
                return found

    def diff(self, snapshot_id: str, path: str, to: str | None = None) -> FileDiff:
        """How the text of one file differs from a snapshot in another one, or as the session is now."""
        params = {"path": path, "to": to}
        return read(FileDiff, self._wire.call("GET", f"{self._path}/snapshots/{snapshot_id}/diff", params=params))

    def archive(self, snapshot_id: str | None = None, *, path: str | None = None) -> Generator[bytes, None, None]:
        """A zip file of a snapshot, or of the session as it is now, piece by piece; of the home without a path."""
        params = {"snapshot": snapshot_id, "path": path}
        with self._wire.stream("GET", f"{self._path}/archive", params=params) as response:
            yield from response.iter_bytes()

    def delete_snapshot(self, snapshot_id: str) -> None:
        self._wire.call("DELETE", f"{self._path}/snapshots/{snapshot_id}")

    def rewind(self, snapshot_id: str) -> SessionView:
        """Goes back to a snapshot; what runs in it ends. How it was before is a snapshot too."""
        return self._see("POST", ":rewind", {"snapshot": snapshot_id})

    def fork(
        self,
        snapshot_id: str | None = None,
        *,
        key: str | None = None,
        user: str | None = None,
        env: Mapping[str, str] | None = None,
        memory: bool = False,
        wake: bool = True,
    ) -> Session:
        """A new session with the files of a snapshot, or as they are now; this one stays as it is.

        With `memory` its processes as they are now go on in the new one too. Those of a snapshot do so anyway.
        """
        body = {
            "snapshot": snapshot_id,
            "key": key,
            "user": user,
            "env": dict(env or {}),
            "memory": memory,
            "wake": wake,
        }
        answer = self._wire.call("POST", f"{self._path}:fork", json=body)
        return Session(self._wire, read(SessionView, answer))

    # -- its times

    def update(
        self,
        *,
        tier: str | None = None,
        idle_after: float | None = None,
        quiet_after: float | None = None,
        ttl: float | None = None,
    ) -> SessionView:
        """Changes its tier or times (seconds), effective at once."""
        change = {
            "tier": tier,
            "idle_after_seconds": idle_after,
            "quiet_after_seconds": quiet_after,
            "ttl_seconds": ttl,
        }
        return self._see("PATCH", "", {name: value for name, value in change.items() if value is not None})

    def delete(self) -> None:
        """Ends it and deletes its files."""
        self._wire.call("DELETE", self._path)

    def _see(self, method: str, path: str, body: dict[str, Any] | None = None) -> SessionView:
        self.view = read(SessionView, self._wire.call(method, self._path + path, json=body))
        return self.view
