"""Waiting for a descriptor."""

import fcntl
import os
import subprocess

from dovecote.descriptors import is_readable

MANY = 1500  # a server with some hundred instances has more


def test_descriptors_of_any_number_are_waited_for() -> None:
    reading, writing = os.pipe()
    high = fcntl.fcntl(reading, fcntl.F_DUPFD_CLOEXEC, MANY)
    try:
        assert not is_readable(high, within=0)
        os.write(writing, b"x")
        assert is_readable(high, within=10)
    finally:
        for each in (reading, writing, high):
            os.close(each)


def test_a_process_that_ends_is_waited_for() -> None:
    process = subprocess.Popen(["sleep", "60"])
    pidfd = os.pidfd_open(process.pid)
    try:
        assert not is_readable(pidfd, within=0)
        process.kill()
        assert is_readable(pidfd, within=10)
    finally:
        process.wait(10)
        os.close(pidfd)
