"""A few rounds of `make stress`, so that it cannot rot; hundreds find what these do not."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

import pytest
from stress.run import Options, rounds
from stress.world import World, world

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def there() -> Iterator[World]:
    with world(s3=False) as made:
        yield made


@pytest.mark.parametrize("kinds", [("park-cut", "host"), ("takeover",)], ids="+".join)
def test_what_was_promised_is_there_after_every_blow(there: World, kinds: tuple[str, ...]) -> None:
    options = Options(seed=7, sessions=1, kinds=kinds, npm=False)
    for outcome in islice(rounds(there, options, say=print), len(kinds)):
        assert outcome.fault == ""
        assert outcome.steps > 0
        assert len(outcome.points) == 1
