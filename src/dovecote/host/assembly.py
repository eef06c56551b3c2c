"""Builds the host that this process is, and takes one apart."""

from __future__ import annotations

import asyncio
import logging
import shutil
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path

from dovecote.config import Settings
from dovecote.errors import DovecoteError, Unsupported
from dovecote.host.guest import ensure_guest
from dovecote.host.instances import Death, Instances, Parts, Preparing, Saving, WarmPool, mounted_paths
from dovecote.host.network import Network
from dovecote.host.runtime import LEVELS, Pauses, Runtime, find_runtime, probe_cgroups
from dovecote.host.runtime.inotify import ensure_room
from dovecote.host.storage.bucket import Bucket, open_bucket
from dovecote.host.storage.cache_limit import CacheLimit, limit_of
from dovecote.host.storage.entrance import Entrance
from dovecote.host.storage.images import Images, fence_command
from dovecote.host.storage.log import SlotLog
from dovecote.host.storage.lowers import PLAIN, pick
from dovecote.host.storage.memories import Memories
from dovecote.host.storage.own_templates import OwnTemplates, read_record
from dovecote.host.storage.pins import host_name, write_pins
from dovecote.host.storage.plain import PlainTrees
from dovecote.host.storage.pool import BtrfsDisks
from dovecote.host.storage.registries import Registries, parse_registries
from dovecote.host.storage.roots import Roots
from dovecote.host.storage.template_base import FILES
from dovecote.host.storage.templates import BASE
from dovecote.host.storage.trees import Trees
from dovecote.host.storage.volumes import Buckets, JuiceFSVolumes, LoopVolumes, PoolVolumes, Volumes, parse_prefixes
from dovecote.host.storage.volumes.juicefs_commands import find_place
from dovecote.host.storage.volumes.picking import BTRFS, IMAGES, JUICEFS, LOOP, POOL, driver_there, pick_driver
from dovecote.model.sizes import NetworkPolicy
from dovecote.model.trees import Workspace

log = logging.getLogger(__name__)

FORGETS_EVERY = 86400.0  # seconds
ADDRESS_REST = 3  # times the life of a cached route


@dataclass
class LocalHost:
    instances: Instances
    templates: OwnTemplates
    levels: frozenset[str]
    parts: Parts
    bucket: Bucket
    settings: Settings
    limit: CacheLimit
    _forgets_at: float = 0.0  # `time.monotonic()`

    async def pin(self) -> None:
        """Tells the store which trees this host needs, whatever records say. Called every few minutes."""
        trees = self.parts.roots.in_use() | await self.instances.trees_of_disks()
        trees |= set(recorded_templates(self.settings).values())
        name = host_name(self.settings.data_dir)
        await asyncio.to_thread(write_pins, self.bucket, name, trees)

    async def forget_lost(self) -> None:
        """Once a day, frees what the index of this host knows of what the store has no more. May be called often."""
        if time.monotonic() >= self._forgets_at:
            rows = await asyncio.to_thread(self.parts.trees.forget_lost)
            self._forgets_at = time.monotonic() + FORGETS_EVERY
            log.info("%d rows of the index of objects led nowhere", rows)

    async def close(self) -> None:
        """Lets go; what runs goes on."""
        await self.templates.stop()
        await self.parts.pauses.stop()
        await self.parts.entrance.stop()
        await self.parts.network.close()
        self.parts.trees.close()


async def assemble(settings: Settings, *, on_death: Callable[[Death], None]) -> LocalHost:
    """A host that has adopted what runs and fills its warm pool. Its first start builds the base template."""
    guest = await asyncio.to_thread(ensure_guest, settings.cache_dir)
    ensure_room()
    bucket = open_objects(settings)
    await asyncio.to_thread(bucket.probe)
    trees = Trees(bucket, settings.data_dir / "trees")
    limit = _limit(settings, trees)
    driver = await pick_driver(settings.volumes_driver, settings.data_dir)
    parts = _parts(settings, trees, limit, driver)
    if settings.level not in parts.runtimes:
        raise Unsupported(
            f"isolation level {settings.level} does not work here", code="no_level", hint="`dovecote doctor`"
        )
    own = OwnTemplates(settings.cache_dir, settings.data_dir / "templates", parts.trees)
    template = await own.ensure(BASE.name, patience=None)
    await parts.network.ensure()
    await parts.disks.ensure()
    await parts.volumes.ensure()
    await parts.entrance.start()
    instances = _instances(settings, parts, bucket, guest, on_death=on_death)
    await instances.start()
    limit.begin(parts.roots, partial(_needed, settings, parts, instances))
    # Built, checked and mounted now, so that the first session need not wait for it.
    await parts.roots.hold(Workspace(template.digest))
    await parts.roots.settle()
    return LocalHost(instances, own, frozenset(parts.runtimes), parts, bucket, settings, limit)


async def disassemble(settings: Settings) -> list[str]:
    """Removes everything of this host but its data directory. Answers what was removed, a line each."""
    removed: list[str] = []
    guest = await asyncio.to_thread(ensure_guest, settings.cache_dir)
    bucket = open_objects(settings)
    # Nothing is tried: a full disk must not keep a host from being taken down.
    trees = Trees(bucket, settings.data_dir / "trees")
    driver = driver_there(settings.volumes_driver, settings.data_dir) or BTRFS
    parts = _parts(settings, trees, _limit(settings, trees), driver)
    await parts.disks.ensure()
    await parts.entrance.start()
    try:
        await parts.network.ensure()
    except DovecoteError as error:
        log.info("no instance can have run here: %s", error)
    else:
        instances = _instances(settings, parts, bucket, guest, on_death=lambda _: None)
        await instances.start(warm=False)
        removed.append(f"{await instances.clear()} instances")
    await parts.roots.remove()
    await parts.entrance.stop()
    await parts.disks.remove()
    await parts.volumes.remove()
    await parts.buckets.remove()
    removed.append("the pools of disks and volumes (their files stay)")
    await parts.network.remove()
    await parts.network.close()
    removed.append("the network")
    await parts.cgroups.clear()
    removed.append("cgroups")
    parts.trees.close()
    return removed


def open_objects(settings: Settings) -> Bucket:
    """The store of saved files that the settings name."""
    return open_bucket(store_url(settings))


def store_url(settings: Settings) -> str:
    return settings.objects_url or f"file://{settings.data_dir}/objects"


def _parts(settings: Settings, trees: Trees, limit: CacheLimit, driver: str) -> Parts:
    cgroups = probe_cgroups(f"dovecote-{settings.installation}")
    runtimes: dict[str, Runtime] = {}
    for level in LEVELS:
        try:
            runtimes[level] = find_runtime(level, settings.run_dir / "runtimes", cgroups)
        except Unsupported as error:
            log.info("no isolation level %s: %s", level, error)
    disks = BtrfsDisks(settings.data_dir / "pool.btrfs", settings.run_dir / "pool", max_bytes=settings.pool_bytes)
    network = Network(
        installation=settings.installation,
        network=settings.network,
        run_dir=settings.run_dir / "network",
        dns=settings.dns,
        address_rest=timedelta(seconds=ADDRESS_REST * settings.route_ttl),
    )
    roots = Roots(
        limit.image,
        trees.objects_dir,
        settings.run_dir,
        plain=_plain(settings, trees),
        used=trees.image_files.used,
    )
    return Parts(
        runtimes=runtimes,
        cgroups=cgroups,
        pauses=Pauses(cgroups),
        network=network,
        disks=disks,
        roots=roots,
        entrance=Entrance(),
        trees=trees,
        volumes=_volumes(settings, driver),
        buckets=Buckets(parse_prefixes(settings.mount_buckets), settings.run_dir / "buckets"),
        images=_images(settings, trees, roots, network),
        memories=Memories(trees, settings.data_dir / "memory"),
    )


def _limit(settings: Settings, trees: Trees) -> CacheLimit:
    directory = settings.data_dir / "trees"
    return CacheLimit(trees, directory, limit_bytes=limit_of(settings.cache_bytes, directory))


async def _needed(settings: Settings, parts: Parts, instances: Instances) -> frozenset[str]:
    """Trees that must stay in the cache: without them something that runs would lose its files, or could not go on
    while the store is away."""
    wanted = parts.roots.in_use() | await instances.trees_of_disks()
    wanted |= set(recorded_templates(settings).values())
    # What has no record is not in the cache, or is being looked up at this moment and spared for that.
    there = wanted & (await asyncio.to_thread(parts.trees.image_files.recorded)).keys()
    return there | await instances.trees_of_instances()


def _plain(settings: Settings, trees: Trees) -> PlainTrees | None:
    directory = settings.data_dir / "trees"
    if pick(settings.tree_layers, directory) != PLAIN:
        return None
    log.info("trees are laid out as plain directories")
    return PlainTrees(trees.contents, trees.objects_dir, directory / "plain")


def _images(settings: Settings, trees: Trees, roots: Roots, network: Network) -> Images:
    resolver = settings.run_dir / "resolv.conf"

    @asynccontextmanager
    async def fence() -> AsyncIterator[list[str]]:
        # What an instance may reach is all that an image of a stranger's choice may be fetched from.
        attachment = await network.attach()
        try:
            await network.apply(attachment.address, NetworkPolicy(internet=True))
            await asyncio.to_thread(resolver.write_text, FILES["/etc/resolv.conf"][1])
            yield fence_command(attachment.netns, resolver)
        finally:
            await network.detach(attachment.address)

    return Images(
        trees,
        roots,
        settings.cache_dir / "images",
        most_bytes=settings.image_bytes,
        registries=Registries(parse_registries(settings.registries)),
        auth_file=Path(settings.registry_auth) if settings.registry_auth else None,
        fence=fence,
    )


def _volumes(settings: Settings, driver: str) -> Volumes:
    at = settings.run_dir / "volumes"
    if driver == JUICEFS:
        place = find_place(
            settings.installation,
            objects_url=settings.objects_url,
            meta_url=settings.juicefs_url,
            directory=settings.data_dir / "juicefs",
        )
        return JuiceFSVolumes(place, at, run_dir=settings.run_dir / "juicefs", cache_dir=settings.cache_dir / "juicefs")
    if driver == LOOP:
        return LoopVolumes(settings.data_dir / IMAGES, at)
    mounted = partial(mounted_paths, settings.run_dir / "instances")
    return PoolVolumes(settings.data_dir / POOL, at, max_bytes=settings.volumes_bytes, mounted=mounted)


def _instances(
    settings: Settings, parts: Parts, bucket: Bucket, guest: Path, *, on_death: Callable[[Death], None]
) -> Instances:
    preparing = Preparing(parts, run_dir=settings.run_dir, guest_binary=guest)
    return Instances(
        parts,
        preparing=preparing,
        saving=Saving(parts, slots=partial(SlotLog, bucket)),
        warm=WarmPool(preparing, size=settings.pool_size, level=settings.level, allow_setuid=BASE.has_sudo),
        memory_reserve_bytes=settings.memory_reserve_bytes,
        on_death=on_death,
    )


def recorded_templates(settings: Settings) -> dict[str, str]:
    """Name -> digest of its tree, of what this installation has saved."""
    records = {path.stem: read_record(path) for path in (settings.data_dir / "templates").glob("*.json")}
    return {name: record["digest"] for name, record in records.items() if record is not None}


def remove_run_dir(settings: Settings) -> None:
    """The last of what `disassemble` leaves: sockets, logs and records of this boot."""
    shutil.rmtree(settings.run_dir, ignore_errors=True)
