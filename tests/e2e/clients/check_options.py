"""What the Python client can say and seldom does: options of its calls, one after the other."""

from __future__ import annotations

import inspect
import io
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import httpx
import pytest
from e2b import Sandbox, SandboxException, SandboxQuery, SandboxState, Volume


def needs(method: Callable[..., object], option: str) -> None:
    """Skips for a version of the client that does not know the option."""
    if option not in inspect.signature(method).parameters:
        pytest.skip(f"this version has no {option}")


def has(call: Callable[[], object], within: float = 30.0) -> None:
    deadline = time.monotonic() + within
    while not call():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.fixture
def own() -> Iterator[Sandbox]:
    made = Sandbox.create(timeout=120)
    yield made
    made.kill()


# -- sandboxes


def test_the_same_idempotency_key_is_the_same_sandbox() -> None:
    needs(Sandbox.create, "idempotency_key")
    key = uuid4().hex
    first = Sandbox.create(timeout=60, idempotency_key=key)
    again = Sandbox.create(timeout=60, idempotency_key=key)
    assert first.sandbox_id == again.sandbox_id
    with pytest.raises(Exception, match=r"(?i)key"):
        Sandbox.create(timeout=61, idempotency_key=key)
    first.kill()


def test_lists_have_an_order_a_page_to_go_on_from_and_a_beginning() -> None:
    mark = uuid4().hex
    began = datetime.now(UTC)
    made = [Sandbox.create(timeout=60, metadata={"mark": mark}) for _ in range(3)]
    ids = [each.sandbox_id for each in made]
    try:
        mine = SandboxQuery(metadata={"mark": mark})
        if "order" in inspect.signature(Sandbox.list).parameters:
            assert [each.sandbox_id for each in Sandbox.list(query=mine, order="asc").next_items()] == ids
            assert [each.sandbox_id for each in Sandbox.list(query=mine, order="desc").next_items()] == ids[::-1]
        pages = Sandbox.list(query=mine, limit=1)
        pages.next_items()
        rest = Sandbox.list(query=mine, next_token=pages.next_token)
        assert [each.sandbox_id for each in rest.next_items()] == ids[::-1][1:]
        known = inspect.signature(SandboxQuery).parameters
        if "template" in known:
            found = Sandbox.list(query=SandboxQuery(metadata={"mark": mark}, template="base")).next_items()
            assert len(found) == 3
        for name in ("started_after", "start_time_from"):
            if name in known:
                since = SandboxQuery(metadata={"mark": mark}, **{name: began - timedelta(minutes=1)})
                assert len(Sandbox.list(query=since).next_items()) == 3
                later = SandboxQuery(metadata={"mark": mark}, **{name: began + timedelta(minutes=1)})
                assert Sandbox.list(query=later).next_items() == []
    finally:
        for each in made:
            each.kill()


def test_metrics_are_of_a_span(own: Sandbox) -> None:
    has(lambda: own.get_metrics())
    now = datetime.now(UTC)
    assert own.get_metrics(start=now - timedelta(minutes=10), end=now + timedelta(minutes=1))
    assert own.get_metrics(start=now - timedelta(days=2), end=now - timedelta(days=1)) == []
    assert Sandbox.get_metrics(own.sandbox_id)


@pytest.mark.parametrize("how", [{"keep_memory": False}, {"mode": "filesystem"}])
def test_a_pause_may_keep_the_files_only(own: Sandbox, how: dict[str, object]) -> None:
    needs(own.pause, next(iter(how)))
    own.files.write("kept", "it")
    own.commands.run("sleep 600", background=True)
    assert own.pause(**how)
    again = Sandbox.connect(own.sandbox_id, timeout=60)
    assert again.files.read("kept") == "it"
    assert again.commands.list() == []


@pytest.mark.parametrize("how", [{"keep_memory": True}, {"mode": "full"}, {"strict": True}])
def test_a_pause_may_say_that_it_keeps_all(own: Sandbox, how: dict[str, object]) -> None:
    needs(own.pause, next(iter(how)))
    running = own.commands.run("sleep 600", background=True)
    assert own.pause(**how)
    again = Sandbox.connect(own.sandbox_id, timeout=60)
    assert running.pid in [each.pid for each in again.commands.list()]


def test_what_a_paused_one_kept_may_be_left_when_it_is_connected_to(own: Sandbox) -> None:
    needs(Sandbox.connect, "on_resume")
    own.files.write("kept", "it")
    own.commands.run("sleep 600", background=True)
    assert own.pause()
    again = Sandbox.connect(own.sandbox_id, timeout=60, on_resume="reboot")
    assert again.files.read("kept") == "it"
    assert again.commands.list() == []


def test_several_forks_are_made_at_once(own: Sandbox) -> None:
    if not hasattr(own, "fork"):
        pytest.skip("this version has none")
    own.files.write("note", "both")
    forks = own.fork(count=3, timeout=60)
    assert len({each.sandbox_id for each in forks}) == 3
    assert [each.files.read("note") for each in forks] == ["both"] * 3
    for each in forks:
        each.kill()


def test_snapshots_have_pages(own: Sandbox) -> None:
    if not hasattr(own, "list_snapshots"):
        pytest.skip("this version has none")
    taken = [own.create_snapshot().snapshot_id for _ in range(3)]
    pages = own.list_snapshots(limit=2)
    seen = [each.snapshot_id for each in pages.next_items()]
    assert (len(seen), pages.has_next) == (2, True)
    rest = own.list_snapshots(next_token=pages.next_token)
    seen += [each.snapshot_id for each in rest.next_items()]
    assert sorted(seen) == sorted(taken)
    for each in taken:
        assert Sandbox.delete_snapshot(snapshot_id=each)


def test_calls_of_the_class_do_what_those_of_a_sandbox_do(own: Sandbox) -> None:
    Sandbox.set_timeout(own.sandbox_id, 300)
    left = Sandbox.get_info(own.sandbox_id).end_at - datetime.now(UTC)
    assert timedelta(seconds=200) < left <= timedelta(seconds=301)
    assert Sandbox.pause(own.sandbox_id)
    assert Sandbox.get_info(own.sandbox_id).state == SandboxState.PAUSED
    assert Sandbox.connect(own.sandbox_id).is_running()
    assert Sandbox.kill(own.sandbox_id)
    assert not Sandbox.kill(own.sandbox_id)


def test_what_is_not_offered_is_refused_and_not_ignored() -> None:
    with pytest.raises(SandboxException, match="mcp"):
        Sandbox.create(mcp={"exa": {"apiKey": "x"}}, template="base")
    with pytest.raises(SandboxException, match="no_traffic_token"):
        Sandbox.create(network={"allow_public_traffic": False})


def test_a_port_is_reached_by_its_host(own: Sandbox) -> None:
    own.commands.run("python3 -m http.server 8000 --bind 0.0.0.0", background=True)
    own.commands.run("until curl -sf localhost:8000 -o /dev/null; do sleep 0.1; done")
    host = own.get_host(8000)
    name, _, port = host.partition(":")
    answer = httpx.get(f"http://127.0.0.1:{port or 80}/", headers={"host": host})
    assert answer.status_code == 200, name
    assert "Directory listing" in answer.text


# -- files and commands


def test_content_is_sent_as_it_is_or_as_a_form(sandbox: Sandbox) -> None:
    needs(sandbox.files.write, "use_octet_stream")
    for raw in (True, False):
        sandbox.files.write("raw", b"\x00\xff", use_octet_stream=raw)
        assert bytes(sandbox.files.read("raw", format="bytes")) == b"\x00\xff"
        sandbox.files.write("raw", io.BytesIO(b"stream"), use_octet_stream=raw)
        assert sandbox.files.read("raw") == "stream"
        sandbox.files.write_files([{"path": "raw-1", "data": "one"}, {"path": "raw-2", "data": b"two"}])
        assert sandbox.files.read("raw-1") + sandbox.files.read("raw-2") == "onetwo"
    assert b"".join(sandbox.files.read("raw", format="stream")) == b"stream"


def test_metadata_stays_with_a_file(sandbox: Sandbox) -> None:
    needs(sandbox.files.write, "metadata")
    sandbox.files.write("labelled", "x", metadata={"origin": "here"})
    assert sandbox.files.get_info("labelled").metadata == {"origin": "here"}


def test_a_watch_may_be_asked_for_on_any_mount(sandbox: Sandbox) -> None:
    needs(sandbox.files.watch_dir, "allow_network_mounts")
    sandbox.files.make_dir("watched-options")
    watch = sandbox.files.watch_dir("watched-options", recursive=True, allow_network_mounts=True)
    sandbox.files.write("watched-options/deep/note", "x")
    seen: list[str] = []

    def all_seen() -> bool:
        seen.extend(each.name for each in watch.get_new_events())
        return "deep/note" in seen

    has(all_seen)
    watch.stop()


def test_output_may_be_told_and_not_kept(sandbox: Sandbox) -> None:
    needs(sandbox.commands.run, "retain_output")
    said: list[str] = []
    done = sandbox.commands.run("seq 1000", on_stdout=said.append, retain_output=False)
    assert (done.stdout, "".join(said).split()[-1]) == (None, "1000")
    running = sandbox.commands.run("seq 10", background=True)
    assert running.wait().stdout.split()[-1] == "10"


def test_input_is_streamed(sandbox: Sandbox) -> None:
    if not hasattr(sandbox.commands, "stream_input"):
        pytest.skip("this version has none")
    running = sandbox.commands.run("wc -c", background=True, stdin=True)
    running.send_stdin("a" * 100_000)
    running.close_stdin()
    assert running.wait().stdout.strip() == "100000"


def test_times_of_a_request_are_bounded(sandbox: Sandbox) -> None:
    assert sandbox.files.exists("/etc", request_timeout=20)
    assert sandbox.commands.list(request_timeout=20) is not None
    assert sandbox.is_running(request_timeout=20)
    assert sandbox.commands.run("echo x", request_timeout=20).stdout == "x\n"


def test_headers_are_told_without_the_content(sandbox: Sandbox) -> None:
    sandbox.files.write("asked-about", "12345")
    url = sandbox.download_url("asked-about")
    asked, got = httpx.head(url), httpx.get(url)
    assert (asked.status_code, asked.content, got.text) == (200, b"", "12345")
    for name in ("content-length", "content-type", "last-modified", "accept-ranges", "content-disposition"):
        assert asked.headers[name] == got.headers[name], name
    assert asked.headers["content-length"] == "5"
    assert httpx.head(sandbox.download_url("no-such-file")).status_code == 404
    part = httpx.head(url, headers={"range": "bytes=1-2"})
    assert (part.status_code, part.headers["content-range"]) == (206, "bytes 1-2/5")
    named = {"e2b-sandbox-id": sandbox.sandbox_id, "e2b-sandbox-port": "49983"}
    health = httpx.head(url.partition("/files")[0] + "/health", headers=named)
    assert (health.status_code, health.content) == (204, b"")


# -- volumes


def test_a_volume_is_found_again_and_its_files_in_every_form() -> None:
    volume = Volume.create(f"vol-{uuid4()}")
    try:
        again = Volume.connect(volume_id=volume.volume_id)
        assert (again.name, bool(again.token)) == (volume.name, bool(volume.token))
        again.write_file("raw", b"\x00\xff")
        assert bytes(again.read_file("raw", format="bytes")) == b"\x00\xff"
        again.write_file("stream", io.BytesIO(b"streamed"))
        assert b"".join(again.read_file("stream", format="stream")) == b"streamed"
        again.make_dir("/deep/er", force=True, mode=0o711, uid=1000, gid=1000)
        assert again.get_info("/deep/er").mode & 0o777 == 0o711
        with pytest.raises(Exception, match=r"(?i)exist"):
            again.make_dir("/deep/er")
        again.update_metadata("/deep", uid=1000, gid=1000)
        assert again.get_info("/deep").uid == 1000
        again.remove("/deep")
        assert not again.exists("/deep/er")
    finally:
        assert Volume.destroy(volume_id=volume.volume_id)
    with pytest.raises(Exception, match=r"(?i)not found"):
        Volume.connect(volume_id=volume.volume_id)
