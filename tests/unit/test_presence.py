"""What one tenant's save found in the store already is told to nobody: it would show what others have."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest

import dovecote
from tests.unit.fake_rooms import Rooms

SOURCES = Path(dovecote.__file__).parent
# What a save added to the store: nothing, when another tenant has the same content.
TELLING = "added_bytes"


@pytest.mark.anyio
async def test_no_answer_of_the_api_has_a_field_for_it() -> None:
    transport = httpx.ASGITransport(Rooms().api())
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as http:
        document = (await http.get("/v1/openapi.json")).json()
    assert document["paths"]
    shapes = document["components"]["schemas"]
    assert any("total_bytes" in shape.get("properties", {}) for shape in shapes.values())  # the tenant's own figure
    assert [name for name, shape in shapes.items() if TELLING in shape.get("properties", {})] == []


def test_nothing_above_a_host_reads_it() -> None:
    """Not records, logs, metrics, client or commands either: it ends where `Saved` is handed to control."""
    wings = ("api", "agent", "cli", "control", "gateway", "sdk", "store")
    files = [path for wing in wings for path in (SOURCES / wing).rglob("*") if path.suffix in (".py", ".lua", ".html")]
    assert len(files) > 50
    assert [str(path) for path in files if TELLING in path.read_text("utf-8")] == []
    below = (SOURCES / "host/instances/saving.py").read_text("utf-8")
    assert TELLING in below  # the name is the one that is meant
