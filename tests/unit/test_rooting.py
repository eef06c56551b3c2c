"""A memory that cannot be brought now is not one that is lost."""

from __future__ import annotations

from pathlib import Path

import pytest

from dovecote.errors import DovecoteError, StorageFailed
from dovecote.host.instances import rooting
from dovecote.host.instances.preparing import Parts


class Memories:
    def __init__(self, error: StorageFailed) -> None:
        self._error = error

    def bring(self, digest: str, place: Path) -> None:
        raise self._error


class Fails:
    """Whose memories fail with this code."""

    def __init__(self, code: str) -> None:
        self.memories = Memories(StorageFailed("no", code=code))


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("code", "heard"),
    [("corrupt", "restore_failed"), ("disk_full", "disk_full"), ("store_unreachable", "store_unreachable")],
)
async def test_only_a_spoiled_memory_is_given_up(tmp_path: Path, code: str, heard: str) -> None:
    parts: Parts = Fails(code)  # type: ignore[assignment]
    with pytest.raises(DovecoteError) as raised:
        await rooting._bring(parts, "memory", tmp_path)
    assert raised.value.code == heard
