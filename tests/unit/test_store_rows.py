"""Records as rows, without a database."""

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pytest

from dovecote.errors import Invalid
from dovecote.model.records import Revision
from dovecote.model.sizes import NetworkPolicy
from dovecote.store.rows import render_json, row_reader, shapes, to_row
from dovecote.store.tables import KINDS, REVISIONS

REVISION = Revision(
    "rev_1", "ten_a", "fun_1", 1, "0f", "base", None, "small", "crun", NetworkPolicy(), None, {}, datetime.now(UTC)
)


def test_a_field_that_a_document_lacks_takes_its_default_and_an_unknown_one_is_left_out() -> None:
    """Two versions read each other's records while one replaces the other."""
    row = to_row(REVISIONS.shapes, REVISION)
    row["network"] = {"internet": False, "of_the_next_version": 1}
    assert row_reader(Revision, REVISIONS.shapes)(row.values()).network == NetworkPolicy(internet=False)


def test_a_field_without_a_rule_is_found_when_the_tables_are_made() -> None:
    @dataclass(frozen=True)
    class Odd:
        id: str
        one: complex

    with pytest.raises(AssertionError, match="no rule"):
        shapes(Odd)


def test_every_kind_has_an_owner_and_a_generation() -> None:
    for kind in KINDS:
        assert kind.owner.name == ("id" if kind.table.name == "tenants" else "tenant_id")
        assert "generation" in kind.table.c
        assert kind.order[-1] is kind.table.c.id


@pytest.mark.parametrize("text", ["嗨", "half \ud800 of one", "nul \0", "\u2028"])
def test_documents_keep_any_text(text: str) -> None:
    rendered = render_json({"text": text})
    assert json.loads(rendered) == {"text": text}
    rendered.encode()


def test_a_document_too_deep_is_refused() -> None:
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(Invalid):
        render_json(deep)
