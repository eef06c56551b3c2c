"""How a function serves its callers, over the wire. Times are numbers of seconds."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated

from pydantic import Field

from dovecote.api.rest.shapes import Body, duration, seconds
from dovecote.model.serving import (
    DEFAULT_HEADER,
    LONGEST_AGE,
    Affinity,
    Destination,
    Hook,
    Hooks,
    Invoking,
    Mode,
    Sharing,
    To,
)

Seconds = Annotated[float, Field(ge=0, le=365 * 86400, allow_inf_nan=False)]


class AffinityShape(Body):
    """How a request finds its session, and how long that lasts."""

    modes: list[Mode] = Field(
        default_factory=lambda: [Mode.HEADER], max_length=len(Mode), description="What in a request names its session."
    )
    header: str = Field(default=DEFAULT_HEADER, max_length=100, description="That does, in the mode `header`.")
    sse_path: str = Field(default="/sse", max_length=200, description="Where streams of the mode `mcp-sse` begin.")
    ttl: Seconds | None = Field(default=None, description="Of a session, from its creation; null for no end.")
    idle_after: Seconds | None = Field(default=None, description="Of a session; null leaves it to its user's tier.")
    refuses_reuse: bool = Field(default=False, description="An id whose session has ended is refused.")
    strict_ids: bool = Field(default=False, description="Clients' ids have at most 64 of A-Z a-z 0-9 _ -.")

    def record(self) -> Affinity:
        return Affinity(
            tuple(self.modes),
            self.header,
            self.sse_path,
            duration(self.ttl),
            duration(self.idle_after),
            self.refuses_reuse,
            self.strict_ids,
        )


class SharingShape(Body):
    """How much goes into one instance, and how many there may be; 0 for no limit."""

    sessions: int = Field(default=1, description="With 1, a session has its instance and its files for itself.")
    requests: int = Field(default=0, description="At once, of all sessions of the instance.")
    instances: int = Field(default=0, description="Of the function.")

    def record(self) -> Sharing:
        return Sharing(self.sessions, self.requests, self.instances)


class HookShape(Body):
    """A path of its server or a shell command, called inside an instance."""

    path: str = ""
    command: str = ""
    timeout: Seconds = Field(default=30.0, description="Seconds that it may take.")

    def record(self) -> Hook:
        return Hook(self.path, self.command, timedelta(seconds=self.timeout))


class HooksShape(Body):
    """`initialize` before the first request, the others before an instance is frozen or stopped."""

    initialize: HookShape | None = None
    pre_freeze: HookShape | None = None
    pre_stop: HookShape | None = None

    def record(self) -> Hooks:
        return Hooks(*(hook.record() if hook else None for hook in (self.initialize, self.pre_freeze, self.pre_stop)))


class DestinationShape(Body):
    """Where the result of an asynchronous call goes."""

    to: To
    target: str = Field(description="A URL, the name of a function, or a subject or stream.")

    def record(self) -> Destination:
        return Destination(self.to, self.target)


class InvokingShape(Body):
    """How asynchronous calls are made."""

    retries: int = 3
    max_age: Seconds = Field(default=LONGEST_AGE.total_seconds(), description="How long a call is tried.")
    at_once: int = Field(default=0, description="Calls of the function at the same time; 0 for no limit.")
    on_success: DestinationShape | None = None
    on_failure: DestinationShape | None = None

    def record(self) -> Invoking:
        return Invoking(
            self.retries,
            timedelta(seconds=self.max_age),
            self.at_once,
            self.on_success.record() if self.on_success else None,
            self.on_failure.record() if self.on_failure else None,
        )


def affinity_shape(affinity: Affinity) -> AffinityShape:
    return AffinityShape(
        modes=[*affinity.modes],
        header=affinity.header,
        sse_path=affinity.sse_path,
        ttl=seconds(affinity.ttl),
        idle_after=seconds(affinity.idle_after),
        refuses_reuse=affinity.refuses_reuse,
        strict_ids=affinity.strict_ids,
    )


def sharing_shape(sharing: Sharing) -> SharingShape:
    return SharingShape(sessions=sharing.sessions, requests=sharing.requests, instances=sharing.instances)


def hooks_shape(hooks: Hooks) -> HooksShape:
    return HooksShape(
        initialize=_hook_shape(hooks.initialize),
        pre_freeze=_hook_shape(hooks.pre_freeze),
        pre_stop=_hook_shape(hooks.pre_stop),
    )


def invoking_shape(invoking: Invoking) -> InvokingShape:
    return InvokingShape(
        retries=invoking.retries,
        max_age=invoking.max_age.total_seconds(),
        at_once=invoking.at_once,
        on_success=_destination_shape(invoking.on_success),
        on_failure=_destination_shape(invoking.on_failure),
    )


def _hook_shape(hook: Hook | None) -> HookShape | None:
    if hook is None:
        return None
    return HookShape(path=hook.path, command=hook.command, timeout=hook.timeout.total_seconds())


def _destination_shape(destination: Destination | None) -> DestinationShape | None:
    return DestinationShape(to=destination.to, target=destination.target) if destination else None
