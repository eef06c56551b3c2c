"""Runs a Dovecotefile: each step makes a tree of the tree before, or finds it made already."""

from __future__ import annotations

import asyncio
import codecs
import hashlib
import json
import posixpath
import shlex
from collections.abc import Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from dovecote.control.fleet import Claim, Command, Exited, Host, Output
from dovecote.control.sessions import ensure_started, wait_until_ready
from dovecote.control.templates.context import Context
from dovecote.control.templates.dovecotefile import Instruction, Recipe, argv_of, variables_of, words_of
from dovecote.control.templates.progress import Telling
from dovecote.errors import DeadlineExceeded, DovecoteError, Failed
from dovecote.model.ids import random_text
from dovecote.model.records import Start
from dovecote.model.sizes import SPECS, NetworkPolicy
from dovecote.model.trees import Inside, Workspace

STEP_TIMEOUT = 1800.0  # seconds for one RUN
READY_TIMEOUT = 120.0
LAST_WORDS = 400
SPEC = "large"


@dataclass(frozen=True)
class Built:
    digest: str
    inside: Inside
    start: Start | None


@dataclass(frozen=True)
class Ground:
    """What a build begins with."""

    digest: str
    inside: Inside
    start: Start | None = None


class Building:
    """One build. `owner` names its instances, `scope` its cache: a tenant learns nothing of another's."""

    def __init__(
        self, host: Host, telling: Telling, context: Context, *, owner: str, scope: str, level: str, work_dir: Path
    ) -> None:
        self._host = host
        self._telling = telling
        self._context = context
        self._owner = owner
        self._scope = scope
        self._level = level
        self._work_dir = work_dir

    async def run(self, recipe: Recipe, ground: Ground) -> Built:
        """Raises Failed (build_failed, not_ready), Invalid, DeadlineExceeded (build_timeout), what claims raise."""
        tree, inside = ground.digest, ground.inside
        for number, step in enumerate(recipe.steps, 1):
            self._telling.step(f"{number}/{len(recipe.steps)} {str(step)[:200]}")
            tree, inside = await self._step(step, tree, inside)
        inside = await self._host.images.inside(tree, user=inside.user, directory=inside.directory, env=inside.env)
        start = ground.start
        if recipe.start:
            argv = argv_of(recipe.start) if recipe.start.startswith("[") else ()
            ready = "" if recipe.port else _line_of(recipe.ready)
            start = Start(_line_of(recipe.start), recipe.port, argv=argv, ready=ready)
        if recipe.ready:
            self._telling.step(f"READY {recipe.ready[:200]}")
            await self._check(tree, inside, recipe.ready, start if recipe.start else None)
        await self._host.images.ready(tree)
        return Built(tree, inside, start)

    async def _check(self, tree: str, inside: Inside, line: str, start: Start | None) -> None:
        """Once; beside a start that runs until it succeeds."""
        async with AsyncExitStack() as undo:
            instance_id = await self._claim(tree, inside, undo)
            if start is None:
                await self._command(instance_id, line, inside, READY_TIMEOUT, "not_ready")
                return
            guest = self._host.guest(instance_id)
            env = inside.env
            await ensure_started(guest, start, user=inside.user, env=env, cwd=inside.cwd)
            check = Command(argv=argv_of(line), env=env, cwd=inside.cwd, user=inside.user, timeout=READY_TIMEOUT)
            await wait_until_ready(guest, check, timeout=READY_TIMEOUT)

    async def _step(self, step: Instruction, tree: str, inside: Inside) -> tuple[str, Inside]:
        if step.word == "ENV":
            return tree, replace(inside, env={**inside.env, **variables_of(step)})
        if step.word == "USER":
            (user,) = words_of(step)
            found = await self._host.images.inside(tree, user=user, directory=inside.directory, env=inside.env)
            return tree, found
        if step.word == "WORKDIR":
            (path,) = words_of(step)
            directory = posixpath.normpath(posixpath.join(inside.cwd, path))
            tree = await self._host.images.with_directory(tree, directory, user=inside.user)
            return tree, replace(inside, directory=directory)
        if step.word == "COPY":
            return await self._copy(step, tree, inside), inside
        return await self._run(step, tree, inside), inside

    async def _recall(self, step: Instruction, key: str) -> str | None:
        known = None if step.is_made_anew else await self._host.images.recall(self._scope, key)
        if known is not None:
            self._telling.say("from the cache\n")
        return known

    async def _copy(self, step: Instruction, tree: str, inside: Inside) -> str:
        *sources, target = words_of(step)
        place = posixpath.join(inside.cwd, target)
        if target in (".", "..") or target.endswith(("/.", "/..")):
            place += "/"
        owner = step.flag("chown") or inside.user
        if self._context.fills_directory(sources, place):
            tree = await self._host.images.with_directory(tree, posixpath.normpath(place), user=owner)
        uid, gid = await self._host.images.ids(tree, owner)
        mode = int(step.flag("chmod"), 8) if step.flag("chmod") else None
        path = self._work_dir / f"layer-{random_text(10)}.tar"
        try:
            layer = await asyncio.to_thread(self._context.layer, sources, place, uid=uid, gid=gid, mode=mode, to=path)
            key = _key(tree, "COPY", layer.diff_id)
            known = await self._recall(step, key)
            if known is not None:
                return known
            made = await self._host.images.add(tree, path, diff_id=layer.diff_id, names=layer.names)
            await self._host.images.remember(self._scope, key, made)
            return made
        finally:
            path.unlink(missing_ok=True)

    async def _run(self, step: Instruction, tree: str, inside: Inside) -> str:
        if step.flag("user"):
            user, directory = step.flag("user"), inside.directory  # of no directory: in that user's home
            inside = await self._host.images.inside(tree, user=user, directory=directory, env=inside.env)
        key = _key(tree, "RUN", step.text, inside.user, inside.cwd, dict(sorted(inside.env.items())))
        known = await self._recall(step, key)
        if known is not None:
            return known
        async with AsyncExitStack() as undo:
            instance_id = await self._claim(tree, inside, undo)
            await self._command(instance_id, step.text, inside, STEP_TIMEOUT, "build_failed")
            made = await self._host.capture(instance_id)
        await self._host.images.remember(self._scope, key, made)
        return made

    async def _claim(self, tree: str, inside: Inside, undo: AsyncExitStack) -> str:
        """An instance of its own for a command; `undo` ends it."""
        placed = await self._host.claim(
            Claim(
                owner=f"{self._owner}-{random_text(8)}",
                workspace=Workspace(tree),
                limits=SPECS[SPEC].limits,
                network=NetworkPolicy(),
                level=self._level,
                epoch=1,
                keeps_files=False,
                allow_setuid=inside.has_sudo,
            )
        )
        undo.push_async_callback(self._end, placed.instance_id)
        return placed.instance_id

    async def _command(self, instance_id: str, line: str, inside: Inside, timeout: float, code: str) -> None:
        command = Command(
            argv=argv_of(line), env=inside.env, cwd=inside.cwd, user=inside.user, timeout=timeout, tag="build"
        )
        decode = codecs.getincrementaldecoder("utf-8")("replace").decode
        words = ""
        async for event in self._host.guest(instance_id).stream(command):
            if isinstance(event, Output):
                text = decode(event.data)
                words = (words + text)[-LAST_WORDS:]
                self._telling.say(text)
            elif isinstance(event, Exited):
                if event.timed_out:
                    raise DeadlineExceeded(f"{line[:200]} took more than {timeout:.0f} s", code="build_timeout")
                if event.exit_code != 0:
                    how = f"exit {event.exit_code}" if event.exit_code is not None else f"signal {event.signal}"
                    raise Failed(f"{line[:200]} failed ({how})", code=code, hint=f"its last words: {words.strip()}")
                return
        raise Failed(f"{line[:200]} has no end", code="guest_protocol")

    async def _end(self, instance_id: str) -> None:
        try:
            await self._host.stop(instance_id, grace=0)
        except DovecoteError as error:
            self._telling.say(f"the step's instance could not be stopped: {error.message}\n")


def _line_of(text: str) -> str:
    """For a shell, whichever way it was written."""
    return shlex.join(argv_of(text)) if text.startswith("[") else text


def _key(*facts: str | Mapping[str, str]) -> str:
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()
