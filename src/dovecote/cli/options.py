"""Options that several commands of functions have, and what is said with them."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, TypedDict, get_type_hints

import typer

from dovecote.cli.deploying import Wanted

Env = Annotated[list[str] | None, typer.Option("--env", "-e", help="K=V; may be repeated.")]
Modes = Annotated[str | None, typer.Option(help="none, or some of header,cookie,mcp-sse,mcp-http.")]
Header = Annotated[str | None, typer.Option(help="The header that names a request's session.")]
PerInstance = Annotated[
    int | None, typer.Option(help="Sessions in an instance; with 1, each has its files for itself.")
]
Requests = Annotated[int | None, typer.Option(help="Requests at once in an instance; 0 for no limit.")]
Instances = Annotated[int | None, typer.Option(help="Instances of the function; 0 for no limit.")]
Public = Annotated[bool | None, typer.Option("--public/--private", help="Whether anybody may call it.")]
Template = Annotated[str | None, typer.Option(help="Files that its instances start with.")]
Spec = Annotated[str | None, typer.Option(help="nano, small, medium or large.")]
Level = Annotated[str | None, typer.Option(help="Isolation level.")]
Internet = Annotated[bool | None, typer.Option(help="Whether its instances reach the internet.")]
StartCommand = Annotated[str | None, typer.Option(help="Shell command that starts its server.")]
Port = Annotated[int | None, typer.Option(help="The port that its server opens.")]
Ttl = Annotated[float | None, typer.Option(help="Seconds that a session lasts, from its creation.")]
Idle = Annotated[float | None, typer.Option(help="Seconds after which an unused session is parked.")]


class Said(TypedDict):
    """What a function runs and how it serves, an option each."""

    start: StartCommand
    port: Port
    template: Template
    affinity: Modes
    header: Header
    sessions: PerInstance
    requests: Requests
    instances: Instances
    ttl: Ttl
    idle_after: Idle
    env: Env
    public: Public
    spec: Spec
    level: Level
    internet: Internet


def with_options(command: Callable[..., None]) -> Callable[..., None]:
    """Gives a command all of these options; what is said with them comes as its argument `wanted`."""
    said = get_type_hints(Said, include_extras=True)
    types = get_type_hints(command, include_extras=True)
    keyword = inspect.Parameter.KEYWORD_ONLY
    own = [
        each.replace(kind=keyword, annotation=types[each.name])
        for each in inspect.signature(command).parameters.values()
        if each.name != "wanted"
    ]
    options = [inspect.Parameter(name, keyword, default=None, annotation=hint) for name, hint in said.items()]

    @wraps(command)
    def run(**values: Any) -> None:
        wanted = _wanted(**{name: values.pop(name) for name in said})
        command(**values, wanted=wanted)

    # Typer reads both.
    run.__signature__ = inspect.Signature([*own, *options])  # type: ignore[attr-defined]
    run.__annotations__ = {each.name: each.annotation for each in (*own, *options)}
    return run


def _wanted(*, affinity: str | None, env: list[str] | None, **said: Any) -> Wanted:
    modes = [mode.strip() for mode in affinity.split(",")] if affinity is not None else None
    serving = {name: said.pop(name) for name in ("header", "ttl", "idle_after")}
    sharing = {name: said.pop(name) for name in ("sessions", "requests", "instances")}
    return Wanted(
        **said,
        env=dict(pair(text, "=") for text in env) if env else None,
        affinity=_given(modes=modes, **serving),
        sharing=_given(**sharing),
    )


def _given(**fields: Any) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}


def body_of(data: str | None) -> bytes | None:
    if data is None or not data.startswith("@"):
        return data.encode() if data is not None else None
    if data == "@-":
        return sys.stdin.buffer.read()
    try:
        return Path(data[1:]).read_bytes()
    except OSError as error:
        raise typer.BadParameter(str(error)) from error


def pair(text: str, sign: str) -> tuple[str, str]:
    name, found, value = text.partition(sign)
    if not found or not name.strip():
        raise typer.BadParameter(f"not NAME{sign}VALUE: {text[:60]}")
    return name.strip(), value.strip() if sign == ":" else value
