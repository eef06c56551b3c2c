"""What is stored of projects that are alike, as a fraction of what the first one takes."""

from __future__ import annotations

import asyncio
import secrets
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from bench.figures import Row, row
from bench.project import AT, FIRST, INSTALL, SECONDS, SIMILAR, Project, installed
from dovecote.host.storage.bucket import local_bucket
from dovecote.host.storage.roots import Roots
from dovecote.host.storage.trees import Trees
from dovecote.model.trees import Workspace
from dovecote.sdk import Dovecote, Session

if TYPE_CHECKING:
    from bench.measures import Bench

SESSIONS = 1000
OWN_FILES = 5  # sources that each session has changed


def stored(bench: Bench) -> list[Row]:
    """Three sessions parked by a real server: one, the same packages installed again, and a similar project."""
    installation = bench.installation("stored")
    cache = installation.settings.cache_dir
    objects = installation.settings.data_dir / "objects"
    with bench.client("stored") as client:
        first = _growth(client, objects, lambda session: installed(session, cache, "first", FIRST))

        same = _growth(client, objects, _install_again)
        similar = _growth(client, objects, lambda session: installed(session, cache, "similar", SIMILAR))
    return [
        row("stored_identical", "share", [same / first], "the first one", [1.0]),
        row("stored_second_similar", "share", [similar / first], "the first one", [1.0]),
    ]


def _install_again(session: Session) -> None:
    Project("first", FIRST, Path()).write_sources(session)
    session.run(f"cd {AT} && {INSTALL}", timeout=SECONDS, check=True)


def _growth(client: Dovecote, objects: Path, fill: Callable[[Session], object]) -> int:
    """Bytes that the store has more when a session has been filled, parked and checked."""
    session = client.sessions.create()
    session.park()
    before = _bytes(objects)
    fill(session)
    session.park()
    return _bytes(objects) - before


def _bytes(directory: Path) -> int:
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())


def sessions_1000(bench: Bench) -> list[Row]:
    """A thousand sessions forked from one project, each with sources of its own, saved by what parking runs."""
    with bench.client("stored") as client, client.sessions.create() as session:
        project = installed(session, bench.installation("stored").settings.cache_dir, "first", FIRST)
    directory = bench.directory / "thousand"
    count = bench.times(SESSIONS)
    one, all_, sources = asyncio.run(_save_forks(project, directory, count))
    shutil.rmtree(directory)
    return [
        row(f"stored_{count}_sessions", "share", [(all_ - sources) / one], "one session, without its sources", [1.0])
    ]


async def _save_forks(project: Project, directory: Path, count: int) -> tuple[int, int, int]:
    """Bytes in the store of one session and of all of them, and of the sources that the others have."""
    (directory / "root/home/user").mkdir(parents=True)
    store = directory / "store"
    trees = Trees(local_bucket(store), directory / "cache")

    async def image(digest: str) -> Path:
        return await asyncio.to_thread(trees.ensure_image, digest)

    roots = Roots(image, trees.objects_dir, directory / "run")
    try:
        template = trees.save_directory(directory / "root").digest
        project.unpack(directory / "upper/home/user")
        before = _bytes(store)
        first = await _save(trees, roots, template, None, directory / "upper")
        one = _bytes(store) - before
        sources = 0
        for number in range(count - 1):
            upper = directory / f"upper{number}"
            sources += _write_own(upper, number)
            await _save(trees, roots, template, first, upper)
            shutil.rmtree(upper)
        return one, _bytes(store) - before, sources
    finally:
        await roots.remove()
        trees.close()


async def _save(trees: Trees, roots: Roots, template: str, previous: str | None, upper: Path) -> str:
    async with roots.merged(Workspace(template, previous), upper, id_base=0) as merged:
        saved = await asyncio.to_thread(
            trees.save_delta, upper, merged, id_base=0, template=template, previous=previous
        )
    return saved.digest


def _write_own(upper: Path, number: int) -> int:
    """Bytes of the sources that a session has changed."""
    sources = upper / "home/user" / AT / "src"
    sources.mkdir(parents=True)
    for each in range(OWN_FILES):
        text = "".join(f"export const value{line} = '{secrets.token_hex(8)}'\n" for line in range(40))
        (sources / f"own{each}.js").write_text(f"// session {number}\n{text}")
    return sum(path.stat().st_size for path in sources.iterdir())
