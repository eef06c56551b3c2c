"""Which process is meant, and whether it still runs."""

from __future__ import annotations

import os
import signal
import subprocess

from dovecote.host.processes import is_alive, process_started


def test_a_process_is_alive_until_it_ends_also_before_it_is_reaped() -> None:
    process = subprocess.Popen(["sleep", "60"])
    try:
        since = process_started(process.pid)
        assert since is not None
        assert is_alive(process.pid, since)
        assert not is_alive(process.pid, since + 1)  # another process has the number now
        process.send_signal(signal.SIGKILL)
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert process_started(process.pid) is None
        assert not is_alive(process.pid, since)
    finally:
        process.kill()
        process.wait(10)
    assert not is_alive(process.pid, None)


def test_a_name_with_brackets_misleads_nobody() -> None:
    """Code in a sandbox chooses what its processes are called."""
    script = "open('/proc/self/comm', 'w').write(') Z 1 (x) Z'); print(flush=True); input()"
    process = subprocess.Popen(["python3", "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        process.stdout.readline()
        since = process_started(process.pid)
        assert since is not None
        assert is_alive(process.pid, since)
    finally:
        process.kill()
        process.communicate(timeout=10)
