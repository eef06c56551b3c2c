"""Copies between here and a session: files as they are, directories as tar through a command inside."""

# Generated from _async/copying.py by `python -m dovecote.sdk.generate`; change that and run it.

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import closing
from pathlib import Path
from typing import IO

from dovecote.sdk._archives import PIECE, Unpacking, batches, content_bytes
from dovecote.sdk._commands import Dropped, Exited, RawOutput
from dovecote.sdk._errors import CommandFailed, Conflict, DovecoteError, NotFound
from dovecote.sdk._sync.commands import Command, command_body, raw_events_of
from dovecote.sdk._sync.files import Files
from dovecote.sdk._sync.transport import Wire

Progress = Callable[[int, int | None], None]  # bytes so far, and of how many; None is not known

UNPACK = 'mkdir -p -- "$1" && exec tar -x -p -o -f - -C "$1"'
PACK = 'exec tar -c -f - -C "$1" .'
TAKES_WITHIN = 3600.0  # seconds for a piece: a full disk or a slow one inside


class Copies:
    """`session.upload` and `session.download`. Modes and symbolic links are kept, owners and times are not."""

    def __init__(self, wire: Wire, session_id: str, files: Files) -> None:
        self._wire = wire
        self._path = f"/v1/sessions/{session_id}/commands"
        self._session_id = session_id
        self._files = files

    def upload(self, source: Path, path: str, user: str | None, progress: Progress | None) -> str:
        place = self._inside(path, source.name, user)
        if source.is_dir():
            self._upload_directory(source, place, user, progress)
        else:
            mode = source.stat().st_mode & 0o777
            with source.open("rb") as file:
                total = source.stat().st_size
                self._files.write(place, _pieces(file, total, progress), user=user, mode=mode)
        return place

    def download(self, path: str, target: Path, user: str | None, progress: Progress | None) -> Path:
        there = self._files.stat(path, user=user)
        place = target / path.rstrip("/").rsplit("/", 1)[-1] if target.is_dir() else target
        if there.kind == "directory":
            self._download_directory(path, place, user, progress)
            return place
        beside = place.with_name(f"{place.name}.partial")
        done = 0
        try:
            with beside.open("wb") as file, closing(self._files.download(path, user=user)) as pieces:
                for piece in pieces:
                    file.write(piece)
                    done += len(piece)
                    if progress is not None:
                        progress(done, there.size)
            beside.chmod(there.mode & 0o777)
            beside.replace(place)
        finally:
            beside.unlink(missing_ok=True)
        return place

    # -- inside

    def _inside(self, path: str, name: str, user: str | None) -> str:
        """As `cp` has it: what goes to a directory that is there goes into it."""
        try:
            is_directory = (self._files.stat(path or ".", user=user)).kind == "directory"
        except NotFound:
            is_directory = path.endswith("/")
        return f"{path.rstrip('/') or ('/' if path else '.')}/{name}" if is_directory else path

    def _upload_directory(self, source: Path, path: str, user: str | None, progress: Progress | None) -> None:
        body = command_body(["/bin/sh", "-c", UNPACK, "sh", path], None, None, user, None)
        started = self._wire.call("POST", self._path, json=body | {"detach": True, "open_stdin": True})
        command = Command(self._wire, self._session_id, started["number"])
        total, done = content_bytes(source) if progress is not None else None, 0
        try:
            for batch, size in batches(source):
                command.write(batch, timeout=TAKES_WITHIN)
                done += size
                if progress is not None:
                    progress(done, total)
            command.close_stdin()
        except Conflict:
            pass  # it ended early, and says why
        except BaseException:
            command.signal("SIGKILL")
            raise
        finished = command.wait()
        command.release()
        if not finished.is_ok:
            raise _failed(path, finished.stderr)

    def _download_directory(self, path: str, target: Path, user: str | None, progress: Progress | None) -> None:
        body = command_body(["/bin/sh", "-c", PACK, "sh", path], None, None, user, None)
        body |= {"stream": True, "encoding": "base64"}
        unpacking, done, said = Unpacking(target), 0, b""
        try:
            with closing(raw_events_of(self._wire, "POST", self._path, body, {})) as events:
                for event in events:
                    if isinstance(event, RawOutput) and event.stream == "stdout":
                        done += unpacking.feed(event.data)
                        if progress is not None:
                            progress(done, None)
                    elif isinstance(event, RawOutput):
                        said = (said + event.data)[-4000:]
                    elif isinstance(event, Dropped):
                        raise DovecoteError(f"{event.bytes} bytes of {path} were lost", code="output_dropped")
                    elif isinstance(event, Exited) and event.exit_code != 0:
                        raise _failed(path, said.decode("utf-8", "replace"))
            unpacking.end()
        finally:
            unpacking.close()


def _pieces(file: IO[bytes], total: int, progress: Progress | None) -> Generator[bytes, None, None]:
    done = 0
    while piece := file.read(PIECE):
        yield piece
        done += len(piece)
        if progress is not None:
            progress(done, total)


def _failed(path: str, said: str) -> CommandFailed:
    hint = said.strip()[-2000:] or "directories are copied with the sandbox's own sh and tar"
    return CommandFailed(f"copying {path} failed inside the sandbox", code="copy_failed", hint=hint)
