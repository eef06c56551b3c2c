"""The installation's own templates as trees of its store: one made at the start, others when they are first used."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from dovecote.errors import Conflict, DovecoteError, NotFound
from dovecote.host.storage.python_template import build_code
from dovecote.host.storage.templates import BASE, Progress, build_base, given_up
from dovecote.host.storage.trees import Trees
from dovecote.model.trees import Inside, Template

log = logging.getLogger(__name__)

Build = Callable[[Path, Progress], Path]
BUILDS: Mapping[str, Build] = {BASE.name: build_base, "code": build_code}
PATIENCE = 40.0  # seconds that a request for one waits; making it goes on


@dataclass
class _Making:
    task: asyncio.Task[Template]
    step: str = "begun"


@dataclass
class OwnTemplates:
    """`made` are those that this host has; `names` those that it can have."""

    cache_dir: Path
    records: Path
    trees: Trees
    made: dict[str, Template] = field(default_factory=dict)
    _making: dict[str, _Making] = field(default_factory=dict)
    _given_up: threading.Event = field(default_factory=threading.Event)

    @property
    def names(self) -> frozenset[str]:
        return frozenset(BUILDS)

    async def ensure(self, name: str, *, patience: float | None = PATIENCE) -> Template:
        """Builds it and saves its tree, unless that is done. One build for all who ask; it outlives them.

        Raises NotFound (no_such_template), Conflict (template_not_ready) after `patience` seconds, and what fails.
        """
        if name in self.made:
            return self.made[name]
        if name not in BUILDS:
            raise NotFound(f"no template {name!r}", code="no_such_template")
        making = self._making.get(name)
        if making is None:
            making = self._making[name] = _Making(asyncio.ensure_future(self._make(name)))
            making.task.add_done_callback(lambda task: self._done(name, task))
        try:
            async with asyncio.timeout(patience):
                return await asyncio.shield(making.task)
        except TimeoutError:
            raise Conflict(
                f"template {name} is being made: {making.step}",
                code="template_not_ready",
                hint=f"try again in a minute, or watch `dovecote template prepare {name}`",
            ) from None

    def step(self, name: str) -> str:
        """How far making it is; empty when nobody makes it."""
        making = self._making.get(name)
        return making.step if making else ""

    async def stop(self) -> None:
        """Ends what is being built; nothing half-built is left."""
        self._given_up.set()
        tasks = [making.task for making in self._making.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _make(self, name: str) -> Template:
        def progress(line: str) -> None:
            log.info("%s", line)
            if name in self._making:
                self._making[name].step = line

        given_up.set(self._given_up)
        root = await asyncio.to_thread(BUILDS[name], self.cache_dir, progress)
        # The directory that holds the root is named by its recipe's digest.
        made_by = root.parent.name if root.name == "rootfs" else root.name
        record = self.records / f"{name}.json"
        known = read_record(record)
        if known is None or known["recipe"] != made_by or not await self._is_whole(known["digest"]):
            progress(f"saving template {name} as a tree")
            saved = await asyncio.to_thread(self.trees.save_directory, root)
            known = {"recipe": made_by, "digest": saved.digest}
            _write(record, known)
        inside = Inside(user=BASE.default_user, home=BASE.home, has_sudo=BASE.has_sudo, env=dict(BASE.env))
        made = self.made[name] = Template(name=name, digest=known["digest"], inside=inside)
        return made

    def _done(self, name: str, task: asyncio.Task[Template]) -> None:
        self._making.pop(name, None)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.warning("template %s cannot be made: %s", name, error)

    async def _is_whole(self, digest: str) -> bool:
        try:
            await asyncio.to_thread(self.trees.ensure_image, digest)
        except DovecoteError as error:
            log.warning("the template's tree is not whole, saving it again: %s", error)
            return False
        return True


def read_record(record: Path) -> dict[str, str] | None:
    try:
        body = json.loads(record.read_text())
        return {"recipe": str(body["recipe"]), "digest": str(body["digest"])}
    except (OSError, ValueError, KeyError):
        return None


def _write(record: Path, body: dict[str, str]) -> None:
    record.parent.mkdir(parents=True, exist_ok=True)
    temporary = record.with_suffix(".new")
    temporary.write_text(json.dumps(body))
    os.replace(temporary, record)
