"""Which model the agent thinks with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic_ai.models import Model

ANSWER_SECONDS = 120.0


@dataclass(frozen=True)
class ModelChoice:
    """An OpenAI-compatible endpoint; without `base_url` and `name` it is the scripted model."""

    base_url: str = ""
    name: str = ""
    api_key: str = ""

    @property
    def is_scripted(self) -> bool:
        return not self.name

    @property
    def label(self) -> str:
        """What is shown wherever the agent speaks, so that nobody takes a script for a mind."""
        return "scripted model, no AI" if self.is_scripted else self.name


def open_model(choice: ModelChoice) -> Model:
    """Imports the provider only when one is asked for: that takes a second."""
    if choice.is_scripted:
        from dovecote.agent.scripted import scripted_model

        return scripted_model()
    from openai import AsyncOpenAI
    from pydantic_ai.models.openai import OpenAIChatModel
    from pydantic_ai.providers.openai import OpenAIProvider

    # Local endpoints take any key, but the client insists on one.
    endpoint = AsyncOpenAI(
        base_url=choice.base_url or None, api_key=choice.api_key or "none", timeout=ANSWER_SECONDS, max_retries=2
    )
    return OpenAIChatModel(choice.name, provider=OpenAIProvider(openai_client=endpoint))
