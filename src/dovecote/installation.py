"""What an operator does to an installation on its own machine: examine, check and collect it, end it."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator

import uvloop

from dovecote.collecting import collect_now
from dovecote.config import Settings
from dovecote.control.references import tree_references
from dovecote.control.tenancy import Tenancy
from dovecote.errors import Conflict, NotFound
from dovecote.gateway import stop_envoy
from dovecote.host.assembly import disassemble, open_objects, recorded_templates, remove_run_dir
from dovecote.host.doctor import Finding, examine
from dovecote.host.doctor_store import examine_cache, examine_store
from dovecote.host.storage.cache_limit import CacheFigures, read_figures
from dovecote.host.storage.check import Checked, Progress, check_store
from dovecote.host.storage.figures import Amount, Figures, cache_amount, store_figures
from dovecote.host.storage.garbage import Collected
from dovecote.store import open_store


def doctor(settings: Settings) -> list[Finding]:
    """What this machine has and lacks, and how to get it."""
    return [*examine(settings), examine_store(settings), examine_cache(settings)]


def create_tenant(settings: Settings, name: str) -> str:
    """A new tenant; answers the secret of its first API key. Raises Conflict (exists)."""
    return uvloop.run(_create_tenant(settings, name))


async def _create_tenant(settings: Settings, name: str) -> str:
    store = open_store(database_url(settings))
    await store.open()
    try:
        await store.migrate()
        return (await Tenancy(store).create_tenant(name)).secret
    finally:
        await store.close()


def check_storage(settings: Settings, *, deep: bool, progress: Progress) -> Checked:
    """Every saved tree that records and logs name. Only reads, so the server may run or not; for its operator."""
    references = _references(settings)
    return check_store(open_objects(settings), references, deep=deep, progress=progress)


def storage_figures(settings: Settings) -> tuple[Figures, Amount, CacheFigures]:
    """What the object store holds and this host's cache takes. All tenants' together: for the operator only."""
    references = _references(settings)
    figures = store_figures(open_objects(settings), references)
    directory = settings.data_dir / "trees"
    return figures, cache_amount(directory), read_figures(directory) or CacheFigures()


def collect_storage(settings: Settings, *, dry_run: bool) -> Collected:
    """Collects garbage of the object store now. The server may run or not; for its operator."""
    _check_records(settings)
    return uvloop.run(_collect(settings, dry_run=dry_run))


async def _collect(settings: Settings, *, dry_run: bool) -> Collected:
    store = open_store(database_url(settings))
    await store.open()
    try:
        return await collect_now(store, settings, dry_run=dry_run)
    finally:
        await store.close()


def _check_records(settings: Settings) -> None:
    if not settings.database_url and not (settings.data_dir / "dovecote.sqlite").exists():
        raise NotFound(
            f"there are no records in {settings.data_dir}",
            code="no_installation",
            hint="run it as the server's user, on its machine, with the same DOVECOTE_* settings",
        )


def _references(settings: Settings) -> dict[str, list[str]]:
    _check_records(settings)
    users = uvloop.run(_read_references(settings))
    for name, digest in recorded_templates(settings).items():
        users.setdefault(digest, []).append(f"template {name}")
    return users


async def _read_references(settings: Settings) -> dict[str, list[str]]:
    store = open_store(database_url(settings))
    await store.open()
    try:
        return await tree_references(store)
    finally:
        await store.close()


def database_url(settings: Settings) -> str:
    return settings.database_url or f"sqlite:///{settings.data_dir}/dovecote.sqlite"


def teardown(settings: Settings) -> list[str]:
    """Ends all that runs and removes mounts, namespaces, loop devices and cgroups. Files stay in the data directory.

    Answers what was removed, a line each. The server must have stopped. May be repeated.
    """
    if not settings.run_dir.exists():
        return []
    with only_server(settings):
        removed = ["the gateway"] if stop_envoy(settings.run_dir) else []
        removed += uvloop.run(disassemble(settings))
    remove_run_dir(settings)
    return removed


@contextlib.contextmanager
def only_server(settings: Settings) -> Iterator[None]:
    """One server for each run directory. Raises Conflict (running)."""
    for directory, mode in ((settings.data_dir, 0o711), (settings.run_dir, 0o711), (settings.cache_dir, 0o755)):
        directory.mkdir(parents=True, exist_ok=True)
        directory.chmod(mode)
    path = settings.run_dir / "serve.lock"
    with path.open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Conflict(
                "Dovecote is running here already", code="running", hint="`dovecote status`, or `dovecote down` first"
            ) from None
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield
