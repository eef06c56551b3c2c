"""Templates of tenants: a name each, made by a task that outlives whoever asked for it."""

from __future__ import annotations

import asyncio
import logging
import shlex
import shutil
import tempfile
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from uuid import uuid4

from dovecote.background import Background
from dovecote.control.fleet import Fleet, Images, Made
from dovecote.control.functions import BASE, Functions, parse_spec
from dovecote.control.templates import dovecotefile
from dovecote.control.templates.building import Building, Ground
from dovecote.control.templates.context import Context, receive
from dovecote.control.templates.dovecotefile import NAME, parse_dovecotefile
from dovecote.control.templates.progress import SILENCE, Done, Event, Prepared, Step, Telling
from dovecote.control.templates.sent import Sent
from dovecote.errors import Conflict, DovecoteError, Failed, NoCapacity, NotFound
from dovecote.model.ids import new_id, parse_template_name
from dovecote.model.records import Start, Template
from dovecote.model.states import TemplateState
from dovecote.store import Store

log = logging.getLogger(__name__)

MOST_TEMPLATES = 200  # of a tenant
MOST_AT_ONCE = 2  # that a tenant makes
LOOK_EVERY = 0.5  # seconds, at making one of the installation's own
MOST_WARM = 32  # trees that are made ready when the server starts


class Templates:
    """`level` is what builds run at; `work_dir` is private and may be deleted while nothing runs."""

    def __init__(self, store: Store, fleet: Fleet, functions: Functions, *, level: str, work_dir: Path) -> None:
        self._store = store
        self._fleet = fleet
        self._functions = functions
        self._level = level
        self._work_dir = work_dir
        self._making: dict[str, asyncio.Task[Template]] = {}  # by id of the template
        self._background = Background()
        self.sent = Sent(work_dir / "sent")

    # -- coming and going of the server

    async def adopt(self) -> None:
        """After a restart: what was being made is not any more. Called once, before the first request."""
        async for template in self._store.everyone().templates.each(state=TemplateState.BUILDING):
            failure = Failed("the server stopped meanwhile", code="interrupted", hint="make it again")
            try:
                await self._store.tenant(template.tenant_id).templates.swap(_failed(template, failure))
            except DovecoteError as error:
                log.warning("template %s stays as it was: %s", template.id, error)
        await asyncio.to_thread(shutil.rmtree, self._work_dir, True)
        for host in self._fleet.hosts().values():
            for seen in await host.observe():
                if seen.owner.startswith("tpl_"):
                    with suppress(NotFound):
                        await host.stop(seen.instance_id, grace=0)
        self._background.run(self._warm(), "making templates ready")

    async def stop(self) -> None:
        """Ends what is being made; the next start says so in its records."""
        for task in self._making.values():
            task.cancel()
        await asyncio.gather(*self._making.values(), return_exceptions=True)
        await self._background.stop()

    async def _warm(self) -> None:
        """Trees that functions start from are fetched and mounted, so that no first session waits for that."""
        used: dict[str, datetime] = {}
        everyone = self._store.everyone()
        async for function in everyone.functions.each():
            revision = await everyone.revisions.find(id=function.revision_id)
            if revision is not None and revision.template_name != BASE:
                used[revision.template] = max(revision.created_at, used.get(revision.template, revision.created_at))
        newest = sorted(used, key=lambda digest: used[digest], reverse=True)[:MOST_WARM]
        for host in self._fleet.hosts().values():
            for digest in newest:
                try:
                    await host.images.ready(digest)
                except DovecoteError as error:
                    log.warning("template %s cannot be made ready: %s", digest[:16], error)

    # -- making

    async def pull(
        self, tenant_id: str, name: str, reference: str, *, port: int | None = None
    ) -> AsyncGenerator[Event, None]:
        """Of an image in a registry. Raises Invalid, Conflict (building), NoCapacity, and what it is refused for.

        `port` is what its command opens, where the image does not say. The first event comes once it is under way.
        """
        return await self._make(
            tenant_id,
            name,
            reference,
            lambda record, telling: self._from_image(
                record, port, self._images().pull(reference, scope=tenant_id, progress=telling.step)
            ),
        )

    async def unpack(
        self, tenant_id: str, name: str, archive: AsyncIterator[bytes], *, port: int | None = None
    ) -> AsyncGenerator[Event, None]:
        """Of an archive of an image, plain tar."""
        return await self._make(
            tenant_id,
            name,
            "archive",
            lambda record, telling: self._from_image(
                record, port, self._images().unpack(archive, scope=tenant_id, progress=telling.step)
            ),
        )

    async def build(
        self,
        tenant_id: str,
        name: str,
        context: AsyncIterator[bytes],
        *,
        spec: str = "",
        build_id: str | None = None,
    ) -> AsyncGenerator[Event, None]:
        """Of a Dovecotefile and the files beside it, a plain tar. `spec` is what sandboxes have that name none.

        Raises what `pull` raises, NotFound (no_such_spec), Failed (build_failed).
        """
        if spec:
            parse_spec(spec)
        return await self._make(
            tenant_id,
            name,
            "build",
            lambda record, telling: self._build(replace(record, spec=spec), context, telling),
            build_id=build_id,
        )

    async def prepare(self, name: str) -> AsyncGenerator[Event, None]:
        """Makes one of the installation's own, unless it is there. Leaving early does not end it.

        Raises NotFound (no_such_template) before its first event, and what it fails for.
        """
        own = self._functions.bases.on_demand
        if own is None or name not in own.names:
            names = ", ".join(sorted(own.names)) if own is not None else BASE
            raise NotFound(f"no template {name!r} to prepare", code="no_such_template", hint=f"there are {names}")
        task = asyncio.ensure_future(own.ensure(name, patience=None))
        told_at, told = 0.0, ""
        try:
            yield Step(f"template {name}")
            while not (await asyncio.wait({task}, timeout=LOOK_EVERY))[0]:
                now, step = asyncio.get_running_loop().time(), own.step(name)
                if step and (step != told or now - told_at > SILENCE):
                    told_at, told = now, step
                    yield Step(step)
            yield Prepared(task.result())
        finally:
            task.cancel()

    async def _build(self, record: Template, sent: AsyncIterator[bytes], telling: Telling) -> Template:
        self._work_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="build-", dir=self._work_dir) as directory:
            path = Path(directory) / "context.tar"
            await receive(sent, path)
            context = await asyncio.to_thread(Context, path)
            recipe = parse_dovecotefile(context.read(NAME, dovecotefile.MAX_BYTES))
            telling.step(f"FROM {recipe.source}")
            ground, source_digest = await self._ground(record.tenant_id, recipe.source, telling)
            host = self._fleet.host(self._fleet.place(prefer=None))
            building = Building(
                host,
                telling,
                context,
                owner=record.id,
                scope=record.tenant_id,
                level=self._level,
                work_dir=Path(directory),
            )
            built = await building.run(recipe, ground)
            files, total_bytes = await host.images.usage(built.digest)
        return replace(
            record,
            digest=built.digest,
            source_digest=source_digest,
            pinned=built.inside,
            start=built.start,
            files=files,
            total_bytes=total_bytes,
        )

    async def _ground(self, tenant_id: str, source: str, telling: Telling) -> tuple[Ground, str]:
        templates = self._store.tenant(tenant_id).templates
        is_image = "/" in source or (":" in source and await templates.find(name=source) is None)
        if is_image:
            made = await self._images().pull(source, scope=tenant_id, progress=telling.step)
            return Ground(made.digest, made.inside, _start(made, None)), made.source
        return Ground(*await self._functions.bases.pinned(tenant_id, source)), ""

    def _images(self) -> Images:
        return self._fleet.host(self._fleet.place(prefer=None)).images

    async def _from_image(self, record: Template, port: int | None, making: Awaitable[Made]) -> Template:
        made = await making
        return replace(
            record,
            digest=made.digest,
            source_digest=made.source,
            pinned=made.inside,
            start=_start(made, port),
            files=made.files,
            total_bytes=made.total_bytes,
        )

    async def _make(
        self,
        tenant_id: str,
        name: str,
        source: str,
        work: Callable[[Template, Telling], Awaitable[Template]],
        *,
        build_id: str | None = None,
    ) -> AsyncGenerator[Event, None]:
        record = await self._begin(tenant_id, name, source, build_id or str(uuid4()))
        telling = Telling()
        task = asyncio.ensure_future(self._finish(record, partial(work, record, telling)))
        self._making[record.id] = task
        task.add_done_callback(lambda _: self._making.pop(record.id, None))
        task.add_done_callback(_look)
        return telling.events(task, Done)

    async def _begin(self, tenant_id: str, name: str, source: str, build_id: str) -> Template:
        name = parse_template_name(name)
        self._check_free(name)
        templates = self._store.tenant(tenant_id).templates
        if await templates.count(state=TemplateState.BUILDING) >= MOST_AT_ONCE:
            raise NoCapacity(f"{MOST_AT_ONCE} templates are being made already", code="too_many", retry_after=10)
        now = datetime.now(UTC)
        there = await templates.find(name=name)
        if there is not None and there.state is TemplateState.BUILDING:
            raise Conflict(f"template {name} is being made", code="building", hint="wait for it, or remove it")
        if there is not None:
            changed = replace(there, state=TemplateState.BUILDING, source=source[:600], error_code="", reason="")
            changed = replace(changed, build_id=build_id)
            return await templates.swap(replace(changed, updated_at=now))
        if await templates.count() >= MOST_TEMPLATES:
            raise NoCapacity(f"{MOST_TEMPLATES} templates are the most", code="too_many", hint="remove some")
        return await templates.insert(
            Template(new_id("tpl"), tenant_id, name, TemplateState.BUILDING, source[:600], now, now, build_id=build_id)
        )

    def _check_free(self, name: str) -> None:
        made = {template.name for template in self._functions.bases.made()}
        if name.partition(":")[0] in made.union(self._functions.bases.not_made()):
            raise Conflict(f"{name} is the installation's own", code="exists", hint="choose another name")

    async def _finish(self, record: Template, work: Callable[[], Awaitable[Template]]) -> Template:
        templates = self._store.tenant(record.tenant_id).templates
        try:
            made = await work()
        except Exception as error:
            expected = isinstance(error, DovecoteError)
            if not expected:
                log.exception("template %s of %s failed", record.name, record.tenant_id)
            failure = error if isinstance(error, DovecoteError) else Failed("something went wrong on our side")
            try:
                await templates.swap(_failed(record, failure))
            except DovecoteError as lost:
                log.info("template %s is not there any more: %s", record.id, lost)
            raise
        now = datetime.now(UTC)
        try:
            return await templates.swap(replace(made, state=TemplateState.READY, updated_at=now))
        except NotFound:
            raise NotFound("the template was removed meanwhile", code="no_such_template") from None

    # -- what is there

    async def get(self, tenant_id: str, name: str) -> Template:
        """Raises NotFound (no_such_template)."""
        found = await self._store.tenant(tenant_id).templates.find(name=parse_template_name(name))
        if found is None:
            raise NotFound(f"no template {name!r}", code="no_such_template", hint="`dovecote template ls` lists them")
        return found

    async def tag(self, tenant_id: str, name: str, tags: Sequence[str]) -> Template:
        """Gives what a name means now other names too: `tag("shop:v2", ["stable"])` makes `shop:stable`.

        Answers what it was. Raises NotFound (no_such_template), Conflict (template_not_ready), Invalid, NoCapacity.
        """
        template = await self.get(tenant_id, name)
        if template.digest is None:
            raise Conflict(f"template {name} is not ready: it is {template.state}", code="template_not_ready")
        base = template.name.partition(":")[0]
        self._check_free(base)
        templates = self._store.tenant(tenant_id).templates
        for tagged in [parse_template_name(f"{base}:{tag}") for tag in tags]:
            there = await templates.find(name=tagged)
            if there is not None and there.id == template.id:
                continue
            now = datetime.now(UTC)
            if there is None:
                if await templates.count() >= MOST_TEMPLATES:
                    raise NoCapacity(f"{MOST_TEMPLATES} templates are the most", code="too_many", hint="remove some")
                copied = replace(template, id=new_id("tpl"), name=tagged, created_at=now, updated_at=now, generation=0)
                await templates.insert(copied)
            elif there.state is TemplateState.BUILDING:
                raise Conflict(f"template {tagged} is being made", code="building", hint="wait for it, or remove it")
            else:
                moved = replace(template, id=there.id, name=tagged, created_at=there.created_at, updated_at=now)
                await templates.swap(replace(moved, generation=there.generation))
        return template

    async def list(self, tenant_id: str, *, after: str | None = None, limit: int = 100) -> Sequence[Template]:
        return await self._store.tenant(tenant_id).templates.list(after=after, limit=limit)

    async def delete(self, tenant_id: str, name: str) -> None:
        """Takes the name away, and ends making it. Revisions that pin its files go on with them."""
        template = await self.get(tenant_id, name)
        await self._store.tenant(tenant_id).templates.delete(template.id)
        task = self._making.get(template.id)
        if task is not None:
            task.cancel()
            await asyncio.wait([task])


def _start(made: Made, port: int | None) -> Start | None:
    port = port or made.port
    if not made.command or port is None:
        return None
    return Start(shlex.join(made.command), port, argv=made.command)


def _failed(template: Template, error: DovecoteError) -> Template:
    return replace(
        template,
        state=TemplateState.FAILED,
        error_code=error.code,
        reason=str(error)[:1000].replace("\0", ""),
        updated_at=datetime.now(UTC),
    )


def _look(task: asyncio.Task[Template]) -> None:
    """Whoever follows is told; when nobody does, the record says it."""
    if not task.cancelled():
        task.exception()
