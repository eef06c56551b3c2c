"""Shapes of the client, read by the types of their fields."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

import pytest

from dovecote.sdk import (
    Activity,
    Affinity,
    Function,
    Hook,
    Hooks,
    Invoking,
    Mount,
    Network,
    Revision,
    Rules,
    SessionView,
    Sharing,
    Start,
)
from dovecote.sdk._activity import Breach, Reason
from dovecote.sdk._reading import read
from dovecote.sdk._shapes import Reinstall

AT = datetime(2026, 11, 28, 7, tzinfo=UTC)
RULES = Rules(["node_modules"], [], "npm ci")
REVISION = Revision(
    *("rev_1", 3, True, "base", "abc", "small", "crun"),
    network=Network(),
    env={},
    start=Start("serve", 80),
    mounts=[Mount("data", "/data")],
    rules=RULES,
    sharing=Sharing(20),
    hooks=Hooks(pre_stop=Hook(command="save")),
    created_at=AT,
)
FUNCTION = Function(
    *("fun_1", "work", "http://a", "http://b", None, False),
    Affinity(["cookie"]),
    "x-dovecote-session",
    Invoking(),
    "rev_1",
    REVISION,
    AT,
)


def as_json(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: as_json(each) for name, each in value.items()}
    if isinstance(value, list):
        return [as_json(each) for each in value]
    return value.isoformat() if isinstance(value, datetime) else value


@pytest.mark.parametrize("shape", [FUNCTION, REVISION, RULES], ids=["function", "revision", "rules"])
def test_a_shape_comes_back_as_it_was(shape: Any) -> None:
    assert read(type(shape), as_json(asdict(shape))) == shape


def test_one_name_may_be_two_things() -> None:
    """A session's `reinstall` is what was run, a function's is the command."""
    ran = Reinstall("done", ["app"], "npm ci", 0, "")
    session: dict[str, Any] = {each.name: None for each in fields(SessionView)}
    assert read(SessionView, session | {"reinstall": asdict(ran)}).reinstall == ran
    assert read(Rules, {"reinstall": "npm ci"}).reinstall == "npm ci"


def test_lists_hold_shapes_and_times_may_be_missing() -> None:
    document = {
        **{"state": "ready", "why": "", "unused_for_seconds": None, "window_seconds": 1.0, "is_promised": True},
        **{"awake_until": None, "breaches": 1, "last_breach": {"at": "2026-11-28T07:00:00+00:00", "reason": "full"}},
        "reasons": [{"what": "lease", "text": "asked", "count": 1, "until": "2026-11-28T07:00:00Z"}],
    }
    told = read(Activity, document)
    assert (told.last_breach, told.reasons) == (Breach(AT, "full"), [Reason("lease", "asked", 1, None, AT)])


@dataclass(frozen=True)
class Newer:
    name: str


def test_what_a_newer_server_says_is_passed_over() -> None:
    assert read(Newer, {"name": "a", "unheard": {"of": 1}}) == Newer("a")


def test_no_shape_has_a_field_that_is_one_of_several_shapes() -> None:
    """What is read is decided by the type alone."""
    import dovecote.sdk as sdk

    shapes = [each for each in vars(sdk).values() if hasattr(each, "__dataclass_fields__")]
    assert len(shapes) > 30
    for shape in shapes:
        for name, hint in get_type_hints(shape).items():
            if get_origin(hint) is UnionType:
                assert len(set(get_args(hint)) - {type(None)}) == 1, f"{shape.__name__}.{name}"
