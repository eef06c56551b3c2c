"""Sandboxes as a resource, and volumes, by the Python client."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest
from e2b import AsyncSandbox, Sandbox, SandboxException, SandboxQuery, SandboxState, Volume


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    made = Sandbox.create(timeout=120, metadata={"check": "a b&c=d"}, envs={"COLOUR": "red"})
    yield made
    made.kill()


def test_what_it_was_made_with_is_told(sandbox: Sandbox) -> None:
    info = sandbox.get_info()
    assert info.metadata == {"check": "a b&c=d"}
    assert info.state == SandboxState.RUNNING
    assert info.template_id == "base"
    assert 100 < (info.end_at - info.started_at).total_seconds() < 130
    assert sandbox.commands.run("echo $COLOUR").stdout == "red\n"
    assert sandbox.get_host(3000).startswith(f"3000-{sandbox.sandbox_id}.box.")


def test_it_is_found_by_its_metadata_and_its_state(sandbox: Sandbox) -> None:
    mine = SandboxQuery(metadata={"check": "a b&c=d"}, state=[SandboxState.RUNNING])
    assert sandbox.sandbox_id in [each.sandbox_id for each in Sandbox.list(query=mine).next_items()]
    sandbox.pause()
    assert sandbox.sandbox_id not in [each.sandbox_id for each in Sandbox.list(query=mine).next_items()]
    paused = SandboxQuery(metadata={"check": "a b&c=d"}, state=[SandboxState.PAUSED])
    assert sandbox.sandbox_id in [each.sandbox_id for each in Sandbox.list(query=paused).next_items()]


def test_lists_have_pages() -> None:
    mark = uuid4().hex
    made = [Sandbox.create(timeout=60, metadata={"mark": mark}) for _ in range(3)]
    try:
        pages = Sandbox.list(query=SandboxQuery(metadata={"mark": mark}), limit=2)
        seen = [each.sandbox_id for each in pages.next_items()]
        assert len(seen) == 2
        assert pages.has_next
        seen += [each.sandbox_id for each in pages.next_items()]
        assert not pages.has_next
        assert seen == [each.sandbox_id for each in made[::-1]]
    finally:
        for each in made:
            each.kill()


def test_paused_and_connected_to_it_goes_on_where_it_was(sandbox: Sandbox) -> None:
    running = sandbox.commands.run("sleep 100", background=True)
    assert sandbox.pause()
    assert not sandbox.pause()
    assert sandbox.get_info().state == SandboxState.PAUSED
    again = Sandbox.connect(sandbox.sandbox_id, timeout=60)
    assert again.get_info().state == SandboxState.RUNNING
    assert running.pid in [each.pid for each in again.commands.list()]


def test_a_timeout_is_moved_and_kept(sandbox: Sandbox) -> None:
    sandbox.set_timeout(1000)
    assert sandbox.is_running()
    sandbox.set_timeout(0)
    deadline = time.monotonic() + 30
    while sandbox.is_running():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_killed_it_is_gone(sandbox: Sandbox) -> None:
    assert sandbox.kill()
    assert not sandbox.kill()
    assert not sandbox.is_running()
    with pytest.raises(SandboxException):
        Sandbox.connect(sandbox.sandbox_id)
    with pytest.raises(SandboxException):
        sandbox.get_info()


def test_snapshots_begin_other_sandboxes(sandbox: Sandbox) -> None:
    sandbox.files.write("note", "kept")
    taken = sandbox.create_snapshot()
    assert taken.snapshot_id in [each.snapshot_id for each in sandbox.list_snapshots().next_items()]
    sandbox.kill()
    with Sandbox.create(taken.snapshot_id, timeout=60) as other:
        assert other.files.read("note") == "kept"
    assert Sandbox.delete_snapshot(taken.snapshot_id)
    assert not Sandbox.delete_snapshot(taken.snapshot_id)


def test_forks_have_the_files_of_their_original(sandbox: Sandbox) -> None:
    if not hasattr(sandbox, "fork"):
        pytest.skip("this version has none")
    sandbox.files.write("note", "both")
    (fork,) = sandbox.fork(timeout=60)
    assert isinstance(fork, Sandbox)
    fork.files.write("note", "mine")
    assert sandbox.files.read("note") == "both"
    fork.kill()


def test_metrics_say_what_it_uses(sandbox: Sandbox) -> None:
    (sample, *_) = sandbox.get_metrics()
    assert 0 < sample.mem_used <= sample.mem_total
    assert 0 < sample.disk_used <= sample.disk_total


def test_what_it_may_reach_is_said_and_changed() -> None:
    with Sandbox.create(timeout=60, allow_internet_access=False) as sandbox:
        assert sandbox.get_info().allow_internet_access is False
        if hasattr(sandbox, "update_network"):
            sandbox.update_network({"deny_out": ["203.0.113.0/24"]})
            assert sandbox.get_info().network == {"allow_out": [], "deny_out": ["203.0.113.0/24"]}
    with pytest.raises(SandboxException, match="by address"):
        Sandbox.create(network={"allow_out": ["example.com"], "deny_out": ["0.0.0.0/0"]})


def test_what_happens_at_its_timeout_is_chosen() -> None:
    made = Sandbox.create(timeout=1, lifecycle={"on_timeout": "pause", "auto_resume": True})
    deadline = time.monotonic() + 30
    while made.get_info().state != SandboxState.PAUSED:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert Sandbox.connect(made.sandbox_id, timeout=60).commands.run("echo back").stdout == "back\n"
    made.kill()


def test_a_timeout_may_keep_the_files_only() -> None:
    made = Sandbox.create(timeout=60, lifecycle={"on_timeout": {"action": "pause", "keep_memory": False}})
    made.files.write("kept", "it")
    made.commands.run("sleep 600", background=True)
    made.set_timeout(0)
    deadline = time.monotonic() + 30
    while made.get_info().state != SandboxState.PAUSED:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    made = Sandbox.connect(made.sandbox_id, timeout=60)
    assert made.files.read("kept") == "it"
    assert made.commands.list() == []
    made.kill()


def test_one_that_use_wakes_has_a_timeout_again() -> None:
    made = Sandbox.create(timeout=60, lifecycle={"on_timeout": "pause", "auto_resume": True})
    made.files.write("kept", "it")
    made.pause()
    assert made.files.read("kept") == "it"
    info = made.get_info()
    assert info.state == SandboxState.RUNNING
    assert info.end_at < datetime.now(UTC) + timedelta(hours=1)
    made.kill()


def test_what_is_wrong_is_told() -> None:
    with pytest.raises(SandboxException, match="no template"):
        Sandbox.create("there-is-no-such-template")
    with pytest.raises(Exception, match="401"):
        Sandbox.create(api_key="e2b_" + "0" * 40)


def test_a_volume_outlives_the_sandboxes_that_mount_it() -> None:
    volume = Volume.create(f"Vol_{uuid4()}")
    try:
        assert volume.volume_id in [each.volume_id for each in Volume.list()]
        assert Volume.get_info(volume.volume_id).name == volume.name
        with Sandbox.create(timeout=60, volume_mounts={"/mnt/shared": volume}) as first:
            first.commands.run("echo kept > /mnt/shared/note")
        with Sandbox.create(timeout=60, volume_mounts={"/mnt/shared": volume}) as second:
            assert second.files.read("/mnt/shared/note") == "kept\n"
    finally:
        assert Volume.destroy(volume.volume_id)
    assert not Volume.destroy(volume.volume_id)


async def test_the_asynchronous_client_does_the_same() -> None:
    sandbox = await AsyncSandbox.create(timeout=60)
    assert (await sandbox.commands.run("echo hi")).stdout == "hi\n"
    assert await sandbox.pause()
    sandbox = await AsyncSandbox.connect(sandbox.sandbox_id, timeout=60)
    assert await sandbox.is_running()
    assert await sandbox.kill()


def test_files_of_a_volume_are_read_and_written_without_a_sandbox() -> None:
    volume = Volume.create(f"vol-{uuid4()}")
    try:
        volume.write_file("/deep/note.txt", "hello", force=True, mode=0o640, uid=1000, gid=1000)
        assert volume.read_file("/deep/note.txt") == "hello"
        info = volume.get_info("/deep/note.txt")
        assert (info.name, info.size, info.mode & 0o777, info.uid) == ("note.txt", 5, 0o640, 1000)
        volume.make_dir("/other")
        assert {each.path for each in volume.list("/", depth=2)} == {"/deep", "/deep/note.txt", "/other"}
        volume.update_metadata("/other", mode=0o700)
        assert volume.get_info("/other").mode & 0o777 == 0o700
        volume.remove("/deep")
        assert not volume.exists("/deep/note.txt")
        with pytest.raises(Exception, match="not found"):
            volume.read_file("/../etc/passwd")
        with Sandbox.create(timeout=60, volume_mounts={"/mnt/shared": volume}) as sandbox:
            sandbox.commands.run("echo from inside > /mnt/shared/inside")
            assert volume.read_file("inside") == "from inside\n"
        assert volume.volume_id not in [each.sandbox_id for each in Sandbox.list().next_items()]
    finally:
        assert Volume.destroy(volume.volume_id)
