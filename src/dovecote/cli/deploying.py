"""What `dovecote function deploy` is told, by `dovecote.toml` and by its options, and doing it."""

from __future__ import annotations

import secrets
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from dovecote.cli.progress import Following
from dovecote.cli.show import err, say
from dovecote.cli.template import follow

if TYPE_CHECKING:
    from dovecote.sdk import Dovecote, Function, Revision, Start

NAME = "dovecote.toml"
COOKIES = ("__Host-dovecote-session", "dovecote-session")  # of a session that the server named itself: `{key}.{proof}`
# What the server says when nothing of the function's own could answer.
NOT_RUNNING = frozenset({"start_failed", "start_timeout", "port_closed", "port_is_local", "instance_dies", "not_ready"})


@dataclass(frozen=True)
class Wanted:
    """None and {} are "not said"."""

    name: str | None = None
    start: str | None = None
    port: int | None = None
    image: str | None = None
    template: str | None = None
    build: str | None = None
    public: bool | None = None
    spec: str | None = None
    level: str | None = None
    internet: bool | None = None
    env: dict[str, str] | None = None
    affinity: dict[str, Any] = field(default_factory=dict)
    sharing: dict[str, Any] = field(default_factory=dict)
    hooks: dict[str, Any] = field(default_factory=dict)
    invoking: dict[str, Any] = field(default_factory=dict)

    def over(self, **said: Any) -> Wanted:
        """What is said goes first; tables are joined."""
        changed = {name: value for name, value in said.items() if value is not None}
        for name, value in changed.items():
            if isinstance(value, dict):
                changed[name] = {**(getattr(self, name) or {}), **value}
        return replace(self, **changed)

    def changes(self, function: Function | None) -> dict[str, Any]:
        """For `functions.update`; `env` is added to what is there."""
        from dovecote.sdk import Network

        found: dict[str, Any] = {
            name: getattr(self, name)
            for name in ("public", "spec", "level", "affinity", "sharing", "hooks", "invoking")
            if getattr(self, name) not in (None, {})
        }
        if self.template is not None and self.image is None:
            found["template"] = self.template
        if self.internet is not None:
            found["network"] = replace(function.revision.network if function else Network(), internet=self.internet)
        if self.env is not None:
            found["env"] = {**(function.revision.env if function else {}), **self.env}
        start = self._start(function.revision.start if function else None)
        return found | ({"start": start} if start else {})

    def _start(self, there: Start | None) -> Start | None:
        from dovecote.sdk import Start

        if self.start is None and self.port is None:
            return None
        if there is None:
            if self.start is None or self.port is None:
                raise typer.BadParameter("--start and --port go together")
            return Start(self.start, self.port)
        port = self.port if self.port is not None else there.port
        return (
            replace(there, port=port) if self.start is None else replace(there, command=self.start, argv=[], port=port)
        )


def read_project(directory: Path | None) -> Wanted:
    """What `dovecote.toml` in it says; nothing where there is none."""
    path = (directory or Path(".")) / NAME
    if directory is None or not path.is_file():
        return Wanted()
    try:
        document = tomllib.loads(path.read_text("utf-8"))
    except (ValueError, OSError) as error:
        raise typer.BadParameter(f"{path}: {error}") from error
    kinds = {each.name: str(each.type) for each in fields(Wanted)}
    for name, value in document.items():
        if name not in kinds:
            raise typer.BadParameter(f"{path}: no {name!r}; there are {', '.join(kinds)}")
        if type(value).__name__ != kinds[name].partition("[")[0].partition(" ")[0]:
            raise typer.BadParameter(f"{path}: {name} is not a {kinds[name].partition(' |')[0]}")
    if any(not isinstance(value, str) for value in document.get("env", {}).values()):
        raise typer.BadParameter(f"{path}: variables of env are text, in quotes")
    return Wanted(**document)


def deploy(client: Dovecote, directory: Path | None, wanted: Wanted, *, wait: bool) -> Function:
    """Makes or changes the function; new sessions get all of it at once, when all of it is there."""
    from dovecote.sdk import NotFound

    if wanted.name is None:
        raise typer.BadParameter(f"--name says what it is called, or `name` in {NAME}")
    if wanted.image is not None and wanted.template is not None:
        raise typer.BadParameter("--image and --template go not together")
    if wanted.build and directory is None:
        raise typer.BadParameter("--build needs a directory")
    template = wanted.template
    if wanted.image is not None:
        template = f"{wanted.name}:image"
        follow(client.templates.pull(wanted.image, name=template))
    try:
        function: Function | None = client.functions.get(wanted.name)
    except NotFound:
        function = None
    changes = replace(wanted, image=None, template=template).changes(function)
    is_new = function is None
    if is_new:
        client.functions.create(wanted.name, template=template or "base")
    try:
        if is_new or directory is not None:
            changes.pop("template", None)
        if directory is not None:
            changes["files"] = put(client, wanted, directory, template).number
        function = client.functions.update(wanted.name, **changes)
    except BaseException:
        if is_new:
            client.functions.delete(wanted.name)  # nobody could use it
        raise
    if wait:
        check(client, function)
    return function


def put(client: Dovecote, wanted: Wanted, directory: Path, template: str | None) -> Revision:
    """The directory as a revision that nobody has yet. Shows how much of it is sent, and what a build prints."""
    from dovecote.sdk import Revision

    assert wanted.name is not None
    with Following() as following:
        for event in client.functions.put_files(
            *(wanted.name, directory),
            template=template,
            build=wanted.build or "",
            current=False,
            on_sent=lambda done, total: following.step("sending files", done, total),
        ):
            if isinstance(event, Revision):
                return event
            following.event(event)
    raise typer.Exit(1)


def check(client: Dovecote, function: Function) -> None:
    """Asks its server once, in a session that ends with it."""
    if function.revision.start is None or not function.revision.start.port:
        say("it has no start (command and port), so it was not asked", style="yellow")
        return
    is_named = "header" in function.affinity.modes
    key = f"deploy-{secrets.token_hex(8)}" if is_named else None
    try:
        answer = client.functions.call(function.name, session=key)
        key = key or next((answer.cookies[name].rpartition(".")[0] for name in COOKIES if name in answer.cookies), None)
        code = _code(answer.headers, answer)
        if code in NOT_RUNNING:
            error = answer.json()["error"]
            err.print(f"{error['message']} [{error['code']}]\n{error['hint']}", markup=False)
            raise typer.Exit(1)
        if code is not None:
            say(f"it could not be asked: {code}", style="yellow")
    finally:
        for session in client.sessions.list(function=function.name) if key else ():
            if session.key == key:
                session.delete()


def _code(headers: Mapping[str, str], answer: Any) -> str | None:
    """Of an error of ours; what the function answers itself is none."""
    if answer.status_code < 400 or "json" not in headers.get("content-type", ""):
        return None
    try:
        error = answer.json()["error"]
        return str(error["code"]) if "request_id" in error else None
    except (ValueError, KeyError, TypeError):
        return None
