"""Brings back dependencies that rules left out of a session's files, in the instance that these were restored to."""

from __future__ import annotations

import asyncio
import logging
import posixpath
import shlex
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from dovecote.control.fleet import Command, Exited, Guest, Host, Output, Placed
from dovecote.control.sessions.saved import Swap
from dovecote.errors import DovecoteError
from dovecote.model.records import Revision, Session
from dovecote.model.rules import Reinstall, ReinstallState, SaveRules

log = logging.getLogger(__name__)

TAG = "reinstall"
LAST_WORDS = 2000  # characters of output that are kept
LONGER = 5.0  # seconds that the end of a command may take to be told

NODE = {
    "package-lock.json": "npm ci",
    "npm-shrinkwrap.json": "npm ci",
    "pnpm-lock.yaml": "pnpm install --frozen-lockfile",
    "yarn.lock": "yarn install --frozen-lockfile",
    "package.json": "npm install",
}
PYTHON = {
    "uv.lock": "uv sync --frozen",
    "requirements.txt": "{pip} -r requirements.txt",
    "pyproject.toml": "{pip} -e .",
}
FILES_BESIDE = {"node_modules": NODE, ".venv": PYTHON, "venv": PYTHON}


@dataclass(frozen=True)
class Step:
    command: str
    cwd: str


def install_command(name: str, beside: Collection[str]) -> str | None:
    """What brings back the directory `name`, by the files beside it; the most exact of them counts."""
    if name == "node_modules":
        return next((command for file, command in NODE.items() if file in beside), None)
    if name in (".venv", "venv"):
        pip = f"python3 -m venv {name} && {name}/bin/pip install --no-input"
        found = next((file for file in PYTHON if file in beside), None)
        if found == "uv.lock" and name != ".venv":
            return None  # uv has it elsewhere
        return PYTHON[found].format(pip=pip) if found else None
    return None


def steps(directories: Mapping[str, Collection[str]]) -> tuple[list[Step], list[str]]:
    """For left-out directories, each with the files beside it; and those of which nothing says how to install them.

    Those above come first: the root of a workspace installs for its parts.
    """
    found: list[Step] = []
    unclear: list[str] = []
    for directory in sorted(directories, key=lambda path: path.count("/")):
        parent, name = posixpath.split(directory)
        command = install_command(name, directories[directory])
        if command in (None, NODE["package.json"]) and any(
            step.command in NODE.values() and parent.startswith(step.cwd + "/") for step in found
        ):
            continue
        if command is None:
            unclear.append(directory)
        else:
            found.append(Step(command, parent))
    return found, unclear


def to_bring_back(before: Reinstall | None, placed: Placed) -> tuple[str, ...]:
    """Directories that are empty now: of files just restored, or where bringing them back was cut short."""
    if placed.left_out:
        return placed.left_out
    if before is not None and before.state is ReinstallState.RUNNING:
        return before.directories
    return ()


class Reinstalling:
    """Keeps its result in the session's record. Whether it works or not, the session goes on."""

    def __init__(self, swap: Swap, *, timeout: float) -> None:
        self._swap = swap
        self._timeout = timeout

    async def after_claim(self, session: Session, revision: Revision, host: Host, placed: Placed) -> Session:
        """Called under the session's lock."""
        directories = to_bring_back(session.reinstall, placed)
        if not directories:
            stays = placed.how in ("survivor", "there") or session.reinstall is None
            return session if stays else await self._swap(session, reinstall=None)
        session = await self._swap(session, reinstall=Reinstall(ReinstallState.RUNNING, directories))
        return await self._swap(session, reinstall=await self.again(session, revision, host, placed.instance_id))

    async def again(self, session: Session, revision: Revision, host: Host, instance_id: str) -> Reinstall | None:
        """What the session's record says is to be brought back. Answers what became of it."""
        assert session.reinstall is not None
        guest = host.guest(instance_id)
        await wait_for_earlier(guest, timeout=self._timeout)
        done = await bring_back(
            guest,
            session.reinstall.directories,
            revision.rules,
            user=revision.inside.user,
            home=revision.inside.home,
            env={**revision.inside.env, **revision.env, **session.env},
            timeout=self._timeout,
        )
        if done is not None:
            log.info("reinstalling in session %s: %s %s", session.id, done.command, done.state)
        return done


async def plan(
    guest: Guest, left_out: Sequence[str], rules: SaveRules, *, user: str, home: str
) -> tuple[list[Step], list[str]]:
    """As `steps`; the function's own command takes the place of all others. What holds no dependencies is passed by."""
    if rules.reinstall is not None:
        return [Step(rules.reinstall, home)], []
    beside: dict[str, Collection[str]] = {}
    for directory in left_out:
        parent, name = posixpath.split(directory)
        files = FILES_BESIDE.get(name)
        if files is not None:
            beside[directory] = [file for file in files if await _is_there(guest, f"{parent}/{file}", user)]
    return steps(beside)


async def _is_there(guest: Guest, path: str, user: str) -> bool:
    try:
        return (await guest.stat(path, user=user)).kind == "file"
    except DovecoteError:
        return False


async def bring_back(
    guest: Guest,
    directories: Sequence[str],
    rules: SaveRules,
    *,
    user: str,
    home: str,
    env: Mapping[str, str],
    timeout: float,
) -> Reinstall | None:
    """One place after the other, until one fails. Says what became of it; None where nothing had to be done."""
    deadline = asyncio.get_running_loop().time() + timeout
    todo, unclear = await plan(guest, directories, rules, user=user, home=home)
    if not todo and not unclear:
        return None
    done = Reinstall(ReinstallState.DONE, tuple(directories))
    for step in todo:
        left = deadline - asyncio.get_running_loop().time()
        done = await _run(guest, step, done, user=user, env=env, timeout=left)
        if done.state is ReinstallState.FAILED:
            return done
    if unclear:
        words = f"nothing beside {', '.join(unclear)} says how it is installed"
        done = replace(done, state=ReinstallState.FAILED, output=words[:LAST_WORDS])
    return done


async def _run(
    guest: Guest, step: Step, before: Reinstall, *, user: str, env: Mapping[str, str], timeout: float
) -> Reinstall:
    state, exit_code, words = ReinstallState.FAILED, None, bytearray()
    line = f"cd {shlex.quote(step.cwd)} && {step.command}"
    try:
        if timeout <= 0:
            raise TimeoutError
        async with asyncio.timeout(timeout + LONGER):
            started = await guest.start(
                Command(argv=("/bin/sh", "-c", line), env=env, user=user, timeout=timeout, tag=TAG)
            )
            async for event in guest.attach(started.number):
                if isinstance(event, Output):
                    words = (words + event.data)[-LAST_WORDS:]
                elif isinstance(event, Exited):
                    exit_code = event.exit_code
                    state = ReinstallState.DONE if exit_code == 0 else state
                    if event.timed_out:
                        raise TimeoutError
            await guest.release(started.number)
    except TimeoutError:
        words += b"\nit took too long"
    except DovecoteError as error:
        words += f"\n{error.message}".encode()
    return Reinstall(state, before.directories, step.command, exit_code, words.decode(errors="replace")[-LAST_WORDS:])


async def wait_for_earlier(guest: Guest, *, timeout: float) -> None:
    """Until the commands of a control that is gone have ended; they do by themselves, at their own timeout."""
    try:
        async with asyncio.timeout(timeout + LONGER):
            for command in await guest.list_commands():
                if command.tag == TAG and command.is_running:
                    async for _ in guest.attach(command.number):
                        pass
    except (DovecoteError, TimeoutError):
        return
