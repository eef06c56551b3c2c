"""Files of a user's own over a template: what comes of them is a revision's tree."""

from __future__ import annotations

import asyncio
import tempfile
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import replace
from functools import partial
from pathlib import Path

from dovecote.control.deployments.archives import as_tar
from dovecote.control.fleet import Fleet
from dovecote.control.functions import SANDBOX, Functions
from dovecote.control.templates import (
    Building,
    Context,
    Deployed,
    Ground,
    Instruction,
    OnTheWay,
    Recipe,
    Telling,
    receive,
)
from dovecote.errors import Invalid, NoCapacity
from dovecote.model.ids import new_id
from dovecote.model.records import Function, Revision

MOST_AT_ONCE = 2  # of a tenant
LONGEST_BUILD = 16_384  # characters of a command


class DeployedFiles:
    """`level` is what builds run at; `work_dir` is private and may be deleted while nothing runs."""

    def __init__(self, fleet: Fleet, functions: Functions, *, level: str, work_dir: Path) -> None:
        self._fleet = fleet
        self._functions = functions
        self._level = level
        self._work_dir = work_dir
        self._going: Counter[str] = Counter()  # by tenant
        self._tasks: set[asyncio.Task[Revision]] = set()

    async def put(
        self,
        function: Function,
        sent: AsyncIterator[bytes],
        *,
        template: str | None = None,
        build: str = "",
        is_current: bool = True,
    ) -> AsyncGenerator[OnTheWay | Deployed, None]:
        """A revision with these files, a tar or a zip, where the template's commands start; what was put before goes.

        `template` is its own unless it is named; `build` is a command that runs once in the files. A revision that is
        not current serves nobody until a change names it. The last event is Deployed. Leaving early does not end it,
        once all has come. Raises Invalid (bad_context, too_large), Failed (build_failed), NoCapacity (too_many), ...
        """
        if function.name == SANDBOX:
            raise Invalid("sandboxes begin with a template", hint="define a function of your own, or build a template")
        if len(build) > LONGEST_BUILD or "\0" in build:
            raise Invalid("the command of the build is too long or has a NUL")
        await self._functions.check_own(function)
        if self._going[function.tenant_id] >= MOST_AT_ONCE:
            raise NoCapacity(f"{MOST_AT_ONCE} deployments go on already", code="too_many", retry_after=10)
        self._going[function.tenant_id] += 1
        telling = Telling()
        task = asyncio.ensure_future(self._make(function, sent, template, build, is_current, telling))
        self._tasks.add(task)
        task.add_done_callback(partial(self._ended, function.tenant_id))
        return telling.events(task, Deployed)

    def _ended(self, tenant_id: str, task: asyncio.Task[Revision]) -> None:
        self._tasks.discard(task)
        self._going[tenant_id] -= 1
        self._going += Counter()  # without those that are zero
        if not task.cancelled():
            task.exception()  # whoever follows is told

    async def stop(self) -> None:
        """Ends what goes on; nothing comes of it."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _make(
        self,
        function: Function,
        sent: AsyncIterator[bytes],
        template: str | None,
        build: str,
        is_current: bool,
        telling: Telling,
    ) -> Revision:
        current = await self._functions.revision(function.tenant_id, function.revision_id)
        name = template or current.template_name
        self._work_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="files-", dir=self._work_dir) as directory:
            path = Path(directory) / "sent"
            await receive(sent, path)
            telling.step("files received")  # the first word only now: the answer begins with it, and ends the body
            context = await asyncio.to_thread(_context, path)
            digest, inside, start = await self._functions.bases.pinned(function.tenant_id, name)
            # The build sees the function's environment; the template's own stays what it is.
            ground = Ground(digest, replace(inside, env={**inside.env, **current.env}))
            building = Building(
                self._fleet.host(self._fleet.place(prefer=None)),
                telling,
                context,
                owner=new_id("tpl"),  # as builds of templates, which a restart ends
                scope=function.tenant_id,
                level=self._level,
                work_dir=Path(directory),
            )
            built = await building.run(_recipe(name, build), ground)
        # The function as it is now: it may have been changed while this was made, or be another one of its name.
        function = await self._functions.by_id(function.tenant_id, function.id)
        current = await self._functions.revision(function.tenant_id, function.revision_id)
        wanted = replace(
            current,
            template=built.digest,
            template_name=name,
            tree=None,
            pinned=replace(built.inside, env=inside.env),
            start=(start if template else None) or current.start or start,
        )
        return await self._functions.add_revision(function, wanted, is_current=is_current)


def _context(path: Path) -> Context:
    return Context(as_tar(path, path.with_name("context.tar")))


def _recipe(template: str, build: str) -> Recipe:
    steps = [Instruction(1, "COPY", ". ./")]
    if build.strip():
        steps.append(Instruction(2, "RUN", build.strip()))
    return Recipe(template, tuple(steps))
