"""The kernel's bounds on watching are raised, and never lowered."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from dovecote.host.runtime.inotify import WANTED, ensure_room


def test_bounds_are_raised_and_higher_ones_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "max_user_instances").write_text("128\n")
    (tmp_path / "max_user_watches").write_text(f"{1 << 30}\n")
    ensure_room(tmp_path)
    for _ in range(2):
        assert int((tmp_path / "max_user_instances").read_text()) == WANTED["max_user_instances"]
        assert int((tmp_path / "max_user_watches").read_text()) == 1 << 30
        ensure_room(tmp_path)


def test_a_kernel_that_does_not_let_us_is_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        ensure_room(tmp_path)
    assert "max_user_instances" in caplog.text
