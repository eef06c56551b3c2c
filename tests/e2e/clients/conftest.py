"""Run by a client's own interpreter, which knows nothing of Dovecote but the variables of `dovecote env e2b`."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from e2b import Sandbox


@pytest.fixture(scope="session")
def sandbox() -> Iterator[Sandbox]:
    """One that all checks share; each has files and commands of its own."""
    sandbox = Sandbox.create(timeout=900, envs={"OF_THE_SANDBOX": "yes"})
    yield sandbox
    sandbox.kill()
