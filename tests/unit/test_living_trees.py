"""Records say which trees are needed, and which sessions have ended."""

from __future__ import annotations

from pathlib import Path

import pytest

from dovecote.control.references import living_trees, records_identity, tree_references
from dovecote.errors import NotFound
from dovecote.model.records import Template
from dovecote.model.states import SessionState, TemplateState
from dovecote.store import open_store
from tests.contract.stores import NOW, A, session


@pytest.mark.anyio
async def test_templates_need_their_trees_ended_sessions_none_and_no_tenant_is_no_identity(tmp_path: Path) -> None:
    store = open_store(f"sqlite:///{tmp_path}/records.sqlite")
    await store.open()
    try:
        await store.migrate()
        with pytest.raises(NotFound):
            await records_identity(store)
        living = session(A, id="ses_a", tree="a" * 64)
        ended = session(A, id="ses_b", tree="b" * 64, state=SessionState.ENDED, ended_at=NOW, live_marker="ses_b")
        for each in (living, ended):
            await store.tenant(A).sessions.insert(each)
        for name, digest in (("new", None), ("site", "c" * 64)):
            template = Template(f"tpl_{name}", A, name, TemplateState.BUILDING, "site:1", NOW, NOW, digest)
            await store.tenant(A).templates.insert(template)
        trees, gone = await living_trees(store)
        assert (trees, gone) == (frozenset({"a" * 64, "c" * 64}), {"ses_b": NOW})
        assert set(await tree_references(store)) == trees
    finally:
        await store.close()
