"""Volumes from the outside: in sessions and apps, over the limit, attacked from inside, and over a crash."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest

from dovecote.sdk import Conflict, Dovecote, DovecoteError, Mount, NotFound, Start
from tests.e2e.installation import Installation, running

pytestmark = pytest.mark.e2e

MIB = 1 << 20
AT = "/home/user/data"
SUBVOLUME = (
    "import fcntl, os, struct\n"
    "top = os.open('%s', os.O_RDONLY)\n"
    "for command in (0x5000940e, 0x50009418, 0x50009401, 0x50009417):\n"
    "    try:\n"
    "        fcntl.ioctl(top, command, bytearray(struct.pack('q4088s', top, b'escape')))\n"
    "        print('made')\n"
    "    except OSError as error:\n"
    "        print(error.errno)\n"
)


@pytest.fixture
def volume(dovecote: Dovecote, request: pytest.FixtureRequest) -> Iterator[str]:
    name = request.node.name.replace("_", "-")[:40].rstrip("-")
    dovecote.volumes.create(name, max_bytes=16 * MIB)
    yield name
    dovecote.volumes.delete(name, force=True)


def test_two_sessions_share_a_volume_and_its_owners(dovecote: Dovecote, volume: str) -> None:
    with dovecote.sessions.create() as one, dovecote.sessions.create() as other:
        one.mounts.add(Mount(volume, AT, "user/session"))
        other.mounts.add(Mount(volume, AT, "user/session"))
        one.run(f"echo hello > {AT}/f && sudo touch {AT}/by-root", check=True)
        assert other.run(f"cat {AT}/f && stat -c %U {AT} {AT}/f {AT}/by-root").stdout == "hello\nuser\nuser\nroot\n"
        assert other.run(f"echo more >> {AT}/f").exit_code == 0
        assert one.run(f"cat {AT}/f").stdout == "hello\nmore\n"


def test_over_the_limit_only_the_writer_suffers(dovecote: Dovecote, volume: str) -> None:
    with dovecote.sessions.create() as session:
        session.mounts.add(Mount(volume, AT))
        done = session.run(f"dd if=/dev/urandom of={AT}/big bs=1M count=160")
        assert done.exit_code == 1
        assert "quota exceeded" in done.stderr or "No space left" in done.stderr
        session.run("dd if=/dev/urandom of=/home/user/mine bs=1M count=20", check=True)
        assert (dovecote.volumes.get(volume).used_bytes or 0) <= 16 * MIB
        dovecote.volumes.resize(volume, max_bytes=64 * MIB)
        session.run(f"dd if=/dev/urandom of={AT}/more bs=1M count=20", check=True)


def test_root_inside_cannot_escape_the_limit_or_undo_a_mount(dovecote: Dovecote, volume: str) -> None:
    """On btrfs a subvolume of one's own would be counted by nobody; copies by reference still work."""
    with dovecote.sessions.create() as session:
        session.mounts.add(Mount(volume, AT))
        session.files.write("/tmp/escape.py", SUBVOLUME % AT)
        for sudo in ("", "sudo "):
            assert "made" not in session.run(f"{sudo}python3 /tmp/escape.py", check=True).stdout
        assert session.run(f"echo x > {AT}/a && cp --reflink=always {AT}/a {AT}/b && cat {AT}/b").stdout == "x\n"
        assert session.run(f"sudo umount {AT}").exit_code != 0


def test_read_only_is_read_only_for_root_too(dovecote: Dovecote, volume: str) -> None:
    with dovecote.sessions.create() as session:
        session.mounts.add(Mount(volume, "/mnt/w"))
        session.run("echo kept > /mnt/w/f", check=True)
        session.mounts.add(Mount(volume, "/mnt/r", read_only=True))
        assert session.run("cat /mnt/r/f").stdout == "kept\n"
        assert "Read-only file system" in session.run("sudo touch /mnt/r/g").stderr
        assert session.run("sudo mount -o remount,rw /mnt/r").exit_code != 0


def test_parking_saves_nothing_of_a_volume_and_waking_mounts_it_again(dovecote: Dovecote, volume: str) -> None:
    with dovecote.sessions.create() as session:
        session.mounts.add(Mount(volume, AT))
        session.run(f"echo kept > {AT}/f; echo mine > /home/user/mine", check=True)
        session.park()
        assert session.run(f"cat {AT}/f /home/user/mine").stdout == "kept\nmine\n"
        session.park()
        session.mounts.remove(AT)
        assert session.run(f"ls -A {AT}").stdout == ""


def test_unmounting_while_it_is_used_is_refused_unless_forced(dovecote: Dovecote, volume: str) -> None:
    with dovecote.sessions.create() as session:
        session.mounts.add(Mount(volume, AT))
        session.start(f"cd {AT} && exec sleep 300")
        session.run(f"until ls -l /proc/[0-9]*/cwd 2>/dev/null | grep -q {AT}; do :; done", check=True)
        with pytest.raises(DovecoteError) as caught:
            session.mounts.remove(AT)
        assert caught.value.code == "busy"
        assert [mount.at for mount in session.mounts.list()] == [AT]
        session.mounts.remove(AT, force=True)
        assert session.mounts.list() == []
        assert AT not in session.run("cat /proc/self/mounts").stdout


def test_a_mount_is_found_when_its_directory_was_moved(dovecote: Dovecote, volume: str) -> None:
    with dovecote.sessions.create() as session:
        session.mounts.add(Mount(volume, "/srv/a/data"))
        session.run("sudo mv /srv/a /srv/b", check=True)
        session.mounts.remove("/srv/a/data")
        assert "/srv/" not in session.run("cat /proc/self/mounts").stdout


@pytest.mark.parametrize(
    "at", ["/proc/x", "/dev/x", "/sys/x", "/run/x", "/", "data", "/a/../b", "/a//b", "/" + "x" * 201]
)
def test_not_everything_is_a_place_for_a_mount(dovecote: Dovecote, volume: str, at: str) -> None:
    with dovecote.sessions.create(wake=False) as session:
        with pytest.raises(DovecoteError) as caught:
            session.mounts.add(Mount(volume, at))
        assert caught.value.code == "malformed_path"


def test_links_inside_lead_a_mount_nowhere(dovecote: Dovecote, volume: str) -> None:
    with dovecote.sessions.create() as session:
        session.mounts.add(Mount(volume, AT))
        session.run(f"ln -s / {AT}/out; sudo ln -s /etc /srv/link", check=True)
        for mount in (Mount(volume, "/srv/x", "out/etc"), Mount(volume, "/srv/link")):
            with pytest.raises(DovecoteError):
                session.mounts.add(mount)
        assert [mount.at for mount in session.mounts.list()] == [AT]


def test_another_tenant_has_no_such_volume(installation: Installation, dovecote: Dovecote, volume: str) -> None:
    secret = installation.command("tenant", "create", f"t{volume[-20:]}").stdout.split()[-1]
    with installation.client(secret) as stranger, stranger.sessions.create(wake=False) as session:
        assert stranger.volumes.list() == []
        for name in (volume, dovecote.volumes.get(volume).id):
            with pytest.raises(DovecoteError):
                session.mounts.add(Mount(name, AT))
        with pytest.raises(NotFound):
            stranger.volumes.get(volume)
        with pytest.raises(NotFound):
            stranger.volumes.delete(volume, force=True)


def test_a_mounted_volume_is_deleted_by_force_only(dovecote: Dovecote) -> None:
    dovecote.volumes.create("mounted", max_bytes=16 * MIB)
    with dovecote.sessions.create() as session:
        session.mounts.add(Mount("mounted", AT))
        with pytest.raises(Conflict) as caught:
            dovecote.volumes.delete("mounted")
        assert caught.value.code == "in_use"
        dovecote.volumes.delete("mounted", force=True)
        assert session.mounts.list() == []
        assert session.run("echo alive").stdout == "alive\n"


def test_an_app_sees_the_files_and_the_limit_of_its_session(dovecote: Dovecote, volume: str) -> None:
    with dovecote.sessions.create() as session:
        session.mounts.add(Mount(volume, AT))
        session.run(f"echo shared > {AT}/index.html", check=True)
        fill = f"dd if=/dev/urandom of={AT}/big bs=1M count=99 2>err.txt"
        start = Start(f"{fill}; exec python3 -m http.server 8000", 8000)
        app = dovecote.apps.publish(session, name="shares", start=start)
        try:
            with dovecote.http_for(app.address) as http:
                assert http.get("/data/index.html", timeout=httpx.Timeout(30)).text == "shared\n"
                assert http.get("/err.txt").text.count("quota") == 1
            assert session.run(f"stat -c %s {AT}/big").stdout.strip().isdigit()
        finally:
            dovecote.apps.unpublish(app.name)


def test_mounts_outlive_a_kill_of_the_server() -> None:
    with running() as own:
        with own.client() as client:
            client.volumes.create("kept", max_bytes=16 * MIB)
            session = client.sessions.create()
            session.mounts.add(Mount("kept", AT))
            session.run(f"echo before > {AT}/f", check=True)
        own.kill()
        own.start()
        with own.client() as client:
            session = client.sessions.get(session.id)
            assert [mount.at for mount in session.mounts.list()] == [AT]
            assert session.run(f"cat {AT}/f").stdout == "before\n"
            session.mounts.remove(AT)
            assert AT not in session.run("cat /proc/self/mounts").stdout
        own.down()
        assert own.remains() == []
