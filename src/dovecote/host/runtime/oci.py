"""Starts and ends boxes with an OCI runtime: crun or runc."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dovecote.errors import Conflict, Failed, Unsupported
from dovecote.host.runtime.box import Box, Capabilities, cannot_hibernate, parse_box_name
from dovecote.host.runtime.bundle import write_bundle
from dovecote.host.runtime.calls import CALL_WITHIN, has_ended, last_words, open_pidfd, read_json, run
from dovecote.host.runtime.cgroups import Cgroups

START_WITHIN = 30.0
EXIT_WITHIN = 5.0

# The listener comes as stdin because spawning can place it there whatever its number is. Hierarchies are hidden
# (in this command's own mount namespace), groups are joined, and the rest becomes the runtime. PID 1 inherits its
# output: /dev/null, since a file or a pipe would be a way for a guest to fill our disk or to hold our reader.
LAUNCH_SCRIPT = """
exec 3<&0 </dev/null
n=$1; shift
if [ "$n" -gt 0 ]; then
  i=$n; hidden=
  while [ "$i" -gt 0 ]; do hidden="$hidden $1"; shift; i=$((i-1)); done
  umount --lazy --no-mtab $hidden || exit 96
fi
n=$1; shift
while [ "$n" -gt 0 ]; do echo 0 > "$1" || exit 97; shift; n=$((n-1)); done
exec "$@" >/dev/null 2>&1
"""


@dataclass(frozen=True)
class Flavor:
    """How one OCI runtime differs from another."""

    name: str
    package: str
    options: tuple[str, ...]
    enters_cgroup: bool  # it puts the container into `cgroupsPath`, and into the like of every hierarchy that it
    # finds; else it is started inside of the group, and has nothing to do with any
    capabilities: Capabilities


_SWAPS = Capabilities(can_swap_root=True, can_hibernate=False, can_mount_live=True)

FLAVORS = {
    flavor.name: flavor
    for flavor in (
        Flavor("crun", "crun", ("--cgroup-manager=disabled",), enters_cgroup=False, capabilities=_SWAPS),
        # It refuses to run without cgroups, and warns of a group that already has a process.
        Flavor("runc", "runc", (), enters_cgroup=True, capabilities=_SWAPS),
    )
}


def run_command(flavor: Flavor, binary: str, state: Path, box: Box) -> list[str]:
    return [
        *_runtime(flavor, binary, state),
        *("--log", str(_log(box)), "--log-format", "json"),
        *("run", "--detach", "--preserve-fds", "1", "--pid-file", str(_pid_file(box)), "--bundle", str(box.directory)),
        box.id,
    ]


def kill_command(flavor: Flavor, binary: str, state: Path, box_id: str, number: int) -> list[str]:
    return [*_runtime(flavor, binary, state), "kill", box_id, str(int(number))]


def delete_command(flavor: Flavor, binary: str, state: Path, box_id: str) -> list[str]:
    return [*_runtime(flavor, binary, state), "delete", "--force", box_id]


def state_command(flavor: Flavor, binary: str, state: Path, box_id: str) -> list[str]:
    return [*_runtime(flavor, binary, state), "state", box_id]


def list_command(flavor: Flavor, binary: str, state: Path) -> list[str]:
    return [*_runtime(flavor, binary, state), "list", "--format", "json"]


def launch_command(hide: Sequence[Path], join: Sequence[Path], argv: Sequence[str]) -> list[str]:
    """`argv` with stdin as descriptor 3, in the groups of `join`, and without a view of the mounts in `hide`."""
    script = ["/bin/sh", "-c", LAUNCH_SCRIPT, "launch"]
    command = [*script, str(len(hide)), *map(str, hide), str(len(join)), *map(str, join), *argv]
    return ["unshare", "--mount", "--", *command] if hide else command


def hidden_mounts(flavor: Flavor, foreign: Sequence[Path]) -> list[Path]:
    """What the runtime must not find: for one that enters groups, hierarchies that it would leave groups in; for the
    others a v2 with controllers beside v1, which crun refuses even where it has nothing to do with cgroups."""
    if flavor.enters_cgroup:
        return list(foreign)
    return [place for place in foreign if (file := place / "cgroup.controllers").exists() and file.read_text().strip()]


def _runtime(flavor: Flavor, binary: str, state: Path) -> list[str]:
    return [binary, "--root", str(state), *flavor.options]


def _log(box: Box) -> Path:
    return box.directory / "runtime.log"


def _pid_file(box: Box) -> Path:
    return box.directory / "pid"


class OCIRuntime:
    """Boxes by crun or runc. They outlive us: whoever is given the same `state` directory later finds them again."""

    def __init__(self, flavor: Flavor, binary: str, state: Path, cgroups: Cgroups) -> None:
        self.name = flavor.name
        self.capabilities = flavor.capabilities
        self._flavor = flavor
        self._binary = binary
        self._state = state
        self._cgroups = cgroups
        self._hide = hidden_mounts(flavor, cgroups.foreign_mounts)
        state.mkdir(mode=0o700, parents=True, exist_ok=True)

    async def start(self, box: Box) -> int:
        if (self._state / box.id).exists():
            raise Conflict(f"box {box.id} exists", code="exists", hint="delete it first")
        for old in (_log(box), _pid_file(box)):
            old.unlink(missing_ok=True)
        write_bundle(box, self._cgroups.path(box.cgroup) if self._flavor.enters_cgroup else None)
        join = () if self._flavor.enters_cgroup else self._cgroups.join_files(box.cgroup)
        start = run_command(self._flavor, self._binary, self._state, box)
        try:
            await self._launch(box, launch_command(self._hide, join, start))
            return int(_pid_file(box).read_text())
        except BaseException:
            await asyncio.shield(self.delete(box.id))
            raise

    async def _launch(self, box: Box, command: list[str]) -> None:
        errors = box.directory / "launch.log"
        with errors.open("wb") as file:
            code = await run(command, START_WITHIN, stdin=box.listener_fd, stderr=file.fileno())
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
        parse_box_name(box_id)
        code = await run(kill_command(self._flavor, self._binary, self._state, box_id, signal), CALL_WITHIN)
        if code != 0 and await self._pid(box_id):
            raise Failed(f"{self.name} could not signal {box_id}", code="runtime_failed")

    async def delete(self, box_id: str) -> None:
        parse_box_name(box_id)
        place = self._state / box_id
        if not place.exists():
            return
        pid = await self._pid(box_id)
        handle = open_pidfd(pid) if pid else None
        try:
            code = await run(delete_command(self._flavor, self._binary, self._state, box_id), CALL_WITHIN)
            ended = handle is None or await has_ended(handle, EXIT_WITHIN)
        finally:
            if handle is not None:
                os.close(handle)
        if not ended or (code != 0 and await self._pid(box_id)):
            raise Failed(
                f"{self.name} could not delete {box_id}",
                code="runtime_failed",
                hint="a frozen process ends only when it is thawed: kill its cgroup first",
            )
        # What a start left behind that was interrupted before it wrote its state.
        await asyncio.to_thread(shutil.rmtree, place, ignore_errors=True)

    async def list(self) -> dict[str, int]:
        output = await read_json(list_command(self._flavor, self._binary, self._state))
        if output is None:
            raise Failed(f"{self.name} could not list its boxes", code="runtime_failed")
        return {str(item["id"]): int(item["pid"]) for item in output or ()}

    async def pause(self, box_id: str) -> None:
        raise cannot_hibernate(self.name)

    async def resume(self, box_id: str) -> None:
        raise cannot_hibernate(self.name)

    async def save_memory(self, box_id: str, into: Path) -> None:
        raise cannot_hibernate(self.name)

    async def _pid(self, box_id: str) -> int:
        """0 when it does not run, or is not known."""
        output = await read_json(state_command(self._flavor, self._binary, self._state, box_id))
        return int(output.get("pid", 0)) if isinstance(output, dict) else 0


def find_oci(level: str, state: Path, cgroups: Cgroups) -> OCIRuntime:
    """Raises Unsupported `missing_tool` for a program to install."""
    flavor = FLAVORS[level]
    binary = shutil.which(flavor.name)
    for tool in (flavor.name, "unshare", "umount"):
        if not shutil.which(tool):
            package = flavor.package if tool == flavor.name else "util-linux mount"
            raise Unsupported(f"{tool} is not installed", code="missing_tool", hint=f"apt-get install {package}")
    assert binary
    return OCIRuntime(flavor, binary, state / flavor.name, cgroups)
