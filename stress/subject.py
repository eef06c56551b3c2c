"""One session under stress: what it was told to do, what it said it did, and what is found of it."""

from __future__ import annotations

import io
import json
import tarfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import httpx

from dovecote.sdk import Dovecote, DovecoteError, Session
from stress.history import Fault, Found, History, Point
from stress.journal import Journal
from stress.plan import DATABASES, PROJECT, WORK, Plan
from stress.tree import Node, Tree

T = TypeVar("T")

TEMPLATE = "/usr/share/perl/5.36.0"  # of the base template; deep, and nothing else uses it
PLACE = "/run/stress"
PROGRAM = Path(__file__).with_name("inside.py")
PATIENCE = 90.0  # seconds that a restarted server or a woken session may take


def patiently(call: Callable[[], T], within: float = PATIENCE) -> T:
    """Asks again while the server or its gateway are coming back."""
    deadline = time.monotonic() + within
    while True:
        try:
            return call()
        except (DovecoteError, httpx.HTTPError) as error:
            is_passing = not isinstance(error, DovecoteError) or error.status in (0, 502, 503, 504)
            if not is_passing or time.monotonic() > deadline:
                raise
        time.sleep(0.1)


class Subject:
    """`saved`: so many steps of its history does an answered save hold."""

    def __init__(self, client: Dovecote, name: str) -> None:
        self.name = name
        self.session: Session = client.sessions.create(quiet_after=5)
        self.journal: Journal | None = None
        self.saved = 0
        self._run("mkdir", "-p", WORK, PLACE)
        self.session.save()
        self.template = self._read_template()
        self.history = History(Tree({WORK: Node("dir", 0o755), **self.template}).copy())

    def move(self, client: Dovecote) -> None:
        """From now on it is asked for at another server."""
        self.session = patiently(lambda: client.sessions.get(self.session.id))

    @property
    def done(self) -> int:
        return self.journal.done if self.journal else len(self.history.steps)

    # -- a round

    def begin(self, plan: Plan, *, seconds: float) -> None:
        """Starts to work through the plan, for so many seconds at most."""
        steps = [[pause, *step] for pause, step in plan]
        self._run("mkdir", "-p", PLACE)
        self._write("inside.py", PROGRAM.read_bytes())
        self._write("plan.json", json.dumps(steps).encode())
        line = ["python3", f"{PLACE}/inside.py", "act", f"{PLACE}/plan.json", str(seconds)]
        self.journal = Journal(self.session.start(line, user="root"), first=len(self.history.steps))
        self.history.steps += [step for _, step in plan]

    def save(self) -> None:
        """An answered save holds what was done before it was asked for."""
        done = self.done
        self.session.save()
        self.saved = max(self.saved, done)

    def stop(self) -> None:
        """Ends the program if it still runs, at whatever it is doing."""
        if self.journal is None:
            return
        if not self.journal.is_over:
            with suppress(DovecoteError):  # it may have ended with its instance
                self.journal.command.signal("SIGKILL")
        self.journal.join()
        self.history.stamps.update(self.journal.stamps)
        self.history.installs.update(self.journal.installs)
        if self.journal.broken and not self.journal.is_over:
            raise Fault(f"{self.name}: a step failed after {self.done} were done: {self.journal.broken[-1]}")

    def follow(self) -> None:
        """Reads on what the program says, where it survived."""
        if self.journal is not None:
            self.journal.follow()

    # -- what came back

    def compare(self, *, floor: int, at: float) -> tuple[Found, Point]:
        """Which moment it came back at. Raises Fault when there was no such moment, or it is before `floor`."""
        return self.compare_in(self.session, floor=floor, at=at)

    def compare_in(self, session: Session, *, floor: int, at: float) -> tuple[Found, Point]:
        """The same of another session that should hold the same files."""
        found = _look(session, self.name)
        if self.journal is not None:
            self.history.stamps.update(self.journal.stamps)
            self.history.installs.update(self.journal.installs)
        try:
            return found, self.history.settle(found, floor=floor, done=self.done, at=at)
        except Fault as fault:
            raise Fault(f"{self.name} ({session.id}): {fault}") from None

    def go_on(self, found: Found, point: Point, *, is_stored: bool) -> None:
        """What was found is where the next round begins; `is_stored` when it came from the store."""
        self.history.cut(point.done)
        self.saved = min(self.saved, point.done)
        self.journal = None
        if is_stored:
            self.rebase(found)

    def rebase(self, found: Found) -> None:
        self.history.rebase(found)
        self.saved = 0

    # -- inside

    def _read_template(self) -> dict[str, Node]:
        self._run("tar", "--create", "--format=posix", f"--file={PLACE}/template.tar", TEMPLATE)
        content = self.session.files.read(f"{PLACE}/template.tar", user="root")
        nodes: dict[str, Node] = {}
        with tarfile.open(fileobj=io.BytesIO(content)) as archive:
            for member in archive:
                path = "/" + member.name.strip("/")
                nodes[path] = _node(archive, member)
                nodes[path].names.add(path)
        return nodes

    def _run(self, *words: str) -> None:
        _run(self.session, *words)

    def _write(self, name: str, content: bytes) -> None:
        _write(self.session, name, content)


def _look(session: Session, name: str) -> Found:
    _run(session, "mkdir", "-p", PLACE)
    _write(session, "inside.py", PROGRAM.read_bytes())
    asked = {"roots": [WORK, TEMPLATE], "databases": DATABASES, "projects": [PROJECT]}
    _write(session, "look.json", json.dumps(asked).encode())
    _run(session, "python3", f"{PLACE}/inside.py", "look", f"{PLACE}/look.json")
    answer = json.loads(patiently(lambda: session.files.read(f"{PLACE}/look.json.answer", user="root")))
    rows = {}
    for database, counts in answer["databases"].items():
        if isinstance(counts, str):
            raise Fault(f"{name}: {database}: {counts}")
        rows[database] = {int(round): count for round, count in counts.items()}
    return Found(answer["files"], rows, answer["projects"][PROJECT])


def _run(session: Session, *words: str) -> None:
    patiently(lambda: session.run(list(words), user="root", check=True, timeout=120))


def _write(session: Session, name: str, content: bytes) -> None:
    patiently(lambda: session.files.write(f"{PLACE}/{name}", content, user="root"))


def _node(archive: tarfile.TarFile, member: tarfile.TarInfo) -> Node:
    kinds: Any = {tarfile.DIRTYPE: "dir", tarfile.REGTYPE: "file", tarfile.SYMTYPE: "symlink"}
    file = archive.extractfile(member) if member.isreg() else None
    return Node(
        kinds[member.type],
        0o777 if member.issym() else member.mode,
        member.uid,
        member.gid,
        content=file.read() if file else b"",
        target=member.linkname if member.issym() else "",
    )
