"""Puts into the wheel what is made: the guest's program and the web shell's terminal, so that its user needs neither
compiler nor npm."""

from __future__ import annotations

import importlib
import platform
import sys
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class GuestHook(BuildHookInterface):  # type: ignore[type-arg]
    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if version == "editable":
            return  # a checkout builds it at its first start, into the cache directory
        sys.path[:0] = [str(Path(self.root) / "src"), str(Path(self.root) / "deploy")]
        importlib.import_module("dovecote.host.guest.build").package_guest()
        importlib.import_module("web").bring()
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-manylinux_2_17_{platform.machine()}"
