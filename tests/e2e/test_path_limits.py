"""Limits of paths from the outside: in sessions and apps, attacked from inside, of other tenants, over a crash."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator

import httpx
import pytest

from dovecote.sdk import Conflict, Dovecote, DovecoteError, Mount, NotFound, Start
from tests.e2e.installation import Installation, running, until

pytestmark = pytest.mark.e2e

MIB = 1 << 20
AT = "/home/user/data"
CHAT = "anna/chat7"
FILL = f"dd if=/dev/urandom of={AT}/big bs=1M count=99"


@pytest.fixture
def volume(dovecote: Dovecote, request: pytest.FixtureRequest) -> Iterator[str]:
    name = request.node.name.replace("_", "-")[:40].rstrip("-")
    dovecote.volumes.create(name, max_bytes=64 * MIB)
    yield name
    dovecote.volumes.delete(name, force=True)


def test_over_the_limit_of_a_path_only_its_writer_suffers(dovecote: Dovecote, volume: str) -> None:
    with dovecote.sessions.create() as one, dovecote.sessions.create() as other:
        one.mounts.add(Mount(volume, AT, CHAT, max_bytes=8 * MIB))
        other.mounts.add(Mount(volume, AT, "ben/chat1"))
        done = one.run(FILL)
        assert done.exit_code == 1
        assert "quota exceeded" in done.stderr
        other.run(f"dd if=/dev/urandom of={AT}/more bs=1M count=20", check=True)
        (limit,) = dovecote.volumes.limits(volume)
        assert (limit.path, limit.max_bytes) == (CHAT, 8 * MIB)
        assert 6 * MIB < (limit.used_bytes or 0) <= 8 * MIB
        assert (dovecote.volumes.get(volume).used_bytes or 0) > 20 * MIB
        assert dovecote.volumes.limit(volume, CHAT, max_bytes=32 * MIB).max_bytes == 32 * MIB
        one.run(f"dd if=/dev/urandom of={AT}/more bs=1M count=12", check=True)
        dovecote.volumes.lift_limit(volume, CHAT)
        with pytest.raises(NotFound) as caught:
            dovecote.volumes.get_limit(volume, CHAT)
        assert caught.value.code == "no_such_limit"


def test_a_session_is_opened_with_a_limited_path_and_wakes_with_it(dovecote: Dovecote, volume: str) -> None:
    with dovecote.sessions.create(mounts=[Mount(volume, AT, CHAT, max_bytes=8 * MIB)]) as session:
        session.run(f"echo kept > {AT}/f", check=True)
        session.park()
        assert session.run(f"cat {AT}/f").stdout == "kept\n"
        assert "quota exceeded" in session.run(FILL).stderr
        assert [mount.max_bytes for mount in session.mounts.list()] == [None]


def test_an_app_has_the_limit_of_its_sessions_path(dovecote: Dovecote, volume: str) -> None:
    with dovecote.sessions.create(mounts=[Mount(volume, AT, CHAT, max_bytes=8 * MIB)]) as session:
        session.run(f"echo shared > {AT}/index.html", check=True)
        start = Start(f"{FILL} 2>err.txt; exec python3 -m http.server 8000", 8000)
        app = dovecote.apps.publish(session, name="limited", start=start)
        try:
            with dovecote.http_for(app.address) as http:
                assert http.get("/data/index.html", timeout=httpx.Timeout(30)).text == "shared\n"
                assert http.get("/err.txt").text.count("quota") == 1
            assert int(session.run(f"stat -c %s {AT}/big", check=True).stdout) <= 8 * MIB
            assert "quota exceeded" in session.run(f"dd if=/dev/urandom of={AT}/more bs=1M count=9").stderr
        finally:
            dovecote.apps.unpublish(app.name)


def test_root_above_a_limited_path_cannot_take_its_limit_away(dovecote: Dovecote, volume: str) -> None:
    """It can remove the directory and put its own there; the next mount has the limit, or is refused."""
    dovecote.volumes.limit(volume, CHAT, max_bytes=8 * MIB)
    with dovecote.sessions.create() as above, dovecote.sessions.create() as session:
        above.mounts.add(Mount(volume, AT))
        above.run(f"sudo rm -r {AT}/{CHAT}", check=True)
        assert dovecote.volumes.get_limit(volume, CHAT).used_bytes is None
        session.mounts.add(Mount(volume, AT, CHAT))
        assert "quota exceeded" in session.run(FILL).stderr
        session.mounts.remove(AT)
        above.run(f"cd {AT} && sudo rm -r {CHAT} && sudo mkdir -p {CHAT} && sudo touch {CHAT}/mine", check=True)
        for act in (
            lambda: session.mounts.add(Mount(volume, AT, CHAT)),
            lambda: dovecote.volumes.limit(volume, CHAT, max_bytes=8 * MIB),
        ):
            with pytest.raises(Conflict) as caught:
                act()
            assert caught.value.code == "path_in_use"
        above.mounts.remove(AT)
        dovecote.volumes.limit(volume, CHAT, max_bytes=8 * MIB)
        session.mounts.add(Mount(volume, AT, CHAT))
        assert session.run(f"ls {AT}").stdout == "mine\n"
        assert "quota exceeded" in session.run(FILL).stderr


def test_files_move_over_the_border_of_a_limited_path_and_count_for_the_volume(dovecote: Dovecote, volume: str) -> None:
    """Programs clone where they can: then content counts where it was first written, and in any case for the volume."""
    dovecote.volumes.limit(volume, CHAT, max_bytes=8 * MIB)
    with dovecote.sessions.create() as session:
        session.mounts.add(Mount(volume, AT))
        session.run(f"cd {AT} && echo x > f && mv f {CHAT}/ && cat {CHAT}/f && mv {CHAT}/f g && cat g", check=True)
        assert "cross-device" in session.run(f"cd {AT} && ln g {CHAT}/g").stderr
        clone = "for i in $(seq 20); do dd if=/dev/urandom of=h bs=1M count=6 && cp h anna/chat7/h$i || exit 7; done"
        assert session.run(f"cd {AT} && {clone}").exit_code == 7
        assert (dovecote.volumes.get(volume).used_bytes or 0) <= 64 * MIB


def test_another_tenant_sees_and_changes_no_limit(installation: Installation, dovecote: Dovecote, volume: str) -> None:
    dovecote.volumes.limit(volume, CHAT, max_bytes=8 * MIB)
    secret = installation.command("tenant", "create", f"p{volume[-20:]}").stdout.split()[-1]
    with installation.client(secret) as stranger:
        for name in (volume, dovecote.volumes.get(volume).id):
            for act in (
                lambda name=name: stranger.volumes.limits(name),
                lambda name=name: stranger.volumes.get_limit(name, CHAT),
                lambda name=name: stranger.volumes.lift_limit(name, CHAT),
                lambda name=name: stranger.volumes.limit(name, CHAT, max_bytes=32 * MIB),
                lambda name=name: stranger.sessions.create(mounts=[Mount(name, AT, CHAT, max_bytes=32 * MIB)]),
            ):
                with pytest.raises(NotFound):
                    act()
    assert [limit.max_bytes for limit in dovecote.volumes.limits(volume)] == [8 * MIB]


@pytest.mark.parametrize("path", ["..", "a//b", "a/../b", "a b", "%00", "/".join(["a"] * 17)])
def test_not_everything_is_a_path_with_a_limit(dovecote: Dovecote, volume: str, path: str) -> None:
    with pytest.raises(DovecoteError):
        dovecote.volumes.limit(volume, path, max_bytes=8 * MIB)
    assert dovecote.volumes.limits(volume) == []


def test_the_command_line_sets_lists_and_lifts_limits(
    installation: Installation, dovecote: Dovecote, volume: str
) -> None:
    assert installation.command("volume", "limit", volume, CHAT, "8M").stdout == f"{8 * MIB}\n"
    listed = installation.command("volume", "limits", volume).stdout
    assert CHAT in listed
    assert str(8 * MIB) in listed
    assert installation.command("volume", "unlimit", volume, CHAT).returncode == 0
    assert dovecote.volumes.limits(volume) == []
    refused = installation.command("volume", "unlimit", volume, CHAT)
    assert refused.returncode != 0
    assert "has no limit" in refused.stderr


def test_a_limit_that_was_recorded_and_not_set_is_set_after_a_kill() -> None:
    with running() as own:
        with own.client() as client:
            client.volumes.create("kept", max_bytes=64 * MIB)
            client.volumes.limit("kept", CHAT, max_bytes=48 * MIB)
            client.volumes.limit("kept", "ben", max_bytes=48 * MIB)
        own.kill()
        with sqlite3.connect(own.settings.data_dir / "dovecote.sqlite") as records:
            records.execute("UPDATE path_limits SET max_bytes = ?, is_settled = 0", (8 * MIB,))
        records.close()
        own.start()
        with own.client() as client, client.sessions.create() as session:
            session.mounts.add(Mount("kept", AT, CHAT))

            def is_refused() -> bool:
                return "quota exceeded" in session.run(f"{FILL} count=9; s=$?; rm -f {AT}/big; exit $s").stderr

            until(is_refused, "the limit of the record holds")
            assert {limit.max_bytes for limit in client.volumes.limits("kept")} == {8 * MIB}
        own.down()
        assert own.remains() == []
