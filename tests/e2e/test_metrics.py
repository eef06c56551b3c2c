"""What a sandbox used: what it did is seen in the figures, and only its owner sees them."""

from __future__ import annotations

import subprocess
import sys

import pytest

from dovecote.sdk import Dovecote, NotFound
from tests.e2e.installation import Installation, until

pytestmark = pytest.mark.e2e

MIB = 1 << 20


def test_what_a_sandbox_does_is_seen(installation: Installation, dovecote: Dovecote) -> None:
    with dovecote.sessions.create(spec="nano") as session:
        before = session.metrics()[-1]  # up to now, however short it has lived
        assert (before.cpus, before.max_memory_bytes, before.max_disk_bytes) == (0.25, 256 * MIB, 512 * MIB)
        session.run("dd if=/dev/urandom of=big bs=1M count=40 conv=fsync", check=True)
        busy = session.start("python3 -c 'held = bytearray(60 << 20)\nwhile True: pass'")
        until(lambda: session.metrics()[-1].cpu_percent > 50, "a busy program is seen")
        until(lambda: session.metrics()[-1].memory_bytes > 60 * MIB, "what it holds is seen")
        busy.signal("SIGKILL")
        until(lambda: session.metrics()[-1].cpu_percent < 20, "its end is seen")
        samples = session.metrics()
        assert all(0 <= each.cpu_percent < 150 for each in samples)
        assert [each.at for each in samples] == sorted({each.at for each in samples})
        until(lambda: session.metrics()[-1].disk_bytes >= before.disk_bytes + 39 * MIB, "its file is seen")
        session.park()
        kept = session.metrics()
        assert len(kept) >= len(samples)
        assert session.metrics() == kept  # nothing is added while it rests
        assert session.refresh().state == "parked"
        session.run("true")
        until(lambda: len(session.metrics()) > len(kept), "it is looked at again")
        environ = installation.environ | {"DOVECOTE_URL": installation.url, "DOVECOTE_API_KEY": installation.api_key}
        shown = subprocess.run(
            [sys.executable, "-m", "dovecote", "sandbox", "metrics", session.id, "--last", "2"],
            env=environ,
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        ).stdout.splitlines()
        assert shown[0].split("\t")[:2] == ["at", "cpu %"]
        assert [line.split("\t")[4] for line in shown[1:]] == [str(256 * MIB)] * 2


def test_nobody_else_sees_them(installation: Installation, dovecote: Dovecote) -> None:
    made = installation.command("tenant", "create", "neighbour-of-figures")
    key = next(word for word in made.stdout.split() if word.startswith("dvc_"))
    with dovecote.sessions.create() as session, installation.client(key) as other:
        with pytest.raises(NotFound):
            other._wire.call("GET", f"/v1/sessions/{session.id}/metrics")
        assert session.metrics()
