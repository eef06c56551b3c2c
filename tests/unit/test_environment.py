"""Variables that no program can be given are refused before anything is made with them."""

from __future__ import annotations

import pytest

from dovecote.errors import Invalid
from dovecote.model.environment import MOST_BYTES, parse_env
from tests.unit.control_world import World

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize(
    "env",
    [{"": "x"}, {"a=b": "x"}, {"a\0": "x"}, {"a": "\0"}, {"a": "\ud800"}, {"\udcff": ""}, {"a": "x" * MOST_BYTES}],
)
async def test_what_is_no_variable_is_refused(world: World, env: dict[str, str]) -> None:
    with pytest.raises(Invalid):
        await world.sessions.create(world.tenant, env=env)
    assert world.host.instances == {}


def test_odd_names_and_texts_are_passed_on_as_they_are() -> None:
    env = {"a-b": "", "1x": "two\nlines", "ü": "="}
    assert parse_env(env) == env
