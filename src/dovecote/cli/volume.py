"""`dovecote volume`, and the mounts of a session."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated

import typer

from dovecote.cli.show import age, say, table

if TYPE_CHECKING:
    from dovecote.sdk import Mount

commands = typer.Typer(help="Volumes: files that outlive instances, with a hard limit.", no_args_is_help=True)

Name = Annotated[str, typer.Argument(metavar="VOLUME")]
Size = Annotated[str, typer.Argument(metavar="SIZE", help="Bytes, or with K, M, G or T: 10G.")]
SessionId = Annotated[str, typer.Argument(metavar="SESSION", help="ses_...")]
At = Annotated[str, typer.Argument(metavar="AT", help="Absolute path inside.")]
Path = Annotated[str, typer.Argument(metavar="PATH", help="A path in the volume: user/session/task.")]
Force = Annotated[bool, typer.Option(help="Whatever uses it.")]


def parse_size(text: str) -> int:
    """`10G` -> bytes."""
    match = re.fullmatch(r"(\d{1,15})([KMGT]?)(i?B?)", text.strip())
    if match is None:
        raise typer.BadParameter(f"not a size: {text!r}")
    return int(match[1]) << {"": 0, "K": 10, "M": 20, "G": 30, "T": 40}[match[2]]


def parse_mount(text: str) -> Mount:
    """`work/anna/chat7:/home/user/work`, with `:ro` at the end for a mount that takes no write."""
    from dovecote.sdk import Mount

    match = re.fullmatch(r"([^/:]+)(?:/([^:]*))?:(/[^:]*)(:ro)?", text)
    if match is None:
        raise typer.BadParameter(f"not VOLUME:AT or VOLUME/PATH:AT: {text!r}")
    return Mount(match[1], match[3], match[2] or "", read_only=match[4] is not None)


@commands.command()
def create(
    name: Name,
    size: Size,
    user: Annotated[str | None, typer.Option(help="Your own name for the user whose files they are.")] = None,
) -> None:
    """Make a volume and print its name."""
    from dovecote.sdk import Dovecote

    with Dovecote() as client:
        print(client.volumes.create(name, max_bytes=parse_size(size), user=user).name)


@commands.command()
def ls() -> None:
    """List volumes."""
    from dovecote.sdk import Dovecote

    with Dovecote() as client:
        rows = [
            (v.name, "-" if v.used_bytes is None else str(v.used_bytes), str(v.max_bytes), age(v.created_at))
            for v in client.volumes.list()
        ]
    table(("name", "used", "limit", "age"), rows)


@commands.command()
def get(name: Name) -> None:
    """Show one volume and what it holds."""
    from dataclasses import asdict

    from dovecote.sdk import Dovecote

    with Dovecote() as client:
        for field, value in asdict(client.volumes.get(name)).items():
            say(f"{field:12} {'-' if value is None else value}")


@commands.command()
def resize(name: Name, size: Size) -> None:
    """Change its limit, at once."""
    from dovecote.sdk import Dovecote

    with Dovecote() as client:
        print(client.volumes.resize(name, max_bytes=parse_size(size)).max_bytes)


@commands.command()
def rm(name: Name, force: Force = False) -> None:
    """Delete a volume and its files."""
    from dovecote.sdk import Dovecote

    with Dovecote() as client:
        client.volumes.delete(name, force=force)


@commands.command()
def limit(name: Name, path: Path, size: Size) -> None:
    """Give a path in it a limit of its own, at once, and print it."""
    from dovecote.sdk import Dovecote

    with Dovecote() as client:
        print(client.volumes.limit(name, path, max_bytes=parse_size(size)).max_bytes)


@commands.command()
def limits(name: Name) -> None:
    """List the paths in it that have limits, and what they hold."""
    from dovecote.sdk import Dovecote

    with Dovecote() as client:
        rows = [
            (found.path, "-" if found.used_bytes is None else str(found.used_bytes), str(found.max_bytes))
            for found in client.volumes.limits(name)
        ]
    table(("path", "used", "limit"), rows)


@commands.command()
def unlimit(name: Name, path: Path) -> None:
    """Lift the limit of a path; its files stay."""
    from dovecote.sdk import Dovecote

    with Dovecote() as client:
        client.volumes.lift_limit(name, path)


def mount(
    session_id: SessionId,
    volume: Name,
    at: At,
    path: Annotated[str, typer.Option(help="A path in the volume: user/session/task.")] = "",
    read_only: Annotated[bool, typer.Option(help="Whether writing there fails.")] = False,
    uid: Annotated[int, typer.Option(help="Owner of the mounted directory, inside.")] = 1000,
    gid: Annotated[int, typer.Option(help="Its group.")] = 1000,
    limit: Annotated[
        str | None, typer.Option(metavar="SIZE", help="A limit of the path's own, which stays: 1G.")
    ] = None,
) -> None:
    """Mount a volume into a session, running or not."""
    from dovecote.sdk import Dovecote, Mount

    with Dovecote() as client:
        client.sessions.get(session_id).mounts.add(
            Mount(volume, at, path, read_only, uid, gid, parse_size(limit) if limit else None)
        )


def unmount(session_id: SessionId, at: At, force: Force = False) -> None:
    """Unmount what is mounted at a path of a session."""
    from dovecote.sdk import Dovecote

    with Dovecote() as client:
        client.sessions.get(session_id).mounts.remove(at, force=force)


def mounts(session_id: SessionId) -> None:
    """List the session's own mounts."""
    from dovecote.sdk import Dovecote

    with Dovecote() as client:
        found = client.sessions.get(session_id).mounts.list()
    rows = [(m.at, m.volume, m.path, "read-only" if m.read_only else "", f"{m.uid}:{m.gid}") for m in found]
    table(("at", "volume", "path", "", "owner"), rows)
