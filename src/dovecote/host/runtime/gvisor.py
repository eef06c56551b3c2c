"""Starts, saves and ends boxes with gVisor's runsc: a kernel of its own for each of them."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
from collections.abc import Sequence
from pathlib import Path

from dovecote.errors import Conflict, Failed
from dovecote.host.runtime.box import Box, Capabilities, parse_box_name
from dovecote.host.runtime.calls import CALL_WITHIN, has_ended, last_words, open_pidfd, read_json, run
from dovecote.host.runtime.cgroups import Cgroups
from dovecote.host.runtime.gvisor_bundle import render_sandbox
from dovecote.model.sizes import MIB

NAME = "runsc"
START_WITHIN = 60.0
SAVE_WITHIN = 300.0  # as long as gigabytes of memory take
EXIT_WITHIN = 5.0

CAPABILITIES = Capabilities(
    can_swap_root=False,
    can_hibernate=True,
    can_mount_live=False,
    # What the kernel in a process and its file server take before anything runs, threads and all.
    extra_memory_bytes=128 * MIB,
    extra_pids=512,
)

# Its own overlay would keep writes from our upper, and its cache would keep them for itself. Of sockets it may make
# the one at our door and open none.
FLAGS = (
    "--platform=systrap",
    "--ignore-cgroups",
    "--overlay2=none",
    "--file-access=shared",
    "--host-uds=create",
    "--net-disconnect-ok",
)

# Groups are joined, and the rest becomes runsc. It takes a network namespace for the machine's own when it finds this
# file, which kernels since 6.11 show everywhere: so it is hidden, in this command's own mount namespace.
LAUNCH_SCRIPT = """
exec </dev/null
while [ "$1" != -- ]; do echo 0 > "$1" || exit 97; shift; done
shift
if [ -e /proc/sys/net/core/rmem_default ]; then mount -t tmpfs -o ro none /proc/sys/net/core || exit 96; fi
exec "$@" >/dev/null 2>&1
"""


def start_command(binary: str, state: Path, box: Box) -> list[str]:
    network = "--network=sandbox" if box.netns else "--network=none"
    log = ("--log", str(_log(box)), "--log-format", "json")
    verb = ("restore", "--image-path", str(box.memory)) if box.memory else ("run",)
    bundle = ("--detach", "--pid-file", str(_pid_file(state, box.id)), "--bundle", str(box.directory))
    return [*_runtime(binary, state), network, *log, *verb, *bundle, box.id]


def launch_command(netns: Path | None, join: Sequence[Path], argv: Sequence[str]) -> list[str]:
    """`argv` in the groups of `join`, in a mount namespace of its own and in the network namespace."""
    enter = ["nsenter", f"--net={netns}"] if netns else []
    return [*enter, "unshare", "--mount", "--", "/bin/sh", "-c", LAUNCH_SCRIPT, "launch", *map(str, join), "--", *argv]


def signal_command(binary: str, state: Path, box_id: str, number: int) -> list[str]:
    return [*_runtime(binary, state), "kill", box_id, str(int(number))]


def pause_command(binary: str, state: Path, box_id: str) -> list[str]:
    return [*_runtime(binary, state), "pause", box_id]


def resume_command(binary: str, state: Path, box_id: str) -> list[str]:
    return [*_runtime(binary, state), "resume", box_id]


def state_command(binary: str, state: Path, box_id: str) -> list[str]:
    return [*_runtime(binary, state), "state", box_id]


def save_command(binary: str, state: Path, box_id: str, into: Path) -> list[str]:
    # Not compressed: whoever keeps it does that better.
    image = ("--compression=none", "--exclude-committed-zero-pages", "--image-path", str(into))
    return [*_runtime(binary, state), "checkpoint", "--leave-running", *image, box_id]


def _runtime(binary: str, state: Path) -> list[str]:
    return [binary, "--root", str(state), *FLAGS]


def _log(box: Box) -> Path:
    return box.directory / "runtime.log"


def _pid_file(state: Path, box_id: str) -> Path:
    return state / f"{box_id}.pid"


class GVisorRuntime:
    """Boxes by runsc. They outlive us: whoever is given the same `state` directory later finds them again.

    What is known of a box is read from the files that runsc and we keep, and from /proc: asking runsc takes 20 ms,
    and it counts a process that its parent has not collected as one that runs.
    """

    name = NAME
    capabilities = CAPABILITIES

    def __init__(self, binary: str, state: Path, cgroups: Cgroups) -> None:
        self._binary = binary
        self._state = state
        self._cgroups = cgroups
        state.mkdir(mode=0o700, parents=True, exist_ok=True)

    async def start(self, box: Box) -> int:
        if self._files(box.id):
            raise Conflict(f"box {box.id} exists", code="exists", hint="delete it first")
        _log(box).unlink(missing_ok=True)
        (box.directory / "config.json").write_text(json.dumps(render_sandbox(box)))
        start = start_command(self._binary, self._state, box)
        try:
            await self._launch(box, launch_command(box.netns, self._cgroups.join_files(box.cgroup), start))
            return int(_pid_file(self._state, box.id).read_text())
        except BaseException:
            await asyncio.shield(self.delete(box.id))
            raise

    async def _launch(self, box: Box, command: list[str]) -> None:
        errors = box.directory / "launch.log"
        with errors.open("wb") as file:
            code = await run(command, START_WITHIN, stderr=file.fileno())
        if code == 0:
            return
        said = last_words(_log(box)) or last_words(errors) or f"it exited with {code}"
        if code is None:
            said = f"it did not answer within {START_WITHIN:g} s; {said}"
        raise Failed(
            f"{self.name} could not start {box.id}: {said}",
            code="runtime_failed",
            hint="`dovecote doctor` checks what the runtime needs of this machine",
        )

    async def kill(self, box_id: str, signal: int = signal.SIGKILL) -> None:
        pid = self._pid(box_id)
        if not pid:
            return
        if signal == 9:
            _end(pid)
        elif await run(signal_command(self._binary, self._state, box_id, signal), CALL_WITHIN) != 0 and self._pid(
            box_id
        ):
            raise Failed(f"{self.name} could not signal {box_id}", code="runtime_failed")

    async def delete(self, box_id: str) -> None:
        pid = self._pid(box_id) or self._look_for(box_id)
        handle = open_pidfd(pid) if pid else None
        if handle is not None:
            try:
                _end(pid)
                if not await has_ended(handle, EXIT_WITHIN):
                    raise Failed(
                        f"{self.name} could not delete {box_id}",
                        code="runtime_failed",
                        hint="a frozen process ends only when it is thawed: kill its cgroup first",
                    )
            finally:
                os.close(handle)
        for file in self._files(box_id):
            file.unlink(missing_ok=True)

    async def list(self) -> dict[str, int]:
        names = {file.name.partition("_sandbox:")[0] for file in self._state.glob("*_sandbox:*.state")}
        return {name: self._pid(name) for name in names}

    async def pause(self, box_id: str) -> None:
        await self._call(pause_command(self._binary, self._state, box_id), CALL_WITHIN, f"pause {box_id}")

    async def resume(self, box_id: str) -> None:
        state = await read_json(state_command(self._binary, self._state, box_id))
        if isinstance(state, dict) and state.get("status") == "running":
            return
        await self._call(resume_command(self._binary, self._state, box_id), CALL_WITHIN, f"resume {box_id}")

    async def save_memory(self, box_id: str, into: Path) -> None:
        into.mkdir(mode=0o700, exist_ok=True)
        await self._call(save_command(self._binary, self._state, box_id, into), SAVE_WITHIN, f"save {box_id}")

    async def _call(self, command: Sequence[str], within: float, what: str) -> None:
        log = self._state / f".{os.getpid()}-{id(command)}.log"
        try:
            with log.open("wb") as file:
                code = await run(command, within, stderr=file.fileno())
            if code != 0:
                raise Failed(f"{self.name} could not {what}: {last_words(log) or code}", code="runtime_failed")
        finally:
            log.unlink(missing_ok=True)

    def _files(self, box_id: str) -> Sequence[Path]:
        name = parse_box_name(box_id)
        places = [_pid_file(self._state, name), self._state / f"runsc-{name}.sock"]
        places += [self._state / f"{name}_sandbox:{name}.{kind}" for kind in ("state", "lock")]
        return [place for place in places if place.exists()]

    def _pid(self, box_id: str) -> int:
        """Of the kernel's process; 0 when it does not run, or is not known."""
        try:
            pid = int(_pid_file(self._state, parse_box_name(box_id)).read_text())
        except (FileNotFoundError, ValueError):
            return 0
        return pid if self._is_ours(pid, box_id) else 0

    def _look_for(self, box_id: str) -> int:
        """The same where a start was cut short before it said which process it is."""
        if not self._files(box_id):
            return 0
        return next((int(name) for name in os.listdir("/proc") if name.isdigit() and self._is_ours(name, box_id)), 0)

    def _is_ours(self, pid: int | str, box_id: str) -> bool:
        # That of a process that has ended is empty.
        try:
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        except OSError:
            return False
        state = b"--root=" + os.fsencode(self._state)
        return words[0] == b"runsc-sandbox" and words[-2:] == [box_id.encode(), b""] and state in words


def _end(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def missing_tools() -> list[str]:
    """Programs that this level needs and this machine does not have."""
    return [tool for tool in (NAME, "unshare", "nsenter", "mount") if not shutil.which(tool)]
