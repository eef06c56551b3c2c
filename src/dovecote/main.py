"""Builds the parts of Dovecote and joins them; the only place that knows them all."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import signal
import sys
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import httpx
import uvicorn
import uvloop

from dovecote import __version__
from dovecote.api import errors as api_errors
from dovecote.api.app import build as build_api
from dovecote.api.rooms import Rooms
from dovecote.collecting import LOOK_EVERY, pin_and_collect
from dovecote.config import Settings
from dovecote.control.apps import Apps
from dovecote.control.chats import Chats
from dovecote.control.deployments import DeployedFiles, Deployments
from dovecote.control.fleet import Death, Fleet
from dovecote.control.functions import Functions
from dovecote.control.invocations import FORGET_EVERY
from dovecote.control.metering import SAMPLE_EVERY, Metering
from dovecote.control.sandboxes import Sandboxes
from dovecote.control.sessions import Keeping, Routing, Sessions
from dovecote.control.snapshots import RETAIN_EVERY, Snapshots
from dovecote.control.templates import Templates
from dovecote.control.tenancy import Tenancy
from dovecote.control.volumes import SETTLE_EVERY, Contents, PathLimits, Volumes
from dovecote.credentials import write_credentials
from dovecote.errors import DovecoteError, Unsupported
from dovecote.gateway import Answer, Ask, Gateway
from dovecote.gateway.certificates import LOOK_EVERY as LOOK_AT_CERTIFICATE_EVERY
from dovecote.gateway.certificates import Authority, Files
from dovecote.gateway.directory import Directory
from dovecote.host.assembly import LocalHost, assemble
from dovecote.host.doctor import examine
from dovecote.host.storage import cache_limit
from dovecote.installation import database_url, only_server
from dovecote.invoking import Invoking
from dovecote.invoking import join as join_invoking
from dovecote.mcp.http import Endpoint
from dovecote.model.addresses import Addresses
from dovecote.model.ids import random_text
from dovecote.model.networks import parse_networks
from dovecote.store import Store, open_store

log = logging.getLogger("dovecote")

HOST_ID = "local"
TOOL_CONNECTIONS = 600  # a call of a tool has one or two
HOLD_LONGER = 10.0  # seconds: whoever waits for a start answers before the gateway gives up
LONGEST_MESSAGE = 1 << 20  # bytes of one WebSocket message
# Between two looks for cycles. A tree of 26,000 files makes hundreds of thousands of objects in a second, and with the
# usual 700 half of that second went to looking.
YOUNG_OBJECTS = 20_000
BLOCKING_CALLS = 64  # at once, in threads: some that wait for a slow store must not hold up all others


def serve(settings: Settings) -> int:
    """Runs until SIGTERM or SIGINT; instances and the gateway's process go on without us. Answers an exit code."""
    logging.basicConfig(
        level=settings.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr
    )
    for chatty in ("alembic", "httpx", "mcp", "uvicorn"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    try:
        gc.set_threshold(YOUNG_OBJECTS)
        with only_server(settings):
            uvloop.run(_serve(settings))
    except DovecoteError as error:
        log.error("%s [%s]", error, error.code)
        return 1
    return 0


@dataclass
class Server:
    settings: Settings
    host: LocalHost
    sessions: Sessions
    keeping: Keeping
    apps: Apps
    templates: Templates
    files: DeployedFiles
    gateway: Gateway
    api: uvicorn.Server
    snapshots: Snapshots
    tools: Endpoint
    metering: Metering
    invoking: Invoking
    collect: Callable[[], Awaitable[None]]
    path_limits: PathLimits
    is_open: bool = False


class _ApiServer(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield  # signals are the whole process's, see _run


async def _serve(settings: Settings) -> None:
    missing = [finding for finding in examine(settings) if finding.is_required and not finding.ok]
    if missing:
        first = missing[0]
        raise Unsupported(
            f"{first.name}: {first.detail}", code="host_unfit", hint=f"{first.hint}; `dovecote doctor` lists all"
        )
    threads = ThreadPoolExecutor(BLOCKING_CALLS, thread_name_prefix="blocking")
    asyncio.get_running_loop().set_default_executor(threads)
    store = open_store(database_url(settings))
    await store.open()
    try:
        await store.migrate()
        tenancy = Tenancy(store)
        key = await tenancy.first_run()
        if key is not None:
            write_credentials(settings, key.secret)
        await _run(await _build(settings, store, tenancy))
    finally:
        await store.close()


async def _build(settings: Settings, store: Store, tenancy: Tenancy) -> Server:
    early: list[Death] = []
    rooms: list[Sessions | Apps] = []

    def died(death: Death) -> None:
        if not rooms:
            early.append(death)
        for room in rooms:
            room.died(death)

    async def resolve(ask: Ask) -> Answer:
        return await directory.resolve(ask)

    async def touch(session_id: str) -> None:
        await routing.touch(session_id)

    async def end(session_id: str, reason: str) -> None:
        await routing.end(session_id, reason)

    gateway = Gateway(
        run_dir=settings.run_dir,
        bind=settings.bind,
        port=settings.port,
        domain=settings.domain,
        route_ttl=settings.route_ttl,
        start_timeout=settings.start_timeout + HOLD_LONGER,
        resolve=resolve,
        render=api_errors.render,
        touch=touch,
        end=end,
        certificates=_certificates(settings),
        trusted=parse_networks([each.strip() for each in settings.trusted_proxies.split(",") if each.strip()]),
        tls_port=settings.tls_port,
    )
    host = await assemble(settings, on_death=died)
    fleet = Fleet({HOST_ID: host.instances})
    own = host.templates
    functions = Functions(store, templates=own.made, level=settings.level, levels=host.levels, own=own)
    sessions = Sessions(
        store,
        fleet,
        functions,
        tenancy,
        start_timeout=settings.start_timeout,
        reinstall_timeout=settings.reinstall_timeout,
        quiet_after=settings.quiet_after,
        overcommit=settings.memory_overcommit,
    )
    snapshots = Snapshots(store, sessions, functions)
    apps = Apps(
        store,
        fleet,
        functions,
        sessions,
        start_timeout=settings.start_timeout,
        set_endpoints=gateway.set_apps,
        loads=gateway.loads,
        published=snapshots.at_publish,
    )
    routing = Routing(store, sessions, functions, tenancy)
    directory = Directory(tenancy, routing, functions, apps)
    keeping = Keeping(
        store,
        fleet,
        functions,
        sessions,
        quiet_after=settings.quiet_after,
        route_ttl=settings.route_ttl,
        strays=[apps.strays],
    )
    builds = settings.cache_dir / "builds" / settings.installation
    metering = Metering(sessions)
    volumes = Volumes(store, fleet, tenancy, sessions)
    templates = Templates(store, fleet, functions, level=settings.level, work_dir=builds)
    addresses = Addresses(settings.domain, settings.port, settings.tls_port)
    invoking = join_invoking(store, functions, routing, addresses, settings)
    files = DeployedFiles(fleet, functions, level=settings.level, work_dir=builds)
    tools = Endpoint(domain=settings.domain, transport=lambda: _own_api(settings), new_id=random_text)
    rooms_of_api = Rooms(
        tenancy=tenancy,
        sessions=sessions,
        sandboxes=Sandboxes(sessions),
        apps=apps,
        functions=functions,
        chats=Chats(store, sessions, tenancy, snapshots),
        snapshots=snapshots,
        volumes=volumes,
        templates=templates,
        metering=metering,
        contents=Contents(store, sessions, volumes),
        deployments=Deployments(store, fleet, functions, sessions, files),
        addresses=addresses,
        invocations=invoking.invocations,
        webhook_secrets=invoking.secrets,
    )
    app = build_api(rooms_of_api, tools=tools, is_ready=lambda: server.is_open, version=__version__)
    api = _ApiServer(
        uvicorn.Config(
            app,
            uds=str(_api_socket(settings)),
            log_config=None,
            lifespan="off",
            access_log=False,
            ws="websockets-sansio",
            ws_max_size=LONGEST_MESSAGE,
            ws_per_message_deflate=False,
        )
    )

    async def collect() -> None:
        await pin_and_collect(store, host, settings)

    server = Server(
        settings=settings,
        host=host,
        sessions=sessions,
        keeping=keeping,
        apps=apps,
        templates=templates,
        files=files,
        gateway=gateway,
        api=api,
        snapshots=snapshots,
        tools=tools,
        metering=metering,
        invoking=invoking,
        collect=collect,
        path_limits=volumes.limits,
    )
    rooms += [sessions, apps]
    for death in early:
        died(death)
    return server


def _api_socket(settings: Settings) -> Path:
    return settings.run_dir / "api.sock"


def _own_api(settings: Settings) -> httpx.AsyncBaseTransport:
    """How tools reach our own API. A connection is let go of before the server closes it."""
    limits = httpx.Limits(max_connections=TOOL_CONNECTIONS, max_keepalive_connections=16, keepalive_expiry=2.0)
    return httpx.AsyncHTTPTransport(uds=str(_api_socket(settings)), limits=limits)


def _certificates(settings: Settings) -> Authority | Files | None:
    if not settings.tls_port:
        return None
    if settings.tls_certificate:
        return Files(Path(settings.tls_certificate), Path(settings.tls_key))
    return Authority(settings.data_dir, settings.domain.lower())


async def _run(server: Server) -> None:
    """Whatever fails, on the way up or down, what was begun before it is brought to its end, the last first."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for signum in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signum, stop.set)
    async with contextlib.AsyncExitStack() as ends:
        ends.push_async_callback(server.host.close)
        ends.push_async_callback(server.host.instances.stop_host)
        await server.keeping.adopt()
        await server.apps.adopt()
        await server.templates.adopt()
        serving = asyncio.ensure_future(server.api.serve())
        ends.push_async_callback(server.gateway.stop, keep_envoy=True)
        ends.push_async_callback(_end_api, server.api, serving)
        for room in (server.tools, server.files, server.templates, server.apps, server.sessions.placing):
            ends.push_async_callback(room.stop)
        ends.push_async_callback(server.keeping.stop)
        ends.push_async_callback(server.invoking.stop)
        await server.gateway.start()
        ends.push_async_callback(_cancel, _ticking(server))
        _settle_memory()
        server.is_open = True
        ends.callback(_close, server)
        log.info("ready on %s", Addresses(server.settings.domain, server.settings.port).console())
        stopping = asyncio.ensure_future(stop.wait())
        ends.callback(stopping.cancel)
        await asyncio.wait({stopping, serving}, return_when=asyncio.FIRST_COMPLETED)


def _close(server: Server) -> None:
    log.info("stopping; instances go on")
    server.is_open = False


async def _end_api(api: uvicorn.Server, serving: asyncio.Future[None]) -> None:
    api.should_exit = True
    api.force_exit = True
    await asyncio.gather(serving, return_exceptions=True)


async def _cancel(tasks: list[asyncio.Future[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def _ticking(server: Server) -> list[asyncio.Future[None]]:
    return [
        asyncio.ensure_future(_every(SETTLE_EVERY, server.path_limits.tick)),
        asyncio.ensure_future(_every(server.settings.tick, server.keeping.tick)),
        asyncio.ensure_future(_every(server.settings.tick, server.apps.tick)),
        asyncio.ensure_future(_every(RETAIN_EVERY, server.snapshots.retain)),
        asyncio.ensure_future(_every(LOOK_EVERY, server.collect)),
        asyncio.ensure_future(_every(LOOK_AT_CERTIFICATE_EVERY, server.gateway.renew)),
        asyncio.ensure_future(_every(SAMPLE_EVERY, server.metering.tick)),
        asyncio.ensure_future(_every(server.settings.tick, server.invoking.dispatching.tick)),
        asyncio.ensure_future(_every(FORGET_EVERY, server.invoking.dispatching.forget)),
        asyncio.ensure_future(_every(cache_limit.LOOK_EVERY, server.host.limit.tick)),
    ]


def _settle_memory() -> None:
    """What a started server holds stays: a collection that walked through all of it would hold everybody up."""
    gc.collect()
    gc.freeze()


async def _every(seconds: float, act: Callable[[], Awaitable[None]]) -> None:
    while True:
        try:
            await act()
        except DovecoteError as error:
            log.warning("%s, next try in %s s", error, seconds)
        except Exception:
            log.exception("a look at sessions and apps failed, next try in %s s", seconds)
        await asyncio.sleep(seconds)
