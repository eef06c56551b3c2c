"""Installations that several tests share; each test makes its own sessions."""

from collections.abc import Iterator

import pytest

from dovecote.sdk import Dovecote
from tests.e2e.installation import Installation, free_port, running

collect_ignore = ["clients"]  # run by interpreters that have those clients, see test_e2b_clients.py


@pytest.fixture(scope="session")
def installation() -> Iterator[Installation]:
    with running(quiet_after=1.5, tick=0.2, start_timeout=15, tls_port=free_port()) as there:
        yield there


@pytest.fixture
def dovecote(installation: Installation) -> Iterator[Dovecote]:
    with installation.client() as client:
        yield client
