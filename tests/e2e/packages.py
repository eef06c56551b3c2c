"""Packages of this Python as files that a sandbox can use: it needs no index then."""

from __future__ import annotations

import shutil
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement


def copy_packages(name: str, directory: Path) -> None:
    """The package and what it needs."""
    for each in needed(name, set()):
        for file in distribution(each).files or ():
            if ".." not in file.parts and file.suffix != ".pyc":
                target = directory / file
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(str(file.locate()), target)


def needed(name: str, known: set[str], extras: frozenset[str] = frozenset()) -> set[str]:
    """The package and what it needs, as far as it is installed here."""
    try:
        requires = distribution(name).requires or []
    except PackageNotFoundError:
        return known
    known.add(name)
    for each in map(Requirement, requires):
        is_wanted = each.marker is None or any(each.marker.evaluate({"extra": extra}) for extra in {"", *extras})
        if is_wanted and (each.name not in known or each.extras):
            needed(each.name, known, frozenset(each.extras))
    return known
