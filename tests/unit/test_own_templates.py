"""The installation's own templates: built once, when they are first used, whoever waits."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from dovecote.errors import Conflict, DovecoteError, NotFound, StorageFailed
from dovecote.host.storage import own_templates, template_code
from dovecote.host.storage.own_templates import OwnTemplates
from dovecote.host.storage.python_template import packages_command
from dovecote.host.storage.templates import Progress, run_step

pytestmark = pytest.mark.anyio


class Builds:
    """Builds `code` when told to go on."""

    def __init__(self, root: Path) -> None:
        self.count = 0
        self.saved = 0
        self.lost: set[str] = set()
        self.go_on = threading.Event()
        self.failure: DovecoteError | None = None
        self._root = root

    def build(self, cache_dir: Path, progress: Progress) -> Path:
        self.count += 1
        progress("template code: compiling")
        assert self.go_on.wait(10)
        if self.failure is not None:
            raise self.failure
        return self._root / "code-0123/rootfs"

    def save_directory(self, root: Path) -> object:
        self.saved += 1
        return SimpleNamespace(digest=f"digest-{self.saved}")

    def ensure_image(self, digest: str) -> None:
        if digest in self.lost:
            raise StorageFailed("it is gone", code="corrupt")


@pytest.fixture
def builds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Builds:
    made = Builds(tmp_path)
    monkeypatch.setattr(own_templates, "BUILDS", {"code": made.build})
    return made


def own_of(builds: Builds, directory: Path) -> OwnTemplates:
    return OwnTemplates(directory / "cache", directory / "records", cast(Any, builds))


async def test_one_build_for_all_who_ask_and_it_outlives_them(builds: Builds, tmp_path: Path) -> None:
    own = own_of(builds, tmp_path)
    impatient = [asyncio.ensure_future(own.ensure("code", patience=0.05)) for _ in range(3)]
    for each in impatient:
        with pytest.raises(Conflict) as caught:
            await each
        assert caught.value.code == "template_not_ready"
    assert own.step("code") == "template code: compiling"
    leaving = asyncio.ensure_future(own.ensure("code", patience=None))
    await asyncio.sleep(0)
    leaving.cancel()
    await asyncio.gather(leaving, return_exceptions=True)
    builds.go_on.set()
    made = await own.ensure("code", patience=10)
    assert (made.digest, builds.count, builds.saved) == ("digest-1", 1, 1)
    assert own.step("code") == ""
    assert own.made == {"code": made}


async def test_a_later_start_finds_it_and_saves_it_again_only_when_it_is_not_whole(
    builds: Builds, tmp_path: Path
) -> None:
    builds.go_on.set()
    assert (await own_of(builds, tmp_path).ensure("code")).digest == "digest-1"
    assert (await own_of(builds, tmp_path).ensure("code")).digest == "digest-1"
    builds.lost.add("digest-1")
    assert (await own_of(builds, tmp_path).ensure("code")).digest == "digest-2"


async def test_a_build_that_failed_is_tried_again(builds: Builds, tmp_path: Path) -> None:
    builds.go_on.set()
    builds.failure = StorageFailed("no packages", code="template_failed")
    own = own_of(builds, tmp_path)
    with pytest.raises(StorageFailed):
        await own.ensure("code")
    builds.failure = None
    assert (await own.ensure("code")).digest == "digest-1"


async def test_a_server_that_stops_waits_for_no_build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ended = threading.Event()
    pids = tmp_path / "pids"

    def build(cache_dir: Path, progress: Progress) -> Path:
        progress("begun")
        try:
            run_step(["sh", "-c", f"echo $$ > {pids}; sleep 600"], tmp_path / "log")
        finally:
            ended.set()
        return tmp_path

    monkeypatch.setattr(own_templates, "BUILDS", {"code": build})
    own = OwnTemplates(tmp_path, tmp_path, cast(Any, None))
    waiting = asyncio.ensure_future(own.ensure("code", patience=None))
    async with asyncio.timeout(10):
        while not (pids.exists() and pids.read_text()):  # noqa: ASYNC110 - a file tells nobody
            await asyncio.sleep(0.01)
        await own.stop()
        await asyncio.to_thread(ended.wait)
    assert not Path(f"/proc/{pids.read_text().strip()}").exists()
    await asyncio.gather(waiting, return_exceptions=True)


async def test_there_are_no_others(builds: Builds, tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        await own_of(builds, tmp_path).ensure("of-nobody")


def test_packages_are_wheels_for_the_template_s_python_whatever_the_host_s_is() -> None:
    for pip in (["/usr/bin/uv", "pip"], ["python", "-m", "pip"]):
        line = " ".join(packages_command(pip, Path("/target")))
        assert "--only-binary :all: --target /target --python-version 3.11" in line
        assert "manylinux_2_36" in line
        assert "manylinux_2_37" not in line


def test_the_docs_name_every_package() -> None:
    text = (Path(__file__).parents[2] / "docs/reference/code-template.md").read_text()
    for package in template_code.PACKAGES:
        assert f"`{package.partition('>')[0]}`" in text, package
