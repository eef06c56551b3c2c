"""What a restarted host reads of its instances is what was written, whatever a claim said."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as some

from dovecote.errors import NotFound
from dovecote.host.guest.protocol import VERSION
from dovecote.host.instances.adopting import Adoption
from dovecote.host.instances.instance import Claim, Instance, read_instance
from dovecote.host.instances.mounting import mounted_paths
from dovecote.host.processes import process_started
from dovecote.model.rules import SaveRules
from dovecote.model.sizes import Limits, NetworkPolicy
from dovecote.model.states import InstanceState
from dovecote.model.trees import Workspace
from dovecote.model.volumes import Mount

words = some.text(max_size=8)
numbers = some.integers(0, 2**62)
lists = some.lists(words, max_size=3).map(tuple)
claims = some.builds(
    Claim,
    workspace=some.builds(Workspace),
    limits=some.builds(Limits, cpus=some.floats(0.1, 64), memory_bytes=numbers, disk_bytes=numbers),
    epoch=numbers,
    generation=numbers,
    network=some.builds(NetworkPolicy, internet=some.booleans(), allow_cidrs=lists, deny_cidrs=lists),
    recovery_point=some.floats(0, 100),
    mounts=some.lists(some.builds(Mount), max_size=2).map(tuple),
    rules=some.builds(SaveRules, leave_out=lists, keep=lists, reinstall=some.none() | words),
    memory=some.none() | words,
)


def instance_in(directory: Path, claim: Claim | None, *, pid: int = 1, started: int = 2) -> Instance:
    directory.mkdir(exist_ok=True)
    return Instance(
        "ins_1", directory, InstanceState.READY, "crun", True, "10.0.0.1", directory, 1, 1 << 21, "ins_1", pid, started,
        claim=claim,
    )  # fmt: skip


@given(claims)
def test_a_claim_is_read_as_it_was_written(tmp_path_factory: pytest.TempPathFactory, claim: Claim) -> None:
    directory = tmp_path_factory.mktemp("instance")
    instance_in(directory, claim).record()
    assert read_instance(directory).claim == claim


def test_what_is_known_of_its_disk_and_limits_is_read_as_it_was_written(tmp_path: Path) -> None:
    """And of one that an earlier version wrote nothing is known."""
    instance = instance_in(tmp_path, None)
    instance.record()
    assert (read_instance(tmp_path).limits, read_instance(tmp_path).untouched) == (None, 0)
    instance.limits, instance.untouched = Limits(cpus=0.5), 17
    instance.record()
    assert (read_instance(tmp_path).limits, read_instance(tmp_path).untouched) == (Limits(cpus=0.5), 17)
    body = orjson.loads((tmp_path / "instance.json").read_bytes())
    del body["limits"], body["untouched"]
    (tmp_path / "instance.json").write_bytes(orjson.dumps(body))
    assert (read_instance(tmp_path).limits, read_instance(tmp_path).untouched) == (None, 0)


@pytest.mark.parametrize("body", [b"", b"[]", b"{}", b'{"claim": 1}'])
def test_a_record_that_makes_no_sense_is_none(tmp_path: Path, body: bytes) -> None:
    (tmp_path / "instance.json").write_bytes(body)
    with pytest.raises(NotFound):
        read_instance(tmp_path)


class Recorded:
    """A host's own records, and what is done about them."""

    def __init__(self, directory: Path) -> None:
        self.ids = SimpleNamespace(adopt=lambda bases: None)
        self.directory = directory
        self.unmade: list[tuple[str, bool]] = []

    def directories(self) -> list[Path]:
        return [self.directory]

    async def unmake(self, instance: Instance, *, keep_disk: bool) -> None:
        self.unmade.append((instance.id, keep_disk))


class Nothing:
    """Says that all is well to whatever is asked."""

    def __getattr__(self, name: str) -> Any:
        async def answer(*_: object, **__: object) -> Any:
            return [] if name == "list" else {}

        return answer


@pytest.mark.anyio
@pytest.mark.parametrize("protocol", [1, VERSION])
async def test_what_another_version_started_is_ended_and_its_files_are_kept(tmp_path: Path, protocol: int) -> None:
    claim = Claim("ses_1", Workspace("t", None), Limits(), NetworkPolicy(), "crun", 1)
    mine = process_started(os.getpid())
    assert mine is not None
    instance = instance_in(tmp_path / "ins_1", claim, pid=os.getpid(), started=mine)
    instance.protocol = protocol
    instance.record()
    recorded, parts = Recorded(instance.directory), Nothing()
    everything = SimpleNamespace(network=parts, roots=parts, cgroups=parts, disks=parts, runtimes={})
    adoption = Adoption(cast(Any, everything), cast(Any, recorded), cast(Any, parts))
    found = await adoption.find(fits=lambda _: True)
    adopted = [each.id for each in found.claimed]
    assert (adopted, recorded.unmade) == ((["ins_1"], []) if protocol == VERSION else ([], [("ins_1", True)]))


@pytest.mark.anyio
async def test_a_mount_that_a_restart_cut_off_is_not_on_its_way_any_more(tmp_path: Path) -> None:
    claim = Claim("ses_1", Workspace("t", None), Limits(), NetworkPolicy(), "crun", 1)
    mine = process_started(os.getpid())
    assert mine is not None
    instance = instance_in(tmp_path / "ins_1", claim, pid=os.getpid(), started=mine)
    instance.opening, instance.mounted = Mount("vol_1", "/data", "books"), {"/data": 77}
    instance.record()
    assert mounted_paths(tmp_path, "vol_1") == ["books"]
    recorded, parts = Recorded(instance.directory), Nothing()
    everything = SimpleNamespace(network=parts, roots=parts, cgroups=parts, disks=parts, entrance=parts, runtimes={})
    await Adoption(cast(Any, everything), cast(Any, recorded), cast(Any, parts)).find(fits=lambda _: True)
    assert mounted_paths(tmp_path, "vol_1") == []


def test_a_record_of_before_versions_were_written_is_of_the_first(tmp_path: Path) -> None:
    instance_in(tmp_path, None).record()
    path = tmp_path / "instance.json"
    body = orjson.loads(path.read_bytes())
    del body["protocol"]
    path.write_bytes(orjson.dumps(body))
    assert read_instance(tmp_path).protocol == 1
