"""Images come from a registry, from archives and from layouts, and become trees."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from dovecote.errors import Failed, Invalid
from dovecote.host.network import Network
from dovecote.host.storage import oci
from dovecote.host.storage.bucket import open_bucket
from dovecote.host.storage.images import archive_transport, fence_command
from dovecote.host.storage.layers import LayerBounds
from dovecote.host.storage.oci import Chains, Imported, import_image, parse_reference, read_layout
from dovecote.host.storage.trees import Trees
from tests import images
from tests.images import skopeo, write_layout
from tests.unit.test_layers import file, tar

pytestmark = [pytest.mark.system, pytest.mark.anyio]

BASE = tar(file("etc/passwd", b"root:x:0:0::/root:/bin/sh\n"), file("old"))
ABOVE = tar(file("app/run", b"#!/bin/sh\n", mode=0o755), file(".wh.old", b""))


def silent(what: str, done: int, total: int) -> None:
    pass


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Host and port of a registry on loopback."""
    with images.registry(tmp_path_factory.mktemp("registry")) as address:
        yield address


@pytest.fixture
def trees(tmp_path: Path) -> Iterator[Trees]:
    made = Trees(open_bucket(f"file://{tmp_path}/objects"), tmp_path / "cache")
    yield made
    made.close()


@pytest.fixture
def layout(tmp_path: Path) -> Path:
    return write_layout(
        tmp_path / "layout",
        BASE,
        ABOVE,
        Env=["A=1", "B=x=y"],
        Entrypoint=["/app/run"],
        Cmd=["now"],
        ExposedPorts={"9000/tcp": {}, "53/udp": {}},
        User="1000",
        WorkingDir="/app",
    )


def bring(text: str, trees: Trees, work: Path, *, bounds: LayerBounds | None = None) -> Imported:
    return asyncio.run(import_image(parse_reference(text), trees, work, progress=silent, bounds=bounds))


def paths(trees: Trees, image: Imported) -> list[bytes]:
    return [entry.path for entry in trees.entries(image.tree.digest)]


@pytest.mark.parametrize("transport", ["docker", "docker-archive", "oci-archive", "oci", "dir"])
def test_the_same_image_is_the_same_tree_wherever_it_comes_from(
    transport: str, registry: str, trees: Trees, layout: Path, tmp_path: Path
) -> None:
    place = f"//{registry}/some/app:1" if transport == "docker" else f"{tmp_path}/copy"
    tls = ["--dest-tls-verify=false"] if transport == "docker" else []
    named = f"{place}:some/app:1" if transport == "docker-archive" else place
    skopeo(*tls, f"oci:{layout}", f"{transport}:{named}")
    direct = read_layout(layout, trees, Chains(tmp_path / "chains"), LayerBounds(), silent)
    image = bring(f"{transport}:{place}", trees, tmp_path / "work")
    assert image.tree.digest == direct.tree.digest
    assert paths(trees, image) == [b"", b"app", b"app/run", b"etc", b"etc/passwd"]
    assert image.config == oci.ImageConfig({"A": "1", "B": "x=y"}, "1000", "/app", ("/app/run", "now"), 9000)
    trees.ensure_image(image.tree.digest)
    assert [path.name for path in (tmp_path / "work").iterdir()] == ["chains"]  # what was fetched is gone


def test_layers_that_are_trees_already_are_not_read(trees: Trees, layout: Path, tmp_path: Path) -> None:
    chains = Chains(tmp_path / "chains")
    told: list[str] = []
    first = read_layout(layout, trees, chains, LayerBounds(), lambda what, *_: told.append(what))
    assert (first.cached_layers, set(told)) == (0, {"layer 1 of 2", "layer 2 of 2"})
    other = write_layout(tmp_path / "other", BASE, tar(file("else")))
    os.unlink(oci._path(other, oci._blob(json.loads(_manifest(other))["layers"][0])))  # it is not even there
    told.clear()
    second = read_layout(other, trees, chains, LayerBounds(), lambda what, *_: told.append(what))
    assert (second.cached_layers, set(told)) == (1, {"layer 2 of 2"})
    assert paths(trees, second) == [b"", b"else", b"etc", b"etc/passwd", b"old"]
    again = read_layout(layout, trees, chains, LayerBounds(), silent)
    assert (again.cached_layers, again.tree.digest) == (2, first.tree.digest)


def test_a_remembered_layer_that_the_store_has_lost_is_read_again(trees: Trees, layout: Path, tmp_path: Path) -> None:
    chains = Chains(tmp_path / "chains")
    first = read_layout(layout, trees, chains, LayerBounds(), silent)
    shutil.rmtree(tmp_path / "objects/packs")
    empty = Trees(open_bucket(f"file://{tmp_path}/objects"), tmp_path / "empty")
    again = read_layout(layout, empty, chains, LayerBounds(), silent)
    assert (again.cached_layers, again.tree.digest) == (0, first.tree.digest)
    empty.close()


def _manifest(layout: Path) -> bytes:
    (named,) = json.loads((layout / "index.json").read_text())["manifests"]
    return oci._path(layout, oci._blob(named)).read_bytes()


@pytest.mark.parametrize("part", ["manifest", "config", "layer"])
def test_a_part_that_is_not_what_names_it_is_refused(part: str, trees: Trees, layout: Path, tmp_path: Path) -> None:
    manifest = json.loads(_manifest(layout))
    (named,) = json.loads((layout / "index.json").read_text())["manifests"]
    path = oci._path(
        layout, oci._blob({"manifest": named, "config": manifest["config"]}.get(part, manifest["layers"][1]))
    )
    path.write_bytes(path.read_bytes() + b" ")
    with pytest.raises(Invalid) as refused:
        read_layout(layout, trees, Chains(tmp_path / "chains"), LayerBounds(), silent)
    assert refused.value.code == "digest_mismatch"


def test_an_image_over_its_bound_is_refused_and_leaves_nothing(trees: Trees, tmp_path: Path) -> None:
    layout = write_layout(tmp_path / "layout", tar(file("zeros", bytes(4 << 20))))
    with pytest.raises(Invalid) as refused:
        bring(f"oci:{layout}", trees, tmp_path / "work", bounds=LayerBounds(100, 1 << 20))
    assert refused.value.code == "too_large"
    assert list((tmp_path / "work").iterdir()) == []


def test_an_image_that_is_not_there_is_one_clear_error(registry: str, trees: Trees, tmp_path: Path) -> None:
    with pytest.raises(Failed) as failed:
        bring(f"docker://{registry}/no/such:1", trees, tmp_path / "work")
    assert failed.value.code == "image_unreachable"
    assert list((tmp_path / "work").iterdir()) == []


@pytest.mark.parametrize("text", ["", "-v", "docker://--help", "http://x/y", "oci:relative", "dir:", "a b", "x\0y"])
def test_what_is_no_reference_is_refused(text: str) -> None:
    with pytest.raises(Invalid):
        parse_reference(text)


def test_plain_http_and_credentials_are_only_for_whom_they_are_meant(tmp_path: Path) -> None:
    local, remote = parse_reference("docker://127.0.0.1:5000/a"), parse_reference("registry.example/a:1")
    assert (local.is_loopback, remote.is_loopback) == (True, False)
    assert parse_reference("[::1]:5000/a").is_loopback
    assert not parse_reference("127.0.0.1.example.org/a").is_loopback
    line = oci.copy_command(remote, tmp_path, architecture="amd64")
    assert "--src-no-creds" in line
    assert "--src-tls-verify=false" not in line
    line = oci.copy_command(remote, tmp_path, architecture="amd64", auth_file=Path("/etc/auth.json"))
    assert line[line.index("--src-authfile") + 1] == "/etc/auth.json"
    assert "--src-no-creds" not in line


def test_what_a_killed_import_left_is_removed_by_a_later_one(trees: Trees, layout: Path, tmp_path: Path) -> None:
    old, fresh = tmp_path / "work/image-old", tmp_path / "work/image-fresh"
    for left in (old, fresh):
        left.mkdir(parents=True)
    os.utime(old, (0, 0))
    bring(f"oci:{layout}", trees, tmp_path / "work")
    assert not old.exists()
    assert fresh.exists()  # another import may be at it


async def test_a_registry_that_is_not_listed_is_asked_behind_a_fence(
    trees: Trees, tmp_path: Path, registry: str
) -> None:
    """Even where the check of its address is passed: skopeo finds no registry on the loopback of another network."""
    network = Network(
        installation=f"t{os.getpid()}",
        network="10.230.0.0/16",
        run_dir=tmp_path / "network",
        dns="192.0.2.1",
        address_rest=timedelta(0),
    )
    await network.ensure()
    try:
        attachment = await network.attach()
        resolver = tmp_path / "resolv.conf"
        resolver.write_text("nameserver 192.0.2.53\n")
        prefix = fence_command(attachment.netns, resolver)
        seen = await asyncio.to_thread(subprocess.check_output, [*prefix, "cat", "/etc/resolv.conf"], timeout=30)
        assert seen == b"nameserver 192.0.2.53\n"
        assert b"192.0.2.53" not in Path("/etc/resolv.conf").read_bytes()
        with pytest.raises(Failed) as failed:
            await import_image(
                parse_reference(f"docker://{registry}/some/app:1"), trees, tmp_path, progress=silent, prefix=prefix
            )
        assert failed.value.code == "image_unreachable"
        assert "connection refused" in failed.value.message
        await network.detach(attachment.address)
    finally:
        await network.remove()
        await network.close()


@pytest.mark.parametrize("transport", ["docker-archive", "oci-archive"])
def test_an_archive_is_known_by_what_it_holds(transport: str, layout: Path, tmp_path: Path) -> None:
    archive = tmp_path / "image.tar"
    skopeo(f"oci:{layout}", f"{transport}:{archive}" + (":a/b:1" if transport == "docker-archive" else ""))
    assert archive_transport(archive) == transport


def test_what_is_remembered_of_layers_is_one_tenants(trees: Trees, layout: Path, tmp_path: Path) -> None:
    def bring_for(scope: str) -> int:
        reference, work = parse_reference(f"oci:{layout}"), tmp_path / "work"
        return asyncio.run(import_image(reference, trees, work, progress=silent, scope=scope)).cached_layers

    assert [bring_for(scope) for scope in ("ten_a", "ten_a", "ten_b")] == [0, 2, 0]
