"""When sessions sleep, and why: leases, commands, terminals, streams, traffic with the outside, hooks, promises."""

from __future__ import annotations

import time
from pathlib import Path

import httpx
import pytest

from dovecote.sdk import Activity, Dovecote, DovecoteError, HookRun, Network, Session
from tests.e2e.installation import Installation, running, until

pytestmark = pytest.mark.e2e


def _state(session: Session) -> str:
    return session.refresh().state


def _whats(session: Session) -> list[str]:
    return [each.what for each in session.activity().reasons]


def _becomes(session: Session, state: str) -> Activity:
    until(lambda: _state(session) == state, f"the session becomes {state}")
    return session.activity()


def _run_of(activity: Activity, hook: str) -> HookRun:
    return next(run for run in activity.hooks if run.hook == hook)


def test_each_stage_says_why(dovecote: Dovecote) -> None:
    with dovecote.sessions.create(idle_after=4.0) as session:
        activity = session.activity()
        assert activity.state == "ready"
        assert [each.move for each in activity.next][-1] == "park"
        activity = _becomes(session, "frozen")
        assert (activity.why, activity.reasons) == ("frozen: quiet", [])
        activity = _becomes(session, "parked")
        assert activity.why.startswith("parked: idle for")
        assert [move.state for move in activity.moves][:2] == ["starting", "ready"]
        session.delete()
        assert session.activity().why == "ended: deleted"


def test_a_lease_keeps_awake_until_its_end(dovecote: Dovecote) -> None:
    with dovecote.sessions.create() as session:
        _becomes(session, "frozen")
        assert session.lease(4.0).state == "ready"
        assert _whats(session) == ["lease"]
        ends = session.activity().reasons[0].until
        assert ends is not None
        _becomes(session, "frozen")
        assert time.time() >= ends.timestamp()
        session.lease(600)
        session.release()
        _becomes(session, "frozen")
        with pytest.raises(DovecoteError) as caught:
            session.lease(86400)
        assert caught.value.code == "lease_too_long"


def test_a_command_keeps_awake_and_is_named(dovecote: Dovecote) -> None:
    with dovecote.sessions.create() as session:
        command = session.start("exec sleep 600")
        until(lambda: _whats(session) == ["commands"], "the command is the reason")
        [reason] = session.activity().reasons
        assert reason.text == "`sleep 600` runs"
        assert reason.since is not None
        command.signal("SIGKILL")
        _becomes(session, "frozen")


def test_a_terminal_keeps_awake(dovecote: Dovecote) -> None:
    with dovecote.sessions.create() as session, session.terminal():
        until(lambda: "commands" in _whats(session), "the terminal is a reason")


def test_a_connection_on_which_nothing_happens_keeps_awake(dovecote: Dovecote, installation: Installation) -> None:
    server = (
        "import http.server as h, threading\n"
        "class H(h.BaseHTTPRequestHandler):\n"
        " def do_GET(s):\n"
        "  s.send_response(200); s.end_headers(); s.wfile.write(b'x'); s.wfile.flush()\n"
        "  if s.path == '/stream': threading.Event().wait()\n"
        "h.ThreadingHTTPServer(('0.0.0.0', 8000), H).serve_forever()\n"
    )
    with dovecote.sessions.create() as session:
        session.files.write("server.py", server)
        session.set_start("python3 -u server.py", 8000)
        address = session.refresh().address
        assert address is not None
        named = {"host": httpx.URL(address).netloc.decode()}
        with httpx.stream("GET", f"{installation.url}/stream", headers=named, timeout=30) as stream:
            assert next(stream.iter_bytes()) == b"x"
            until(lambda: _whats(session) == ["requests"], "the stream is the only reason")
            assert _state(session) == "ready"


def test_traffic_with_the_outside_keeps_awake_by_policy(dovecote: Dovecote) -> None:
    """Names of the host's resolver: the one thing outside that every machine has."""
    with dovecote.sessions.create() as session:
        session.set_network(Network(outbound_keeps_awake=True))
        packet = "python3 -c \"import socket; socket.socket(2, 2).sendto(b'x', ('169.254.1.1', 53))\""
        session.run(packet, check=True)
        assert "outbound" in _whats(session)
        session.set_network(Network())
        assert "outbound" not in _whats(session)
        _becomes(session, "frozen")


HOOKS = {
    "initialize": {"command": "echo begun >> /home/user/turns"},
    "pre_freeze": {"command": "echo no room; exit 3"},
    "pre_stop": {"path": "/leave"},
}


def test_hooks_run_at_their_turns_and_their_failures_are_told(dovecote: Dovecote, installation: Installation) -> None:
    body = {
        "name": f"hooked-{time.time_ns()}",
        "start": {"command": "python3 -u -m http.server $PORT --bind 0.0.0.0", "port": 8000},
        "hooks": HOOKS,
    }
    key = {"authorization": f"Bearer {installation.api_key}"}
    made = httpx.post(f"{installation.url}/v1/functions", json=body, headers=key, timeout=30)
    assert made.status_code == 201, made.text
    with dovecote.sessions.create(function=body["name"]) as session:  # type: ignore[arg-type]
        session.wake()
        session.wake()
        assert session.files.read_text("turns") == "begun\n"
        activity = _becomes(session, "frozen")
        assert _run_of(activity, "initialize").is_ok
        assert "exit code 3: no room" in _run_of(activity, "pre_freeze").reason
        session.park()
        assert _run_of(session.activity(), "pre_stop").reason == "it answered 404"
        assert session.files.read_text("turns") == "begun\n"


HOG = (
    "setsid python3 -c \"x = b'x' * (1900 << 20); open('full', 'w'); import time; time.sleep(600)\""
    " >/dev/null 2>&1 </dev/null & for i in $(seq 300); do test -e full && break; sleep 0.1; done; test -e full"
)


def test_promised_windows_are_kept_and_others_make_room() -> None:
    lines = Path("/proc/meminfo").read_text().splitlines()
    available = next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable")) << 10
    # 2 GiB are kept ready for each promised one: there is room for two, where the one that uses 1.9 GiB goes.
    reserve = available - (5200 << 20)
    with running(quiet_after=0.5, tick=0.2, memory_reserve_bytes=reserve) as there, there.client() as client:
        best = client.sessions.create(spec="medium")
        best.run(f"echo kept > note; {HOG}", check=True)
        promised: list[Session] = []
        refused: DovecoteError | None = None
        until(lambda: _state(best) == "frozen", "it is quiet")
        until(lambda: best.instance().usage["memory_bytes"] > 1800 << 20, "it has been measured")
        while refused is None and len(promised) < 5:
            try:
                promised.append(client.sessions.create(tier="vip", spec="large"))
            except DovecoteError as error:
                refused = error
        assert refused is not None
        assert (refused.code, refused.status, len(promised)) == ("no_memory", 429, 2)
        assert _state(best) == "parked"
        assert "its memory was needed" in best.activity().why
        assert all(each.refresh().state in ("ready", "frozen") for each in promised)
        assert [each.activity().breaches for each in promised] == [0, 0]
        promised[0].delete()
        assert best.files.read_text("note") == "kept\n"
