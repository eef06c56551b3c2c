"""Builds that E2B's clients asked for, and what became of them: they look again and again instead of listening."""

from __future__ import annotations

import asyncio
import re
import tempfile
from collections import OrderedDict
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from uuid import uuid4

from dovecote.api.e2b.recipes import Build, as_said, pack, source_of
from dovecote.api.rooms import Rooms
from dovecote.background import Background
from dovecote.control.templates import Done, Event, Prepared, Printed
from dovecote.errors import DovecoteError, Failed, Invalid, NoCapacity, NotFound

MOST = 1000
MOST_OF_TENANT = 50
MOST_LINES = 10_000  # of what one build printed
LONGEST_LINE = 2000
PIECE = 1 << 20
BASE_STEP, LAST_STEP = "base", "finalize"  # as clients know the first and the last one
_STEP = re.compile(r"(\d+)/\d+ ")
_ANSI = re.compile(r"\x1b(\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(\x07|\x1b\\)|[@-_])")


@dataclass(frozen=True)
class Line:
    at: datetime
    level: str
    message: str
    step: str


@dataclass
class Asked:
    """`tags` are other names that it gets when it is made. `state` is waiting, building, ready or error."""

    tenant_id: str
    name: str
    tags: tuple[str, ...]
    spec: str
    build_id: str = field(default_factory=lambda: str(uuid4()))
    state: str = "waiting"
    reason: str = ""
    step: str = BASE_STEP
    lines: list[Line] = field(default_factory=list)
    dropped: bool = False

    def say(self, message: str, level: str = "info") -> None:
        if len(self.lines) >= MOST_LINES:
            if not self.dropped:
                self.lines.append(Line(datetime.now(UTC), "warn", "[output was dropped]", self.step))
            self.dropped = True
            return
        text = _ANSI.sub("", message)[:LONGEST_LINE]
        self.lines.append(Line(datetime.now(UTC), level, text, self.step))


class Builds:
    """Kept in this process; the template's record says in the end what a restart forgets here."""

    def __init__(self, rooms: Rooms) -> None:
        self._rooms = rooms
        self._asked: OrderedDict[str, Asked] = OrderedDict()
        self._background = Background()

    def ask(self, tenant_id: str, name: str, tags: tuple[str, ...], spec: str) -> Asked:
        """Raises NoCapacity (too_many)."""
        mine = [each for each in self._asked.values() if each.tenant_id == tenant_id]
        for full, among in ((MOST_OF_TENANT, mine), (MOST, list(self._asked.values()))):
            if len(among) >= full:
                oldest = next((each for each in among if each.state != "building"), None)
                if oldest is None:
                    raise NoCapacity(f"{full} builds are under way", code="too_many", retry_after=10)
                self._asked.pop(oldest.build_id, None)
        asked = Asked(tenant_id, name, tags, spec)
        self._asked[asked.build_id] = asked
        return asked

    def get(self, tenant_id: str, build_id: str) -> Asked:
        """Raises NotFound (no_such_build)."""
        found = self._asked.get(build_id)
        if found is None or found.tenant_id != tenant_id:
            raise NotFound(f"no build {build_id[:60]!r}", code="no_such_build", hint="ask for a new one")
        return found

    def begin(self, asked: Asked, build: Build) -> None:
        """Goes on by itself. Raises Invalid, Unsupported, NotFound (no_such_source) for what cannot be a build."""
        if asked.state != "waiting":
            raise Invalid(f"the build is {asked.state} already", code="not_waiting")
        source = source_of(build)
        archives: dict[str, Path] = {}
        for name in build.hashes:
            path = self._rooms.templates.sent.find(asked.tenant_id, name)
            if path is None:
                raise NotFound("the files of a step were not sent", code="no_such_source", hint="send them again")
            archives[name] = path
        if any(step.type == "COPY" and not step.files_hash for step in build.steps):
            raise Invalid("a COPY names its files by their hash", code="bad_step")
        asked.state = "building"
        self._background.run(self._make(asked, build, source, archives), f"build {asked.build_id}")

    async def _make(self, asked: Asked, build: Build, source: str, archives: dict[str, Path]) -> None:
        try:
            with tempfile.TemporaryDirectory(prefix=".build-", dir=self._rooms.templates.sent.room()) as directory:
                context = Path(directory) / "context.tar"
                await asyncio.to_thread(pack, build, source, archives, context)
                await self._follow(asked, build, context)
            if asked.tags:
                await self._rooms.templates.tag(asked.tenant_id, asked.name, asked.tags)
        except DovecoteError as error:
            self._fail(asked, as_said(str(error), build))
        except BaseException:
            self._fail(asked, "something went wrong on our side")
            raise
        else:
            asked.state = "ready"

    async def _follow(self, asked: Asked, build: Build, context: Path) -> None:
        events = await self._rooms.templates.build(
            asked.tenant_id, asked.name, _pieces(context), spec=asked.spec, build_id=asked.build_id
        )
        rest = ""
        async for event in events:
            rest = _hear(asked, build, event, rest)
            if isinstance(event, Done):
                return
        raise Failed("the build has no end", code="internal")

    @staticmethod
    def _fail(asked: Asked, reason: str) -> None:
        asked.say(reason, "error")
        asked.state, asked.reason = "error", reason


def _hear(asked: Asked, build: Build, event: Event, rest: str) -> str:
    """Notes an event; answers what was printed of a line that has no end yet."""
    if isinstance(event, Printed):
        *whole, rest = (rest + event.text).split("\n")
        for line in whole:
            asked.say(line.rstrip("\r"))
        return rest[-LONGEST_LINE:]
    if rest:
        asked.say(rest)
    if isinstance(event, Prepared):
        return ""
    if isinstance(event, Done):
        asked.step = LAST_STEP
        asked.say(f"{event.template.name} is {event.template.state}")
        return ""
    number = _STEP.match(event.what)
    if number and int(number[1]) <= len(build.steps):
        asked.step = number[1]
        step = build.steps[int(number[1]) - 1]
        told = f"[{number[1]}/{len(build.steps)}] {step.type} {' '.join(step.args)}"
    else:
        is_last = event.what.startswith("READY")
        asked.step = LAST_STEP if is_last else asked.step
        told = f"READY {build.ready_cmd}" if is_last else event.what
    if told and (not asked.lines or asked.lines[-1].message != told):
        asked.say(told)
    return ""


async def _pieces(path: Path) -> AsyncIterator[bytes]:
    with path.open("rb") as file:
        while piece := await asyncio.to_thread(file.read, PIECE):
            yield piece
