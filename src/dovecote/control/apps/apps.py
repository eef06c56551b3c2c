"""Published apps: an address each, and as many instances as their visitors need, down to none."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any, Protocol

from dovecote.background import Background
from dovecote.control.apps.rescale import DEFAULT_SCALE, Rescale
from dovecote.control.apps.running import AppInstance, RunningApp
from dovecote.control.apps.turns import AppTurns
from dovecote.control.fleet import Death, Fleet, Observed
from dovecote.control.functions import Functions
from dovecote.control.scaling import desired
from dovecote.control.sessions import Sessions, wait_for_port
from dovecote.errors import Conflict, DeadlineExceeded, DovecoteError, Failed, Invalid, NotFound
from dovecote.model.ids import new_id, parse_name, random_text
from dovecote.model.records import App, Revision, Session, Start
from dovecote.store import Store

log = logging.getLogger(__name__)

OWNER = "app_"  # how the owners of apps' instances begin
LASTS = 30.0  # seconds that an instance must live for its start to count as a good one
PAGE = 500


class Counted(Protocol):
    """What the gateway counts of an app: requests in flight, and since it started."""

    @property
    def active(self) -> int: ...
    @property
    def total(self) -> int: ...


class Apps:
    """`set_endpoints` tells the gateway who serves what; `loads` is what it counts.

    `published` is told of the session that an app of that name was published from, as it was saved.
    """

    def __init__(
        self,
        store: Store,
        fleet: Fleet,
        functions: Functions,
        sessions: Sessions,
        *,
        start_timeout: float,
        set_endpoints: Callable[[Mapping[str, Sequence[str]]], Awaitable[None]],
        loads: Callable[[], Awaitable[Mapping[str, Counted]]],
        published: Callable[[Session, str], Awaitable[None]] | None = None,
    ) -> None:
        self._store = store
        self._fleet = fleet
        self._functions = functions
        self._sessions = sessions
        self._start_timeout = start_timeout
        self._set_endpoints = set_endpoints
        self._loads = loads
        self._published = published
        self._apps: dict[str, RunningApp] = {}  # by name
        self._owners: set[str] = set()  # of instances that are looked after, also of apps that are unpublished
        self._telling = asyncio.Lock()
        self._background = Background()
        self._turns = AppTurns(
            fleet,
            functions,
            start_timeout=start_timeout,
            admit=sessions.admitting.admitted,
            hooks=sessions.hooks,
            tell=self._tell,
        )

    # -- the record

    async def publish(
        self,
        tenant_id: str,
        session_id: str,
        *,
        name: str | None = None,
        start: Start | None = None,
        minimum: int | None = None,
        maximum: int | None = None,
        target_concurrency: int | None = None,
        idle_after: timedelta | None = None,
    ) -> App:
        """Turns the session's files as they are now into an app, or into the next revision of an app of that name.

        What is not given is 0, 5, 10 and a minute for a new app, and stays as it is for one that is there.

        Raises Invalid (no_start: nobody said how it is started), Conflict (exists: the name is another tenant's).
        """
        name = parse_name(name or f"app-{random_text(10)}", "an app")
        session = await self._sessions.get(tenant_id, session_id)
        start = start or session.start
        if start is None or not start.port:
            raise Invalid(
                "nothing says how the app is started",
                code="no_start",
                hint="record a start (command and port) for the session, or give one with the call",
            )
        scale = Rescale(minimum, maximum, target_concurrency, idle_after)
        session, tree = await self._sessions.whole(tenant_id, session_id)
        there = self._apps.get(name)
        if there is not None and there.app.tenant_id != tenant_id:
            raise Conflict(f"the name {name} is taken", code="exists", hint="choose another")
        made_for = await self._functions.revision(tenant_id, session.revision_id)
        env = {**made_for.env, **session.env}
        if there is not None:
            app = await self._publish_again(there, replace(made_for, env=env, start=start, tree=tree), scale)
            await self._tell_of(session, name)
            return app
        function = await self._functions.create(
            tenant_id,
            f"app-{random_text(16)}",
            like=replace(made_for, env=env, start=start, tree=tree, mounts=(*made_for.mounts, *session.mounts)),
        )
        app = scale.on(
            App(
                id=new_id("app"),
                tenant_id=tenant_id,
                name=name,
                function_id=function.id,
                revision_id=function.revision_id,
                source_session_id=session.id,
                minimum=DEFAULT_SCALE.minimum,
                maximum=DEFAULT_SCALE.maximum,
                target_concurrency=DEFAULT_SCALE.target_concurrency,
                idle_after=timedelta(seconds=DEFAULT_SCALE.idle_after),
                created_at=datetime.now(UTC),
            )
        )
        try:
            app = await self._store.tenant(tenant_id).apps.insert(app)
        except Conflict:
            await self._functions.remove(tenant_id, function.id)
            raise
        self._apps[name] = RunningApp(app, await self._functions.revision(tenant_id, app.revision_id))
        await self._tell()
        await self._tell_of(session, name)
        return app

    async def _tell_of(self, session: Session, name: str) -> None:
        if self._published is not None:
            await self._published(session, name)

    async def _publish_again(self, there: RunningApp, like: Revision, scale: Rescale) -> App:
        app = scale.on(there.app)
        revision = await self._functions.revise(app.tenant_id, app.function_id, like=like)
        there.app = await self._store.tenant(app.tenant_id).apps.swap(replace(app, revision_id=revision.id))
        there.revision, there.failed, there.failures = revision, None, 0
        return there.app

    async def get(self, tenant_id: str, name: str) -> App:
        return self._of(tenant_id, name).app

    async def list(self, tenant_id: str, *, after: str | None = None, limit: int = 100) -> Sequence[App]:
        return await self._store.tenant(tenant_id).apps.list(after=after, limit=limit, removed_at=None)

    async def update(
        self,
        tenant_id: str,
        name: str,
        *,
        minimum: int | None = None,
        maximum: int | None = None,
        target_concurrency: int | None = None,
        idle_after: timedelta | None = None,
    ) -> App:
        there = self._of(tenant_id, name)
        app = Rescale(minimum, maximum, target_concurrency, idle_after).on(there.app)
        there.app = await self._store.tenant(tenant_id).apps.swap(app)
        return there.app

    async def unpublish(self, tenant_id: str, name: str) -> None:
        """Takes the address away and ends its instances; the name is free again."""
        there = self._of(tenant_id, name)
        await self._store.tenant(tenant_id).apps.swap(replace(there.app, removed_at=datetime.now(UTC)))
        self._apps.pop(name, None)
        lives = [instance.life for instance in there.instances if instance.life is not None]
        for instance in there.instances:
            instance.leaving.set()
        async with there.changed:
            there.failed = NotFound(f"app {name!r} was unpublished", code="no_such_app")
            there.changed.notify_all()
        await self._tell()
        await self._functions.remove(tenant_id, there.app.function_id)
        if lives:
            await asyncio.wait(lives)

    async def instances(self, tenant_id: str, name: str) -> Sequence[AppInstance]:
        return [i for i in self._of(tenant_id, name).instances if not i.is_leaving]

    def _of(self, tenant_id: str, name: str) -> RunningApp:
        there = self._apps.get(name)
        if there is None or there.app.tenant_id != tenant_id:
            raise NotFound(f"no app {name!r}", code="no_such_app", hint="`dovecote app ls` lists them")
        return there

    # -- visitors

    async def route(self, name: str) -> str:
        """An instance that answers, started if there is none; the visitor is held meanwhile.

        Raises NotFound (no_such_app), what claims and starts raise, DeadlineExceeded (start_timeout).
        """
        there = self._apps.get(name)
        if there is None:
            raise NotFound(f"no app {name!r}", code="no_such_app")
        there.waiting += 1
        there.last_request = time.monotonic()
        try:
            return await asyncio.wait_for(self._someone(there), self._start_timeout)
        except TimeoutError:
            raise DeadlineExceeded(
                f"{name} did not start within {self._start_timeout:.0f} s", code="start_timeout", hint="try again"
            ) from None
        finally:
            there.waiting -= 1

    async def _someone(self, there: RunningApp) -> str:
        if not there.is_failure_fresh(time.monotonic()):
            there.failed = None
        while True:
            serving = there.serving()
            if serving:
                chosen = serving[there.waiting % len(serving)]
                if await self._answers(chosen, there):
                    return chosen.address
                continue
            if not there.current():
                if self._apps.get(there.app.name) is not there:
                    raise NotFound(f"app {there.app.name!r} was unpublished", code="no_such_app")
                if there.failed is not None:
                    raise there.failed
                self._add(there)
            async with there.changed:
                if not there.serving() and there.current():
                    await there.changed.wait()

    async def _answers(self, instance: AppInstance, there: RunningApp) -> bool:
        """Whoever is asked for was cold or just failed: an instance whose server has ended leaves here."""
        assert instance.host is not None
        port = int(instance.address.rpartition(":")[2])
        try:
            state = await instance.host.guest(instance.instance_id).wait_port(port, 0)
        except DovecoteError:
            state = None
        if state is not None and state.is_open:
            return True
        if not instance.is_leaving:
            log.warning("the server of an instance of app %s has ended", there.app.name)
            self._count_death(there, instance, "its server ended")
            instance.is_dead = True
            instance.leaving.set()
        return False

    def _count_death(self, there: RunningApp, instance: AppInstance, reason: str) -> None:
        now = time.monotonic()
        if now - instance.ready_at < LASTS:
            there.fail(Failed(f"{there.app.name} does not last: {reason}", code="app_dies"), now)

    # -- instances

    async def tick(self) -> None:
        """Looks at the load of each app and lets instances come and go."""
        if not self._apps:
            return
        loads = await self._loads()
        now = time.monotonic()
        for name, there in list(self._apps.items()):
            count = loads.get(name)
            load = there.see(active=count.active if count else 0, total=count.total if count else 0, now=now)
            wanted = desired(there.scale(), load)
            current = there.current()
            missing = wanted - len(current)
            if now >= there.retry_at():
                # One at a time while starts come to nothing.
                for _ in range(min(missing, 1) if there.failures else missing):
                    self._add(there)
            # When nobody comes, the revision before leaves too, though the next one never became ready.
            old = there.outdated() if wanted else [i for i in there.instances if i not in current]
            for instance in old + surplus(current, wanted):
                instance.leaving.set()

    def _add(self, there: RunningApp) -> None:
        instance = AppInstance(f"{there.app.id}:{there.revision.id}:{random_text(10)}", there.revision.id)
        self._let_live(there, instance, self._turns.bring(there, instance, there.revision))

    def _let_live(self, there: RunningApp, instance: AppInstance, coming: Coroutine[Any, Any, None]) -> None:
        there.instances.append(instance)
        self._owners.add(instance.owner)
        instance.life = self._background.run(self._life(there, instance, coming), f"an instance of {there.app.name}")

    async def _life(self, there: RunningApp, instance: AppInstance, coming: Coroutine[Any, Any, None]) -> None:
        """From its claim to its end: one task, so that leaving while it comes leaves nothing behind.

        When control itself stops, the task is cancelled and the instance goes on.
        """
        try:
            await coming
            await self._tell()
            await there.tell()
            await instance.leaving.wait()
        except Exception as error:
            if not instance.is_leaving:
                log.warning("an instance of app %s did not start: %s", there.app.name, error)
                told = error if isinstance(error, DovecoteError) else Failed(str(error), code="internal")
                there.fail(told, time.monotonic())
            instance.leaving.set()
        await there.tell()
        await self._turns.end(there, instance)
        self._owners.discard(instance.owner)
        await there.tell()

    def died(self, death: Death) -> None:
        """Told by a host. Visitors come back through `route`, or the next tick starts another."""
        for there in self._apps.values():
            for instance in there.instances:
                if instance.instance_id == death.instance_id and not instance.is_leaving:
                    log.warning("an instance of app %s died: %s", there.app.name, death.reason)
                    self._count_death(there, instance, death.reason)
                    instance.is_dead = True
                    instance.leaving.set()
                    return

    def strays(self, observed: Iterable[Observed]) -> Sequence[Observed]:
        """Of what a host has, those that nobody looks after: ending them has failed."""
        return [seen for seen in observed if seen.owner.startswith(OWNER) and seen.owner not in self._owners]

    # -- coming and going of control

    async def adopt(self) -> None:
        """Reads the apps and takes over their instances that run. Called once, before the first request."""
        after = None
        while page := await self._store.everyone().apps.list(after=after, limit=PAGE, removed_at=None):
            for app in page:
                self._apps[app.name] = RunningApp(app, await self._functions.revision(app.tenant_id, app.revision_id))
            after = page[-1].id
            if len(page) < PAGE:
                break
        by_id = {there.app.id: there for there in self._apps.values()}
        for host in self._fleet.hosts().values():
            for seen in await host.observe():
                if not seen.owner.startswith(OWNER):
                    continue
                app_id, revision_id, _ = seen.owner.split(":")
                there = by_id.get(app_id)
                if there is None or there.revision.id != revision_id or there.revision.start is None:
                    continue  # it is a stray, and ended at the next tick
                there.last_request = time.monotonic()  # nobody knows better
                with contextlib.suppress(NotFound):
                    await host.thaw(seen.instance_id)
                address = f"{seen.address}:{there.revision.start.port}"
                instance = AppInstance(seen.owner, revision_id, host, seen.instance_id, address, seen.pid)
                self._let_live(there, instance, self._take_over(instance, there.revision.start))
        await self._tell()

    async def _take_over(self, instance: AppInstance, start: Start) -> None:
        assert instance.host is not None
        guest = instance.host.guest(instance.instance_id)
        await wait_for_port(guest, start.port, server=None, timeout=0)
        instance.is_ready = True

    async def stop(self) -> None:
        """Ends what is being done; instances go on."""
        await self._background.stop()

    async def _tell(self) -> None:
        async with self._telling:
            await self._set_endpoints(
                {name: [i.address for i in there.serving()] for name, there in sorted(self._apps.items())}
            )


def surplus(current: Sequence[AppInstance], wanted: int) -> list[AppInstance]:
    """Who leaves when there are more than wanted: those that still start, then the newest."""
    over = len(current) - wanted
    newest_first = current[::-1]
    return sorted(newest_first, key=lambda i: i.is_ready)[:over] if over > 0 else []
