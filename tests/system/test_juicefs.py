"""JuiceFS as the driver of volumes: ids of instances, deaths of its processes, several hosts, a bucket on S3."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import anyio
import pytest

from dovecote.errors import NotFound, StorageFailed
from dovecote.host.storage import mounts
from dovecote.host.storage.volumes import fuse, open_mount
from dovecote.host.storage.volumes.juicefs import JuiceFSVolumes
from dovecote.host.storage.volumes.juicefs_commands import Place, find_place
from dovecote.model.volumes import Mount
from tests.s3 import BUCKET, SeaweedFSServer
from tests.servers import PostgreSQLServer, postgresql_server, seaweedfs_server  # noqa: F401

pytestmark = [pytest.mark.system, pytest.mark.anyio]

MIB = 1 << 20
ID_BASE = 3_000_000


def driver(directory: Path, place: Place | None = None, *, host: str = "one") -> JuiceFSVolumes:
    place = place or find_place("test", objects_url="", meta_url="", directory=directory / "data")
    here = directory / host
    return JuiceFSVolumes(place, here / "at", run_dir=here / "run", cache_dir=here / "cache")


@pytest.fixture
async def directory() -> AsyncIterator[Path]:
    with tempfile.TemporaryDirectory(prefix="dovecote-juicefs-") as name:
        yield Path(name)
        assert mounts.mounted_below(Path(name)) == []
        await until(lambda: not processes(name), "no process is left")


@pytest.fixture
async def volumes(directory: Path) -> AsyncIterator[JuiceFSVolumes]:
    made = driver(directory)
    try:
        await made.ensure()
        yield made
    finally:
        await made.remove()


def processes(word: str) -> dict[int, str]:
    """Those that have a word on their command line: number and line."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            line = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
            if word in line and int(path.parts[2]) != os.getpid():
                found[int(path.parts[2])] = line
    return found


def serving(directory: Path) -> int:
    """The JuiceFS process of a mount."""
    (pid,) = [pid for pid, line in processes(str(directory)).items() if " mount " in line and "relay.py" not in line]
    return pid


def relay(directory: Path) -> int:
    return int(json.loads((directory / "one/run/relay.json").read_bytes())["pid"])


async def until(claim: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + 30
    while not await anyio.to_thread.run_sync(claim):
        assert time.monotonic() < deadline, what
        await anyio.sleep(0.05)


@pytest.fixture
def userns() -> Iterator[int]:
    descriptor = mounts.user_namespace(ID_BASE)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def shown(volumes: JuiceFSVolumes, mount: Mount, userns: int) -> Iterator[Path]:
    """A volume as an instance would have it."""
    with tempfile.TemporaryDirectory(prefix="dovecote-shown-") as name:
        Path(name).chmod(0o711)
        mounts.mount_at(open_mount(volumes.directory(mount.volume), mount, userns), Path(name) / "at")
        try:
            yield Path(name) / "at"
        finally:
            mounts.unmount(Path(name) / "at", detach=True)


def inside(at: Path, script: str, *, user: int) -> str:
    """What a shell says that has no rights on the host, as a user of the instance."""
    ids = [f"--reuid={ID_BASE + user}", f"--regid={ID_BASE + user}", "--clear-groups"]
    command = ["setpriv", *ids, "sh", "-c", f"cd {at} && {{ {script}; }}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    return (done.stdout + done.stderr).strip()


async def test_ids_are_those_of_the_instance_inside_and_those_of_the_container_in_the_store(
    volumes: JuiceFSVolumes, userns: int
) -> None:
    await volumes.create("vol_a", max_bytes=16 * MIB)
    with shown(volumes, Mount("vol_a", "/data", "work", uid=1000, gid=1000), userns) as at:
        script = (
            "echo x > f; mkdir d; ln -s f l; chmod 600 f; mv f g; echo y >> g; mkfifo p; touch -d 2001-02-03 d; cat g"
        )
        assert inside(at, script, user=1000) == "x\ny"
        stored = volumes.directory("vol_a") / "work"
        assert {os.lstat(stored / name).st_uid for name in ("g", "d", "l", "p")} == {1000}
        assert os.lstat(at / "g").st_uid == ID_BASE + 1000
        assert "Permission denied" in inside(at, "cat g", user=1001)
        assert "denied" in inside(at, "rm g", user=1001)
        assert "not permitted" in inside(at, f"chown {ID_BASE} g", user=1000)
        assert (stored / "g").read_text() == "x\ny\n"


def as_container_root(userns: int, act: Callable[[], None]) -> int:
    """Runs it in a child that is root in a user namespace and nobody outside; its exit code."""
    pid = os.fork()
    if not pid:
        code = 1
        try:
            os.setgroups([])
            mounts._checked(mounts._libc.setns(userns, 0))
            os.setresgid(0, 0, 0)
            os.setresuid(0, 0, 0)
            act()
            code = 0
        finally:
            os._exit(code)
    return os.waitpid(pid, 0)[1]


def give_away(path: Path) -> None:
    path.write_text("x")
    os.chown(path, 1000, 1001)
    path.chmod(0o640)
    with contextlib.suppress(OSError):
        os.chown(path, 70000, 0)
        raise SystemExit(1)


def reap(pid: int) -> None:
    os.waitpid(pid, 0)


async def test_root_of_the_instance_gives_files_away_and_no_farther_than_its_ids(
    volumes: JuiceFSVolumes, userns: int
) -> None:
    await volumes.create("vol_a", max_bytes=16 * MIB)
    with shown(volumes, Mount("vol_a", "/data", uid=0, gid=0), userns) as at:
        assert as_container_root(userns, lambda: give_away(at / "f")) == 0
        found = (volumes.directory("vol_a") / "f").stat()
        assert (found.st_uid, found.st_gid, found.st_mode & 0o777) == (1000, 1001, 0o640)


async def test_a_read_only_mount_takes_no_write(volumes: JuiceFSVolumes, userns: int) -> None:
    await volumes.create("vol_a", max_bytes=16 * MIB)
    with shown(volumes, Mount("vol_a", "/data", read_only=True), userns) as at:
        assert "Read-only" in inside(at, "touch f", user=0)


def many_files(files: Path, most: int) -> tuple[int, int | None]:
    """How many of one byte could be made, and the error that stopped it."""
    for made in range(most):
        try:
            (files / f"f{made}").write_bytes(b"x")
        except OSError as error:
            return made, error.errno
    return most, None


def write_at_once(files: Path, count: int) -> list[int]:
    """Exit codes of so many writers of 20 MiB each."""
    writers = [
        subprocess.Popen(
            ["dd", "if=/dev/zero", f"of={files}/w{n}", "bs=64k", "count=320", "conv=fsync"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for n in range(count)
    ]
    return [writer.wait(100) for writer in writers]


async def test_small_files_as_fast_as_possible_stop_at_the_limit(volumes: JuiceFSVolumes) -> None:
    """Each counts as 4 KiB, so a limit of bytes is one of files too: 2 MiB are 512 of them, and none more is made."""
    await volumes.create("vol_a", max_bytes=2 * MIB)
    files = volumes.directory("vol_a")
    made, error = await anyio.to_thread.run_sync(lambda: many_files(files, 5120))
    assert error == errno.EDQUOT
    assert 400 < made <= 512


async def test_many_writers_at_once_pass_the_limit_by_little(volumes: JuiceFSVolumes) -> None:
    """Eight writers of one host and ten times the limit: what is stored in the end is within it."""
    await volumes.create("vol_a", max_bytes=16 * MIB)
    files = volumes.directory("vol_a")
    codes = await anyio.to_thread.run_sync(lambda: write_at_once(files, 8))
    assert all(codes)
    assert sum(path.stat().st_blocks * 512 for path in files.iterdir()) <= 16 * MIB


async def test_when_its_process_is_killed_the_mount_stays_and_files_are_there(
    directory: Path, volumes: JuiceFSVolumes, userns: int
) -> None:
    """An instance sees nothing of it but a pause; a file that it had open it has to open again."""
    await volumes.create("vol_a", max_bytes=16 * MIB)
    with shown(volumes, Mount("vol_a", "/data", uid=1000, gid=1000), userns) as at:
        assert inside(at, "echo one > f", user=1000) == ""
        for _ in range(2):
            before = serving(directory)
            os.kill(before, signal.SIGKILL)
            output = await anyio.to_thread.run_sync(lambda: inside(at, "cat f; echo two > g; cat g", user=1000))
            assert output == "one\ntwo"
            assert serving(directory) != before
        error = None
        try:
            (volumes.directory("vol_a") / "big").write_bytes(b"0" * 20 * MIB)
        except OSError as found:
            error = found.errno
        assert error in (errno.EDQUOT, errno.ENOSPC)


async def test_when_the_relay_is_killed_it_is_started_again_and_the_mount_stays(
    directory: Path, volumes: JuiceFSVolumes, userns: int
) -> None:
    await volumes.create("vol_a", max_bytes=16 * MIB)
    with shown(volumes, Mount("vol_a", "/data", uid=1000, gid=1000), userns) as at:
        assert inside(at, "echo one > f", user=1000) == ""
        before = relay(directory)
        os.kill(before, signal.SIGKILL)
        await until(lambda: relay(directory) != before, "another relay runs")
        output = await anyio.to_thread.run_sync(lambda: inside(at, "cat f; echo two > g; cat g", user=1000))
        assert output == "one\ntwo"
        await volumes.create("vol_b", max_bytes=16 * MIB)
        assert await volumes.list() == ["vol_a", "vol_b"]
        assert (volumes.directory("vol_a") / "g").read_text() == "two\n"


async def test_a_restart_takes_over_the_mount(directory: Path, volumes: JuiceFSVolumes, userns: int) -> None:
    await volumes.create("vol_a", max_bytes=16 * MIB)
    with shown(volumes, Mount("vol_a", "/data", uid=1000, gid=1000), userns) as at:
        processes_before = relay(directory), serving(directory)
        again = driver(directory)
        await again.ensure()
        assert (relay(directory), serving(directory)) == processes_before
        assert await again.list() == ["vol_a"]
        assert inside(at, "echo one > f; cat f", user=1000) == "one"
        await again.remove()


async def test_what_is_left_of_a_mount_that_nobody_serves_is_replaced(directory: Path) -> None:
    first = driver(directory)
    await first.ensure()
    await first.create("vol_a", max_bytes=16 * MIB)
    (first.directory("vol_a") / "f").write_text("kept")
    first._unwatch()  # the server is killed, and all that served with it
    os.close(first._device)
    first._device = -1
    for pid in (relay(directory), serving(directory)):
        os.kill(pid, signal.SIGKILL)
    reap(relay(directory))
    with pytest.raises(OSError, match=r"not connected|Transport|abort"):
        await anyio.to_thread.run_sync(lambda: os.listdir(directory / "one/at"))
    second = driver(directory)
    try:
        await second.ensure()
        assert (second.directory("vol_a") / "f").read_text() == "kept"
        assert (await second.usage("vol_a")).max_bytes == 16 * MIB
    finally:
        await second.remove()


async def test_a_volume_whose_making_was_cut_off_is_handed_to_nobody(volumes: JuiceFSVolumes) -> None:
    (volumes.directory("vol_a").parent).mkdir()
    assert await volumes.list() == []
    with pytest.raises(NotFound):
        await volumes.usage("vol_a")
    await volumes.create("vol_a", max_bytes=16 * MIB)
    assert (await volumes.usage("vol_a")).max_bytes == 16 * MIB


async def test_two_hosts_share_files_and_limits(
    directory: Path,
    postgresql_server: PostgreSQLServer,  # noqa: F811
) -> None:
    """The second sees what the first wrote, and both stop; each may write until it hears of the other."""
    database = postgresql_server.new_database()
    url = postgresql_server.url(database)
    place = find_place("test", objects_url="", meta_url=url, directory=directory / "data")
    one, two = driver(directory, place), driver(directory, place, host="two")
    try:
        await one.ensure()
        await two.ensure()
        await one.create("vol_a", max_bytes=8 * MIB)
        (one.directory("vol_a") / "f").write_text("from one")
        await until(lambda: (two.directory("vol_a") / "f").exists(), "the file is there on the other host")
        assert (two.directory("vol_a") / "f").read_text() == "from one"
        # The one fills it; once the other has heard of that, it cannot write a byte.
        with contextlib.suppress(OSError):
            (one.directory("vol_a") / "big").write_bytes(b"0" * 10 * MIB)
        with contextlib.suppress(OSError):
            for number in range(4096):
                (one.directory("vol_a") / f"s{number}").write_bytes(b"x")

        def refused() -> bool:
            try:
                (two.directory("vol_a") / "other").write_bytes(b"x")
            except OSError as error:
                return error.errno == errno.EDQUOT
            (two.directory("vol_a") / "other").unlink()
            return False

        await until(refused, "the other host refuses")
    finally:
        await two.remove()
        await one.remove()
        postgresql_server.drop_database(database)


async def test_contents_are_in_the_bucket_and_no_secret_is_on_a_command_line(
    directory: Path,
    seaweedfs_server: SeaweedFSServer,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    options = seaweedfs_server.options
    environ = {
        "AWS_ENDPOINT_URL": options["endpoint"],
        "AWS_ACCESS_KEY_ID": options["access_key_id"],
        "AWS_SECRET_ACCESS_KEY": options["secret_access_key"],
    }
    place = find_place(
        "s3test", objects_url=f"s3://{BUCKET}/x", meta_url="", directory=directory / "data", environ=environ
    )
    volumes = driver(directory, place)
    try:
        await volumes.ensure()
        await volumes.create("vol_a", max_bytes=16 * MIB)
        (volumes.directory("vol_a") / "f").write_bytes(b"in the bucket" * 1000)
        names = [stored.name for stored in seaweedfs_server.bucket("").list("dovecote-s3test")]
        assert any("/chunks/" in name for name in names)
        assert options["secret_access_key"] not in repr(place)
        assert processes(options["secret_access_key"]) == {}
        os.kill(serving(directory), signal.SIGKILL)
        content = await anyio.to_thread.run_sync((volumes.directory("vol_a") / "f").read_bytes)
        assert content == b"in the bucket" * 1000
    finally:
        await volumes.remove()


async def test_a_place_that_cannot_be_reached_is_said_and_leaves_no_mount(directory: Path) -> None:
    place = Place("dovecote-test", f"sqlite3://{directory}/missing/no/meta.db", "file", f"{directory}/contents/")
    volumes = driver(directory, place)
    (directory / "missing").write_text("a file, where a directory should be")
    with pytest.raises((StorageFailed, OSError)):
        await volumes.ensure()
    await volumes.remove()


async def test_the_kernel_end_is_found_in_the_process_that_holds_it(directory: Path, volumes: JuiceFSVolumes) -> None:
    os.close(fuse.device_of(relay(directory)))
    with pytest.raises(FileNotFoundError):
        fuse.device_of(serving(directory))


async def test_a_mount_that_somebody_took_away_is_made_again(directory: Path, volumes: JuiceFSVolumes) -> None:
    await volumes.create("vol_a", max_bytes=16 * MIB)
    (volumes.directory("vol_a") / "f").write_text("kept")
    mounts.unmount(directory / "one/at", detach=True)
    await until(lambda: (volumes.directory("vol_a") / "f").exists(), "it is mounted again")
    assert (volumes.directory("vol_a") / "f").read_text() == "kept"
