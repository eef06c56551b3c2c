"""Directories as they are sent to functions: zips as hostile as they come, and functions that go meanwhile."""

from __future__ import annotations

import io
import tarfile
import zipfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from dovecote.control.deployments import archives
from dovecote.control.deployments.archives import as_tar
from dovecote.control.templates import Building, Ground, Recipe
from dovecote.errors import Invalid, NotFound, StorageFailed
from tests.unit.control_world import START, world_on
from tests.unit.memory_host import Clock, MemoryHost

METHODS = [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA]
TEXT = bytes(range(256)) * 400


def zipped(method: int = zipfile.ZIP_DEFLATED, **files: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return file.getvalue()


def tar_of(tmp_path: Path, sent: bytes) -> Path:
    (tmp_path / "sent").write_bytes(sent)
    return as_tar(tmp_path / "sent", tmp_path / "made")


@pytest.mark.parametrize("method", METHODS)
def test_a_zip_becomes_a_tar_that_holds_the_same(tmp_path: Path, method: int) -> None:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        program, link = zipfile.ZipInfo("bin/run"), zipfile.ZipInfo("now")
        program.external_attr, link.external_attr = 0o100755 << 16, 0o120777 << 16
        archive.mkdir("bin")
        archive.writestr(program, TEXT)
        archive.writestr(link, "bin/run")
        archive.writestr("plain", b"")
    with tarfile.open(tar_of(tmp_path, file.getvalue())) as made:
        held = {each.name: each for each in made}
        assert (held["bin"].isdir(), held["bin/run"].mode, held["plain"].mode) == (True, 0o755, 0o600)
        assert (held["now"].issym(), held["now"].linkname) == (True, "bin/run")
        content = made.extractfile("bin/run")
        assert content is not None
        assert content.read() == TEXT


def test_what_is_no_zip_is_left_as_it_is(tmp_path: Path) -> None:
    assert tar_of(tmp_path, b"anything") == tmp_path / "sent"


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("at", [40, 60, 90, 200])
def test_a_zip_that_is_broken_is_refused(tmp_path: Path, method: int, at: int) -> None:
    broken = bytearray(zipped(method, a=TEXT))
    broken[at : at + 30] = bytes(each ^ 0xFF for each in broken[at : at + 30])
    with pytest.raises(Invalid) as caught:
        tar_of(tmp_path, bytes(broken))
    assert caught.value.code == "bad_context"


@pytest.mark.parametrize(("name", "most", "code"), [("MAX_BYTES", 1000, "too_large"), ("MAX_FILES", 1, "bad_context")])
def test_a_zip_that_holds_too_much_is_refused_before_it_is_unpacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, most: int, code: str
) -> None:
    monkeypatch.setattr(archives, name, most)
    with pytest.raises(Invalid) as caught:
        tar_of(tmp_path, zipped(a=bytes(600), b=bytes(600)))
    assert caught.value.code == code


def test_a_full_disk_is_not_the_senders_fault(tmp_path: Path) -> None:
    (tmp_path / "sent").write_bytes(zipped(a=TEXT))
    with pytest.raises(StorageFailed) as caught:
        as_tar(tmp_path / "sent", Path("/dev/full"))
    assert caught.value.code == "disk_full"


@pytest.mark.anyio
async def test_files_go_to_no_other_function_of_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was removed and made again while they came: whoever made the new one sent other files, or none."""

    async def built(building: Building, recipe: Recipe, ground: Ground) -> Ground:
        return ground  # trees in memory hold no directories

    monkeypatch.setattr(Building, "run", built)
    async with world_on(MemoryHost(Clock()), tmp_path, monkeypatch) as world:
        function = await world.functions.create(world.tenant, "work", start=START)

        async def sent() -> AsyncIterator[bytes]:
            yield zipped(a=TEXT)
            await world.deployments.remove(world.tenant, "work")
            await world.functions.create(world.tenant, "work", start=START)

        with pytest.raises(NotFound):
            async for _ in await world.deployments.files.put(function, sent()):
                pass
        _, revisions = await world.functions.revisions(world.tenant, "work")
        assert len(revisions) == 1
