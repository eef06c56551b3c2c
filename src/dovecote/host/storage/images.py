"""Images for templates: a registry's or an archive's, as trees that sandboxes start from."""

from __future__ import annotations

import asyncio
import io
import os
import re
import tarfile
import tempfile
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, suppress
from dataclasses import dataclass
from pathlib import Path

from dovecote.errors import DovecoteError, Invalid, StorageFailed
from dovecote.host.storage.disk import disk_errors
from dovecote.host.storage.furnish import furnished, ids_of, inside_of, with_directory
from dovecote.host.storage.layers import LayerBounds, LayeredTree
from dovecote.host.storage.manifest import DIRS
from dovecote.host.storage.oci import Chains, Imported, Progress, Reference, import_image, parse_reference
from dovecote.host.storage.registries import Registries
from dovecote.host.storage.roots import Roots
from dovecote.host.storage.trees import Trees
from dovecote.model.trees import Inside, Workspace

MAX_MEMBERS = 20_000  # of an archive
_DOCKER, _OCI = "manifest.json", "oci-layout"
_SAFE = re.compile(r"(?:\./)?[A-Za-z0-9][A-Za-z0-9._+-]*(?:/[A-Za-z0-9][A-Za-z0-9._+-]*)*/?|\./?")
Fence = Callable[[], AbstractAsyncContextManager[list[str]]]


@dataclass(frozen=True)
class Made:
    """A tree to start from, and what its image says of it. `source` is the sha256 of the image's manifest."""

    digest: str
    inside: Inside
    command: tuple[str, ...]
    port: int | None
    source: str
    files: int
    total_bytes: int
    layers: int
    cached_layers: int
    notes: tuple[str, ...]


class Images:
    """`work_dir` is private and may be deleted while nothing runs. `fence` gives the beginning of a command line that
    runs the rest of it where no private address can be reached; registries that the operator lists are spoken to
    without it. `scope` in a call separates what is remembered of layers: nobody learns what another one imported.
    """

    def __init__(
        self,
        trees: Trees,
        roots: Roots,
        work_dir: Path,
        *,
        most_bytes: int,
        registries: Registries,
        auth_file: Path | None,
        fence: Fence,
    ) -> None:
        self._trees = trees
        self._roots = roots
        self._work_dir = work_dir
        self._most_bytes = most_bytes
        self._registries = registries
        self._auth_file = auth_file
        self._fence = fence
        self._one_at_a_time = asyncio.Semaphore(2)  # images that are taken apart at once

    async def pull(self, text: str, *, scope: str, progress: Progress) -> Made:
        """Of a registry. Raises Invalid, Forbidden (registry_refused), Failed (image_unreachable), StorageFailed."""
        reference = parse_reference(text)
        if reference.transport != "docker":
            raise Invalid(
                f"images come from registries here, not from {reference.transport}:",
                code="malformed_reference",
                hint="upload an archive instead",
            )
        is_listed = await self._registries.check(reference.registry)
        async with self._one_at_a_time:
            if is_listed:
                return await self._import(reference, scope, progress, [], self._auth_file)
            async with self._fence() as prefix:
                return await self._import(reference, scope, progress, prefix, None)

    async def unpack(self, archive: AsyncIterator[bytes], *, scope: str, progress: Progress) -> Made:
        """Of an archive, `docker save` or OCI layout, as a plain tar. Raises Invalid (bad_archive, too_large)."""
        self._work_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(prefix="image-", suffix=".tar", dir=self._work_dir)
        path = Path(name)
        try:
            with open(descriptor, "wb") as file:
                await self._spool(archive, file)
            transport = await asyncio.to_thread(archive_transport, path)
            async with self._one_at_a_time:
                return await self._import(Reference(transport, str(path)), scope, progress, [], None)
        finally:
            path.unlink(missing_ok=True)

    async def _spool(self, archive: AsyncIterator[bytes], file: io.BufferedWriter) -> None:
        # Nothing is told meanwhile: an answer that has begun would take part of the body from us.
        received = 0
        async for chunk in archive:
            received += len(chunk)
            if received > self._most_bytes:
                raise Invalid(f"the archive is over {self._most_bytes} bytes", code="too_large")
            with disk_errors("the archive cannot be kept"):
                await asyncio.to_thread(file.write, chunk)

    async def _import(
        self, reference: Reference, scope: str, progress: Progress, prefix: list[str], auth_file: Path | None
    ) -> Made:
        image = await import_image(
            reference,
            self._trees,
            self._work_dir,
            progress=progress,
            auth_file=auth_file,
            bounds=LayerBounds(total_bytes=self._most_bytes),
            scope=scope,
            prefix=prefix,
        )
        made = await asyncio.to_thread(self._furnish, image)
        progress("making it ready", 0, 0)
        await self.ready(made.digest)
        return made

    def _furnish(self, image: Imported) -> Made:
        config = image.config
        with self._trees.sink() as sink, self._trees.contents(image.tree.digest) as entries:
            inside = inside_of(entries, self._read, user=config.user, directory=config.directory, env=config.env)
            made = furnished(
                entries, lambda content: sink.keep(io.BytesIO(content), len(content)), directory=config.directory
            )
            saved = self._trees.save_entries(made, like=(image.tree.digest,))
        return Made(
            saved.digest,
            inside,
            config.command,
            config.port,
            image.digest,
            saved.files,
            saved.total_bytes,
            image.layers,
            image.cached_layers,
            image.notes,
        )

    def _read(self, digest: bytes) -> bytes:
        try:
            return self._trees.object_file(digest).read_bytes()
        except OSError as error:
            raise StorageFailed(f"the host's cache has lost a file: {error}", code="read_failed") from error

    async def flatten(self, delta: str) -> str:
        """A delta and its template as one tree."""
        return (await asyncio.to_thread(self._trees.flatten, delta)).digest

    async def usage(self, digest: str) -> tuple[int, int]:
        """Files of a tree, and their bytes."""
        found = await asyncio.to_thread(self._trees.usage, digest)
        return found.files, found.total_bytes

    # -- steps of builds

    async def inside(self, digest: str, *, user: str, directory: str, env: Mapping[str, str]) -> Inside:
        """What a tree is like for that user. Raises Invalid (bad_image)."""

        def look() -> Inside:
            with self._trees.contents(digest) as entries:
                return inside_of(entries, self._read, user=user, directory=directory, env=env)

        return await asyncio.to_thread(look)

    async def ids(self, digest: str, user: str) -> tuple[int, int]:
        """Numbers of a user and its group."""

        def look() -> tuple[int, int]:
            with self._trees.contents(digest) as entries:
                return ids_of(entries, self._read, user)

        return await asyncio.to_thread(look)

    async def with_directory(self, digest: str, path: str, *, user: str) -> str:
        """The tree with a directory of that user's, unless something is there. Raises Invalid (bad_image)."""

        def make() -> str:
            with self._trees.contents(digest) as entries:
                made = with_directory(entries, path, owner=ids_of(entries, self._read, user))
                return self._trees.save_entries(made, like=(digest,)).digest

        return await asyncio.to_thread(make)

    async def add(self, digest: str, layer: Path, *, diff_id: str, names: Sequence[str]) -> str:
        """The tree with a layer on top, whose files have these names. Raises Invalid (is_directory, bad_layer)."""

        def apply() -> str:
            entries = self._trees.entries(digest)
            directories = {entry.path for entry in entries if entry.kind in DIRS}
            for name in names:
                if name.lstrip("/").encode("utf-8", "surrogateescape") in directories:
                    raise Invalid(f"{name} is a directory", code="is_directory", hint=f"write {name}/")
            with self._trees.sink() as sink:
                tree = LayeredTree(sink, LayerBounds(total_bytes=self._most_bytes), entries)
                with layer.open("rb") as file:
                    tree.apply(file, diff_id=diff_id)
                return self._trees.save_entries(tree.entries(), like=(digest,)).digest

        return await asyncio.to_thread(apply)

    async def recall(self, scope: str, key: str) -> str | None:
        """The tree that a step made, if it is there still."""

        def find() -> str | None:
            tree = Chains(self._work_dir / "steps" / scope).find(key)
            if tree is None or not self._trees.may_be_named(tree):
                return None
            with suppress(DovecoteError):
                self._trees.verify_stored(tree)
                return tree
            return None

        return await asyncio.to_thread(find)

    async def remember(self, scope: str, key: str, tree: str) -> None:
        await asyncio.to_thread(Chains(self._work_dir / "steps" / scope).keep, key, tree)

    async def ready(self, digest: str) -> None:
        """Fetches, verifies, builds and mounts what a claim needs, so that the first one need not wait for it."""
        workspace = Workspace(digest)
        await self._roots.hold(workspace)
        await self._roots.release(workspace)


def archive_transport(path: Path) -> str:
    """How skopeo is to read an archive. An OCI one is unpacked by it, hence may hold nothing but files by plain names.

    Raises Invalid (bad_archive).
    """
    names: set[str] = set()
    is_plain = True
    try:
        # Not compressed: a few kB could keep us reading for hours.
        with tarfile.open(path, "r:") as archive:
            while (member := archive.next()) is not None:
                if len(archive.members) > MAX_MEMBERS:  # type: ignore[attr-defined]
                    raise _bad_archive("it has too many files")
                names.add(member.name.removeprefix("./"))
                is_plain &= (member.isreg() or member.isdir()) and bool(_SAFE.fullmatch(member.name))
    except (tarfile.TarError, ValueError, EOFError, OSError) as error:
        raise _bad_archive(str(error)) from error
    if _DOCKER in names:
        return "docker-archive"
    if _OCI not in names:
        raise _bad_archive(f"it has neither {_DOCKER} nor {_OCI}")
    if not is_plain:
        raise _bad_archive("it holds links, devices or strange names")
    return "oci-archive"


def _bad_archive(why: str) -> Invalid:
    return Invalid(
        f"not an archive of an image: {why[:300]}",
        code="bad_archive",
        hint="make it with `docker save`, or `skopeo copy ... oci-archive:FILE`; not compressed",
    )


def fence_command(namespace: Path, resolver: Path) -> list[str]:
    """The beginning of a command line: what follows runs in another network, asking another resolver."""
    script = 'mount --bind "$1" /etc/resolv.conf && shift && exec "$@"'
    return ["nsenter", f"--net={namespace}", "--", "unshare", "--mount", "sh", "-c", script, "sh", os.fspath(resolver)]
