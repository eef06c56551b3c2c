"""The chapters of the demo. Each checks what it promises."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Awaitable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import httpx

from dovecote.agent.events import AgentEvent, ToolAnswered, ToolCalled
from dovecote.agent.models import ModelChoice
from dovecote.cli.demo.story import CheckFailed, Story, check, until
from dovecote.sdk import AsyncDovecote, AsyncSession, Chat

if TYPE_CHECKING:
    from dovecote.agent.turns import ChatAgent

USER = "dovecote-demo"
APP = "dovecote-demo"
PROMPT = (
    "Build 'Pigeon Post', a small message board, in /home/user/pigeon-post: a React front end built with Vite, an "
    "Express server on port 3000 that serves it, keeps letters in a file behind GET and POST /api/messages (author and "
    "text in; {messages: [...]} out) and answers GET /api/slow?ms=300 after that time. Start it and check it."
)
LETTER = {"author": "the demo", "text": "Home is where the niche is."}

QUIET_SECONDS = 2.0
IDLE_SECONDS = 3.0
LONG_SECONDS = 3600.0
APP_IDLE_SECONDS = 5.0
BURST = 200  # requests at least
BURST_SECONDS = 30.0  # at most
AT_ONCE = 40
SLOW_MS = 300


@dataclass
class Stage:
    """What the chapters share."""

    client: AsyncDovecote
    story: Story
    session: AsyncSession
    agent: ChatAgent
    chat: Chat
    port: int
    cwd: str
    files: int
    install_seconds: float
    app_address: str = ""

    def http(self) -> httpx.AsyncClient:
        return self.client.http_for(self.session.url(self.port))


async def build(client: AsyncDovecote, story: Story, choice: ModelChoice) -> Stage:
    story.chapter("A chat opens; the agent writes, installs, starts and repairs an app")
    from dovecote.agent.turns import ChatAgent  # takes a second, hence here

    with story.step("a session with a sandbox of its own") as step:
        session = await client.sessions.create(user=USER, idle_after=LONG_SECONDS, quiet_after=60)
        done = await session.run("echo $(nproc) CPUs, $(id -un)", check=True)
        step.outcome = done.stdout.strip()
    story.keep("session created, first command answered", step.seconds)
    chat = await client.chats.create(session, user=USER, title="Pigeon Post")
    story.tell(f"user   {PROMPT}")
    installs = _Installs(story)
    agent = ChatAgent(client, choice)
    with story.step(f"the agent's turn ({choice.label})"):
        await agent.turn(chat, session, PROMPT, installs.show)
    start = (await session.refresh()).start
    check(start is not None, "the agent recorded no start command", "its last words above say why")
    assert start is not None
    files = await count_files(session, start.cwd)
    check(files > 1000, f"node_modules has only {files} files")
    story.tell(f"node_modules has {files} files; the install took {installs.seconds:.1f} s")
    story.keep(f"plain install of {files} files", installs.seconds, "what each wake below does without")
    turns = await client.chats.turns(chat.id)
    check(len(turns) == 1 and len(turns[0].messages) > 2, "the turn was not stored in the chat")
    return Stage(client, story, session, agent, chat, start.port, start.cwd, files, installs.seconds)


async def reach(stage: Stage) -> None:
    stage.story.chapter("The app answers through the gateway")
    async with stage.http() as http:
        with stage.story.step(f"its preview address {stage.session.url(stage.port)}") as step:
            page = await http.get("/")
            check(page.status_code == 200 and "<html" in page.text, f"the preview answered {page.status_code}")
        with stage.story.step("a letter is sent and read back") as step:
            sent = await http.post("/api/messages", json=LETTER)
            check(sent.status_code == 201, f"POST /api/messages answered {sent.status_code}: {sent.text[:300]}")
            await _has_letter(http)
        warm = await _timed(http.get("/api/messages"))
    stage.story.keep("request to the warm app", warm)
    function = await stage.client.functions.get("sandbox")
    headers = {
        function.affinity_header: stage.session.key,
        "x-dovecote-user": USER,
        "x-dovecote-key": stage.client.api_key,
    }
    async with stage.client.http_for(function.address) as http:
        with stage.story.step(f"the function's address with `{function.affinity_header}: {stage.session.key}`") as step:
            answer = await http.get("/api/messages", headers=headers)
            check(answer.status_code == 200, f"the function answered {answer.status_code}: {answer.text[:300]}")
            check(LETTER["text"] in answer.text, "the header led to another sandbox")
        with stage.story.step("without a key it is refused") as step:
            refused = await http.get("/api/messages", headers={function.affinity_header: stage.session.key})
            check(refused.status_code == 401, f"without a key the function answered {refused.status_code}")
            step.outcome = refused.json()["error"]["code"]


async def sleep_and_wake(stage: Stage) -> None:
    stage.story.chapter("It sleeps when nobody needs it, and wakes on the next request")
    session, story = stage.session, stage.story
    lock = f"{stage.cwd}/node_modules/.package-lock.json"
    installed_at = (await session.files.stat(lock)).modified_at
    with story.step(f"quiet for {QUIET_SECONDS:.0f} s: frozen, no CPU"):
        await session.update(quiet_after=QUIET_SECONDS)
        await _state(session, "frozen", within=60)
    async with stage.http() as http:
        with story.step("a request thaws it") as step:
            await _has_letter(http)
    story.keep("request to the frozen app: thawed, answered", step.seconds)
    with story.step(f"idle for {IDLE_SECONDS:.0f} s: parked, only its files are left"):
        await session.update(idle_after=IDLE_SECONDS)
        await _state(session, "parked", within=120)
    await session.update(idle_after=LONG_SECONDS, quiet_after=60)
    async with stage.http() as http:
        with story.step(
            "the next request wakes it: files mounted, server started, request held until it answers"
        ) as step:
            await _has_letter(http)
    story.keep("request to the parked app: woken, answered", step.seconds, _beside(stage, step.seconds))
    with story.step("its dependencies are there and nothing was installed again") as step:
        files = await count_files(session, stage.cwd)
        check(files == stage.files, f"node_modules had {stage.files} files, now it has {files}")
        again_at = (await session.files.stat(lock)).modified_at
        check(again_at == installed_at, "node_modules was written again")
        step.outcome = f"{files} files"


async def kill(stage: Stage) -> None:
    stage.story.chapter("Its instance is killed while it runs")
    session, story = stage.session, stage.story
    await session.files.write("unsaved.txt", "written a moment before")
    instance = await session.instance()
    if os.geteuid() != 0 or not instance.pid or not os.path.exists(f"/proc/{instance.pid}"):
        raise CheckFailed("only root on the server's own machine can kill an instance's first process")
    with story.step(f"SIGKILL to its first process, pid {instance.pid}"):
        os.kill(instance.pid, signal.SIGKILL)
    async with stage.http() as http:
        with story.step("the next request finds the session again") as step:
            await _has_letter(http)
    story.keep("request after SIGKILL: new instance, answered", step.seconds, _beside(stage, step.seconds))
    with story.step("with all its files, the last one too") as step:
        text = await session.files.read_text("unsaved.txt")
        check(text == "written a moment before", f"unsaved.txt now says {text!r}")
        files = await count_files(session, stage.cwd)
        check(files == stage.files, f"node_modules had {stage.files} files, now it has {files}")
        again = await session.instance()
        check(again.instance_id != instance.instance_id, "it is still the killed instance")
        step.outcome = f"{files} files, instance {again.instance_id[:12]}..."


async def publish(stage: Stage) -> None:
    stage.story.chapter("It is published: an address of its own, as many instances as its visitors need")
    client, story = stage.client, stage.story
    story.tell(f"user   Publish it as {APP}")
    with story.step("published by the agent") as step:
        await stage.agent.turn(stage.chat, stage.session, f"Publish it as {APP}", story.show)
        app = await client.apps.update(APP, idle_after=APP_IDLE_SECONDS, maximum=3, target_concurrency=10)
        stage.app_address = step.outcome = app.address
    story.keep("published", step.seconds)
    async with client.http_for(app.address, connections=AT_ONCE) as http:
        with story.step("first visit") as step:
            await _visit(http)
        story.keep("first visit of the app: started, answered", step.seconds)
        with story.step(f"left alone for {APP_IDLE_SECONDS:.0f} s: no instance, no cost"):
            await _none_left(client)
        with story.step("visited again: held while an instance starts") as step:
            await _visit(http)
        story.keep("visit of the app at zero: started, answered", step.seconds, _beside(stage, step.seconds))
        with story.step(f"a burst: {AT_ONCE} visitors at once, each request takes {SLOW_MS} ms") as step:
            answered, most = await _burst(client, http)
            check(most > 1, f"the app stayed on {most} instance under the burst")
            step.outcome = f"all {answered} requests answered, up to {most} instances"
    story.keep(f"burst of {AT_ONCE} visitors", step.seconds, f"{answered} requests, up to {most} instances")
    with story.step("back to zero"):
        await _none_left(client)


class _Installs:
    """Passes events on to the story and keeps the time of the install."""

    def __init__(self, story: Story) -> None:
        self._story = story
        self._command = ""
        self.seconds = 0.0

    def show(self, event: AgentEvent) -> None:
        self._story.show(event)
        if isinstance(event, ToolCalled) and event.name == "run":
            self._command = event.summary
        elif isinstance(event, ToolAnswered) and event.name == "run" and "install" in self._command:
            self.seconds = max(self.seconds, event.seconds)


async def count_files(session: AsyncSession, cwd: str) -> int:
    done = await session.run("find node_modules -type f | wc -l", cwd=cwd, check=True)
    return int(done.stdout)


async def _has_letter(http: httpx.AsyncClient) -> None:
    answer = await http.get("/api/messages")
    check(answer.status_code == 200, f"/api/messages answered {answer.status_code}: {answer.text[:300]}")
    check(LETTER["text"] in answer.text, "the letter that was sent is gone")


async def _visit(http: httpx.AsyncClient) -> None:
    page = await http.get("/")
    check(page.status_code == 200 and "<html" in page.text, f"the app answered {page.status_code}: {page.text[:300]}")
    letters = await http.get("/api/messages")
    check(LETTER["text"] in letters.text, "the letters did not come along when it was published")


async def _state(session: AsyncSession, state: str, *, within: float) -> None:
    async def look() -> tuple[str, str]:
        view = await session.refresh()
        return view.state, view.reason

    await until(look, lambda seen: seen[0] == state, within=within, what=f"the session becoming {state}")


async def _none_left(client: AsyncDovecote) -> None:
    async def look() -> int:
        return len(await client.apps.instances(APP))

    await until(look, lambda count: count == 0, within=120, what="the app going to zero")


async def _burst(client: AsyncDovecote, http: httpx.AsyncClient) -> tuple[int, int]:
    """Visitors who come at once and go on until a second instance serves them, or it has lasted too long.

    Answers how many requests were answered, all with 200, and the most instances seen ready meanwhile.
    """
    deadline = time.monotonic() + BURST_SECONDS
    statuses: list[int] = []
    most = 0

    async def visitor() -> None:
        while len(statuses) < BURST or (most < 2 and time.monotonic() < deadline):
            statuses.append((await http.get("/api/slow", params={"ms": SLOW_MS})).status_code)

    visitors = [asyncio.ensure_future(visitor()) for _ in range(AT_ONCE)]
    try:
        while not all(each.done() for each in visitors):
            most = max(most, sum(each.is_ready for each in await client.apps.instances(APP)))
            await asyncio.wait(visitors, timeout=0.1)
        await asyncio.gather(*visitors)
    finally:
        for each in visitors:
            each.cancel()
    wrong = [status for status in statuses if status != 200]
    check(not wrong, f"{len(wrong)} of {len(statuses)} requests of the burst failed, the first with {wrong[:1]}")
    return len(statuses), most


async def _timed(work: Awaitable[object]) -> float:
    started = time.perf_counter()
    await work
    return time.perf_counter() - started


def _beside(stage: Stage, seconds: float) -> str:
    if not stage.install_seconds:
        return ""
    return f"{stage.install_seconds / seconds:.0f} times faster than the install of {stage.install_seconds:.1f} s"
