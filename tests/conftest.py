"""What every test may ask for."""

from pathlib import Path

import pytest


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Real parts share the machine with others: a failed test has a second try, and the summary names it (RERUN)."""
    for item in items:
        if item.path.relative_to(Path(__file__).parent).parts[0] != "unit":
            item.add_marker(pytest.mark.flaky(reruns=1))
