"""The order of the demo, and what it leaves behind."""

from __future__ import annotations

import asyncio
import contextlib
import time

import httpx

from dovecote.agent.models import ModelChoice
from dovecote.cli.demo import chapters, files
from dovecote.cli.demo.chapters import APP, USER
from dovecote.cli.demo.story import CheckFailed, Story
from dovecote.cli.show import problem, say
from dovecote.config import read_settings
from dovecote.sdk import AsyncDovecote, DovecoteError, NotFound

WHOLE_DEMO_SECONDS = 1800.0


async def play(*, keep: bool) -> int:
    """Plays all chapters against the server that is up. Answers the exit code."""
    settings = read_settings()
    choice = ModelChoice(settings.model_base_url, settings.model_name, settings.model_api_key)
    story = Story()
    try:
        async with asyncio.timeout(WHOLE_DEMO_SECONDS), AsyncDovecote() as client:
            await _play(client, story, choice, keep=keep)
    except CheckFailed as error:
        problem(str(error), "demo_failed", error.hint)
        return 1
    except DovecoteError as error:
        problem(error.message, error.code, error.hint)
        return 1
    except httpx.HTTPError as error:
        problem(f"{type(error).__name__}: {error}", "demo_failed", "the server's log may say more: `dovecote status`")
        return 1
    except TimeoutError:
        problem(f"not through within {WHOLE_DEMO_SECONDS:.0f} s", "demo_failed")
        return 1
    return 0


async def _play(client: AsyncDovecote, story: Story, choice: ModelChoice, *, keep: bool) -> None:
    started = time.perf_counter()
    say(f"Dovecote's main job, at {client.url}", style="bold")
    say(f"The agent's model: {choice.label}")
    await _clear(client)
    stage = await chapters.build(client, story, choice)
    await chapters.reach(stage)
    await chapters.sleep_and_wake(stage)
    await chapters.kill(stage)
    await files.files(stage)
    await chapters.publish(stage)
    story.finish()
    say("")
    say(f"Everything held, in {time.perf_counter() - started:.0f} s.", style="bold green")
    if keep:
        say("To look at while the server is up (`make up`):")
        say(f"  the session {stage.session.url(stage.port)}")
        say(f"  the app     {stage.app_address}")
    else:
        await _clear(client)


async def _clear(client: AsyncDovecote) -> None:
    """Removes what an earlier demo left, and nothing else: it has a user and an app's name of its own."""
    with contextlib.suppress(NotFound):
        await client.apps.unpublish(APP)
    for session in await client.sessions.list(user=USER):
        if session.state != "ended":
            await session.delete()
    await files.clear(client)
