"""What one tenant's save found in the store already is told to nobody: it would show what others have."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest

import dovecote
from tests.unit.fake_rooms import Rooms

SOURCES = Path(dovecote.__file__).parent
# What a save added to the store: nothing, when another tenant has the same content. Sizes of one file before and after,
# which a comparison of snapshots names alike, tell of no store.
TELLING = ".new_bytes"
COMPARED = ("c.new_bytes", "each.new_bytes", "found.new_bytes")


@pytest.mark.anyio
async def test_no_answer_of_the_api_has_a_field_for_it() -> None:
    transport = httpx.ASGITransport(Rooms().api())
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as http:
        document = (await http.get("/v1/openapi.json")).json()
    assert document["paths"]
    shapes = document["components"]["schemas"]
    assert any("total_bytes" in shape.get("properties", {}) for shape in shapes.values())  # the tenant's own figure
    telling = [name for name, shape in shapes.items() if "new_bytes" in shape.get("properties", {})]
    assert [name for name in telling if "old_bytes" not in shapes[name]["properties"]] == []


def test_nothing_above_a_host_reads_it() -> None:
    """Not records, logs, metrics, client or commands either: it ends where `Saved` is handed to control."""
    wings = ("api", "agent", "cli", "control", "gateway", "sdk", "store")
    files = [path for wing in wings for path in (SOURCES / wing).rglob("*") if path.suffix in (".py", ".lua", ".html")]
    assert len(files) > 50
    assert [str(path) for path in files if TELLING in _without_comparisons(path)] == []


def _without_comparisons(path: Path) -> str:
    text = path.read_text("utf-8")
    for compared in COMPARED:
        text = text.replace(compared, "")
    return text
