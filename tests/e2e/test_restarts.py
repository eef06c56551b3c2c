"""Parts of Dovecote end at bad moments; sessions, running commands and saved files do not."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import sqlite3
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import httpx
import pytest

from dovecote.model.ids import random_text
from dovecote.sdk import Dovecote, DovecoteError, Session
from tests.e2e.installation import Installation, free_network, place, running, until

pytestmark = pytest.mark.e2e

SERVER = "python3 -u -m http.server $PORT --bind 0.0.0.0"


@pytest.fixture(scope="module")
def own() -> Iterator[Installation]:
    with running(quiet_after=30, tick=0.2, start_timeout=15) as there:
        yield there


@pytest.fixture
def client(own: Installation) -> Iterator[Dovecote]:
    with own.client() as client:
        yield client


def test_sessions_and_running_commands_survive_a_kill_of_dovecote(own: Installation, client: Dovecote) -> None:
    with client.sessions.create() as session:
        command = session.start("for i in $(seq 100); do echo tick $i; sleep 0.1; done")
        instance = session.instance().instance_id
        own.kill()
        own.start()
        assert session.refresh().state == "ready"
        assert session.instance().instance_id == instance
        text = "".join(getattr(event, "data", "") for event in command.output())
        assert text == "".join(f"tick {i}\n" for i in range(1, 101))


def test_warm_requests_pass_while_dovecote_is_dead(own: Installation, client: Dovecote) -> None:
    with client.sessions.create() as session:
        session.set_start(SERVER, 8000)
        with client.http_for(session.url(8000)) as web:
            assert web.get("/").status_code == 200
            own.kill()
            try:
                assert web.get("/").status_code == 200
            finally:
                own.start()
            assert web.get("/").status_code == 200


def test_a_killed_envoy_comes_back(own: Installation, client: Dovecote) -> None:
    with client.sessions.create() as session:
        session.set_start(SERVER, 8000)
        with client.http_for(session.url(8000)) as web:
            assert web.get("/").status_code == 200
        os.kill(envoy_pid(own), signal.SIGKILL)
        with client.http_for(session.url(8000)) as web:
            until(lambda: answers(web), "the gateway is back")


def envoy_pid(own: Installation) -> int:
    run = str(own.settings.run_dir)
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if words[0].endswith(b"envoy") and any(run.encode() in word for word in words):
            return int(process.name)
    raise AssertionError("no Envoy runs")


def answers(web: httpx.Client) -> bool:
    try:
        return web.get("/").status_code == 200
    except httpx.HTTPError:
        return False


def is_parking(own: Installation, session_id: str) -> bool:
    return session_state(own, session_id) == "parking"


def is_folding(own: Installation, _: str) -> bool:
    return any((own.settings.run_dir / "pool").glob("save-*"))


def has_new_pack(own: Installation, _: str) -> bool:
    """Of several that the save makes, so that it is not over with the first."""
    return packs(own) > 0


def packs(own: Installation) -> int:
    """How many packs are newer than the mark."""
    since = (own.directory / "mark").stat().st_mtime_ns
    found = (own.settings.data_dir / "objects/packs").glob("*/*")
    return sum("#" not in path.name and path.stat().st_mtime_ns > since for path in found)


@pytest.mark.parametrize("moment", [is_parking, is_folding, has_new_pack], ids=lambda moment: moment.__name__)
def test_a_kill_in_the_middle_of_a_save_loses_nothing(
    own: Installation, client: Dovecote, moment: Callable[[Installation, str], bool]
) -> None:
    with client.sessions.create() as session:
        session.run(
            "mkdir many && cd many && for i in $(seq 4000); do echo $i > f$i; done"
            " && for i in $(seq 16); do head -c 8M /dev/urandom > big$i; done && rm f7",
            check=True,
            timeout=120,
        )
        look = "ls many | md5sum; cat many/* | md5sum"
        before = session.run(look).stdout
        for _ in range(5):
            is_caught = killed_while_parking(own, session, moment)
            own.start()
            until(
                lambda: not is_folding(own, session.id), "what was cut short is cleared away, and what it began is done"
            )
            assert session.run(look, timeout=60).stdout == before
            if is_caught:
                break
        else:
            pytest.fail("it was never killed before the end of the save")
        assert session.park().state == "parked"
        assert session.run(look).stdout == before


def killed_while_parking(own: Installation, session: Session, moment: Callable[[Installation, str], bool]) -> bool:
    """Whether it was killed before the end of the save."""
    # What was written before may be saved by now: parking is to have something left to do.
    session.run("for i in $(seq 8); do head -c 8M /dev/urandom > more$i; done", check=True)
    (own.directory / "mark").touch()

    def park() -> None:
        with suppress(DovecoteError, httpx.HTTPError):
            session.park()

    parking = threading.Thread(target=park)
    parking.start()
    try:
        until(lambda: moment(own, session.id), f"the save is so far: {moment.__name__}", every=0.001)
    finally:
        own.kill()
        parking.join(30)
    # The save may have been parking's own or one of those that are made while it runs.
    assert session_state(own, session.id) in ("ready", "parking", "parked")
    return moment is is_parking or is_folding(own, session.id)


def session_state(own: Installation, session_id: str) -> str:
    with sqlite3.connect(own.settings.data_dir / "dovecote.sqlite") as records:
        return str(records.execute("select state from sessions where id = ?", (session_id,)).fetchone()[0])


def test_a_store_that_takes_no_writes_fails_the_save_and_nothing_else(own: Installation, client: Dovecote) -> None:
    objects = own.settings.data_dir / "objects"
    with client.sessions.create() as session:
        session.files.write("kept", b"not saved yet")
        own_mount(objects, read_only=True)
        try:
            with pytest.raises(DovecoteError) as caught:
                session.park()
            assert caught.value.code == "store_read_only"
            assert "on the host only" in session.refresh().reason
            assert session.files.read("kept") == b"not saved yet"
        finally:
            own_mount(objects, read_only=False)
        assert session.park().state == "parked"
        assert session.files.read("kept") == b"not saved yet"


def own_mount(path: Path, *, read_only: bool) -> None:
    """A bind mount over the directory that takes no writes: root is not stopped by permissions."""
    if read_only:
        subprocess.run(["mount", "--bind", str(path), str(path)], check=True, timeout=10)
        subprocess.run(["mount", "-o", "remount,bind,ro", str(path)], check=True, timeout=10)
    else:
        subprocess.run(["umount", "--lazy", str(path)], check=True, timeout=10)


def test_nothing_remains_after_down_and_sessions_are_there_after_up(own: Installation, client: Dovecote) -> None:
    parked = client.sessions.create()
    parked.files.write("a", b"parked")
    parked.park()
    live = client.sessions.create()
    live.files.write("b", b"live")
    own.down()
    assert own.remains() == []
    own.start()
    assert parked.files.read("a") == b"parked"
    assert live.files.read("b") == b"live"
    parked.delete()
    live.delete()


def test_a_backup_as_the_page_makes_it_brings_back_parked_and_live_sessions(
    own: Installation, client: Dovecote, tmp_path: Path
) -> None:
    page = (Path(__file__).parents[2] / "docs/how-to/operate.md").read_text()
    (line,) = re.findall(r"^tar --create .*$", page, re.MULTILINE)
    data, archive = own.settings.data_dir, tmp_path / "dovecote.tar"
    command = shlex.split(line.replace("/backup/dovecote.tar", str(archive)).replace("/var/lib/dovecote", str(data)))
    parked, live = client.sessions.create(), client.sessions.create()
    parked.files.write("a", b"parked")
    parked.park()
    live.files.write("b", b"live")
    own.down()
    try:
        subprocess.run(command, check=True, timeout=120)
        shutil.rmtree(data)
        data.mkdir()
        subprocess.run(["tar", "--extract", "--file", archive, "--directory", data], check=True, timeout=120)
    finally:
        own.start()
    assert parked.files.read("a") == b"parked"
    assert live.files.read("b") == b"live"
    parked.delete()
    live.delete()


def test_down_cleans_up_after_a_start_that_failed_because_its_network_is_taken() -> None:
    with place() as directory, free_network() as network:
        refused = Installation(directory, network=network)
        name = f"dvtest{random_text(6)}"
        subprocess.run(["ip", "link", "add", name, "up", "type", "veth"], check=True, timeout=10)
        try:
            subprocess.run(["ip", "route", "add", network, "dev", name], check=True, timeout=10)
            served = refused.command("serve")
            if served.returncode != 1 or "network_in_use" not in served.stderr:
                pytest.fail(f"this start should be refused: {served.stderr}")
            done = refused.command("down")
            assert done.returncode == 0, done.stderr
            assert refused.remains() == []
        finally:
            subprocess.run(["ip", "link", "del", name], check=True, timeout=10)
            refused.down()


def test_a_claim_that_would_eat_the_reserve_is_refused() -> None:
    with running(memory_reserve_bytes=1 << 60, pool_size=0) as poor:
        with poor.client() as client, pytest.raises(DovecoteError) as caught:
            client.sessions.create()
        assert (caught.value.status, caught.value.code) == (429, "no_memory")
        with poor.client() as client:
            assert client.sessions.list() == []


def test_two_tenants_see_nothing_of_one_another(own: Installation, client: Dovecote) -> None:
    done = own.command("tenant", "create", "other")
    assert done.returncode == 0, done.stderr
    secret = done.stdout.split()[-1]
    with client.sessions.create(key="mine") as session, own.client(api_key=secret) as stranger:
        assert stranger.sessions.list() == []
        for act in (
            lambda: stranger.sessions.get(session.id),
            lambda: stranger.sessions.get(session.id).run("true"),
        ):
            with pytest.raises(DovecoteError) as caught:
                act()
            assert caught.value.status == 404
        with stranger.sessions.create(key="mine") as theirs:
            assert theirs.id != session.id
