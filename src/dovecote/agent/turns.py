"""One turn of a chat: what was said before, the loop of model and tools, and what is kept of it."""

from __future__ import annotations

from pydantic_ai import Agent, UsageLimits
from pydantic_ai.exceptions import AgentRunError
from pydantic_ai.messages import ModelMessage, ModelMessagesTypeAdapter, TextPart

from dovecote.agent.events import Said, Show
from dovecote.agent.models import ModelChoice, open_model
from dovecote.agent.tools import TOOLS, Workbench
from dovecote.sdk import AsyncDovecote, AsyncSession, Chat

MOST_REQUESTS = 80  # to the model, in one turn
TOOL_SECONDS = 660.0

INSTRUCTIONS = """
You are the coding agent of Dovecote. You work in one Linux sandbox that belongs to this chat alone; its files are
still there tomorrow. Show a plan first and keep its states current. Write small, complete files. Run what you wrote
and read its real output; when something fails, read the error, fix the cause and run it again. Put each project in a
directory of its own below /home/user. A server must listen on 0.0.0.0 on the port that you name to start_server.
Check the result with fetch before you say that it works. Publish only when asked to.
""".strip()


class ChatAgent:
    """Keeps nothing of its own: the session holds the files, the chat holds what was said."""

    def __init__(self, client: AsyncDovecote, choice: ModelChoice) -> None:
        self._client = client
        self.label = choice.label
        self._agent = Agent(
            open_model(choice),
            deps_type=Workbench,
            instructions=INSTRUCTIONS,
            tools=TOOLS,
            retries=2,
            tool_timeout=TOOL_SECONDS,
        )

    async def turn(self, chat: Chat, session: AsyncSession, prompt: str, show: Show) -> str:
        """Does what `prompt` asks, shows what happens, stores the turn, answers the last word.

        Raises DovecoteError when the server fails, pydantic_ai's AgentRunError when the model does; the chat then has
        what was done until there.
        """
        history = await self._history(chat)
        workbench = Workbench(self._client, session, show)
        last = ""
        async with self._agent.iter(
            prompt, deps=workbench, message_history=history, usage_limits=UsageLimits(request_limit=MOST_REQUESTS)
        ) as run:
            try:
                async for node in run:
                    if Agent.is_call_tools_node(node):
                        for part in node.model_response.parts:
                            if isinstance(part, TextPart) and part.content.strip():
                                last = part.content
                                show(Said(last))
            except AgentRunError:
                await self._keep(chat, run.all_messages()[len(history) :])
                raise
            await self._keep(chat, run.all_messages()[len(history) :])
        return last

    async def _history(self, chat: Chat) -> list[ModelMessage]:
        turns = await self._client.chats.turns(chat.id)
        return ModelMessagesTypeAdapter.validate_python([message for turn in turns for message in turn.messages])

    async def _keep(self, chat: Chat, messages: list[ModelMessage]) -> None:
        if messages:
            await self._client.chats.add_turn(chat.id, ModelMessagesTypeAdapter.dump_python(messages, mode="json"))
