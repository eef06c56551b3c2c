"""`dovecote session`: what sessions there are, and when they sleep."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dovecote.cli.show import age, problem, say, table, write_bytes

if TYPE_CHECKING:
    from dovecote.sdk import FileDiff, Lag, Session

commands = typer.Typer(help="Sessions: the tie between a chat and its sandbox.", no_args_is_help=True)

SessionId = Annotated[str, typer.Argument(metavar="SESSION", help="ses_...")]


@commands.command()
def create(
    key: Annotated[str | None, typer.Option(help="Your own name for it.")] = None,
    user: Annotated[str, typer.Option(help="Your own name for the end user.")] = "default",
    function: Annotated[str, typer.Option(help="What it runs.")] = "sandbox",
    tier: Annotated[str | None, typer.Option(help="default, regular, vip or svip.")] = None,
    idle_after: Annotated[float | None, typer.Option(help="Seconds without use until it is parked.")] = None,
    ttl: Annotated[float | None, typer.Option(help="Seconds until it ends, used or not.")] = None,
    mount: Annotated[list[str] | None, typer.Option(help="A volume into it: VOLUME:AT or VOLUME/PATH:AT.")] = None,
    wake: Annotated[bool, typer.Option(help="Start its instance now.")] = True,
) -> None:
    """Open a session and print its id."""
    from dovecote.cli.volume import parse_mount
    from dovecote.sdk import Dovecote

    with Dovecote() as client:
        made = client.sessions.create(
            function=function,
            key=key,
            user=user,
            tier=tier,
            idle_after=idle_after,
            ttl=ttl,
            mounts=[parse_mount(text) for text in mount or ()],
            wake=wake,
        )
        print(made.id)


@commands.command()
def ls(
    state: Annotated[str | None, typer.Option(help="Only those in this state; `ended` must be asked for.")] = None,
    user: Annotated[str | None, typer.Option(help="Only those of this user.")] = None,
) -> None:
    """List sessions."""
    from dovecote.sdk import Dovecote

    with Dovecote() as client:
        found = client.sessions.list(state=state, user=user)
        table(
            ("id", "key", "state", "why", "age", "last active", "address"),
            [
                (
                    each.id,
                    each.key,
                    each.state,
                    each.view.reason,
                    age(each.view.created_at),
                    age(each.view.last_active_at),
                    each.view.address,
                )
                for each in found
            ],
        )


@commands.command()
def get(session_id: SessionId) -> None:
    """Show all that is known of one session."""
    from dataclasses import asdict

    from dovecote.sdk import Dovecote

    with Dovecote() as client:
        view = client.sessions.get(session_id).view
    for name, value in asdict(view).items():
        say(f"{name:20} {'-' if value is None else value}")


@commands.command()
def show(session_id: SessionId) -> None:
    """Say how a session is, and how far its files are saved."""
    from dovecote.sdk import Dovecote

    with Dovecote() as client:
        session = client.sessions.get(session_id)
        lag = session.lag()
    view = session.view
    say(f"{view.state}: {view.reason}" if view.reason else view.state)
    say(f"files: {_saved(lag)}")
    say(f"key {view.key}, tier {view.tier}, {age(view.created_at)} old, last active {age(view.last_active_at)} ago")
    if view.address:
        say(view.address)
    if view.reinstall is not None:
        say(f"reinstalling {', '.join(view.reinstall.directories)}: {view.reinstall.state} {view.reinstall.command}")
        if view.reinstall.state == "failed":
            say(view.reinstall.output)


def _saved(lag: Lag) -> str:
    """`last saved 0.8 s ago, 3 files pending`."""
    ago = "not saved yet" if lag.saved_ago_seconds is None else f"last saved {lag.saved_ago_seconds:.1f} s ago"
    if lag.state == "on_host":
        return f"on its host only, {ago}"
    if lag.state == "damaged":
        return f"damaged, {ago}"
    if lag.state == "saved":
        return "all saved" if lag.saved_ago_seconds is None else f"all saved, {ago}"
    text = f"{ago}, {'many' if lag.pending is None else lag.pending} files pending"
    if lag.state == "failing":
        text += f"; saving fails ({lag.error_code}) and is tried again, work goes on"
    return text


@commands.command()
def rm(session_ids: Annotated[list[str], typer.Argument(metavar="SESSION...")]) -> None:
    """End sessions and delete their files."""
    from dovecote.sdk import Dovecote

    with Dovecote() as client:
        for session_id in session_ids:
            client.sessions.get(session_id).delete()


@commands.command()
def wake(session_id: SessionId) -> None:
    """Bring it to ready, whatever it takes."""
    _change(session_id, "wake")


@commands.command()
def freeze(session_id: SessionId) -> None:
    """Stop its CPU, keep its memory."""
    _change(session_id, "freeze")


@commands.command()
def park(session_id: SessionId) -> None:
    """Save its files and stop its instance."""
    _change(session_id, "park")


@commands.command()
def snapshot(
    session_id: SessionId,
    label: Annotated[str, typer.Option(help="What to call it.")] = "",
    pin: Annotated[bool, typer.Option(help="Keep it whatever the tier says.")] = False,
) -> None:
    """Save its files under a name and print the snapshot's id."""
    from dovecote.sdk import Dovecote

    with Dovecote() as client:
        print(client.sessions.get(session_id).snapshot(label, is_pinned=pin).id)


@commands.command()
def snapshots(session_id: SessionId) -> None:
    """List its snapshots, oldest first."""
    from dovecote.sdk import Dovecote

    with Dovecote() as client:
        found = client.sessions.get(session_id).snapshots()
    table(
        ("id", "cause", "label", "files", "bytes", "pinned", "age"),
        [
            (
                each.id,
                each.cause,
                each.label,
                str(each.files),
                str(each.total_bytes),
                "yes" if each.is_pinned else "",
                age(each.created_at),
            )
            for each in found
        ],
    )


SnapshotId = Annotated[str, typer.Argument(metavar="SNAPSHOT", help="snp_...")]


@commands.command()
def rewind(session_id: SessionId, snapshot_id: SnapshotId) -> None:
    """Go back to a snapshot; what runs in the session ends."""
    from dovecote.sdk import Dovecote

    with Dovecote() as client:
        view = client.sessions.get(session_id).rewind(snapshot_id)
    say(f"{view.state}: {view.reason}" if view.reason else view.state)


@commands.command()
def diff(
    session_id: SessionId,
    snapshot_id: SnapshotId,
    to: Annotated[str | None, typer.Argument(metavar="SNAPSHOT", help="snp_...; as it is now if none.")] = None,
    file: Annotated[str | None, typer.Option(help="Show how the text of this file has changed.")] = None,
) -> None:
    """List what has changed since a snapshot."""
    from dovecote.sdk import Dovecote

    with Dovecote() as client:
        session = client.sessions.get(session_id)
        if file is not None:
            _show_diff(session.diff(snapshot_id, file, to))
            return
        found = session.changes(snapshot_id, to)
    sizes = ["" if each.new_bytes is None else str(each.new_bytes) for each in found]
    table(("what", "path", "bytes"), [(c.what, c.path, size) for c, size in zip(found, sizes, strict=True)])


def _show_diff(found: FileDiff) -> None:
    write_bytes(found.diff.encode())
    if found.is_binary:
        problem(f"{found.path} is no text: {found.old_bytes} and {found.new_bytes} bytes")
    elif found.is_truncated:
        problem(f"there is more that differs in {found.path}")


@commands.command()
def download(
    session_id: SessionId,
    target: Annotated[Path | None, typer.Argument(metavar="FILE.ZIP", help="SESSION.zip here if none.")] = None,
    snapshot: Annotated[str | None, typer.Option(help="snp_...; as it is now if none.")] = None,
    path: Annotated[str | None, typer.Option(help="A file or directory; the user's home if none.")] = None,
) -> None:
    """Download its files as a zip file."""
    from dovecote.sdk import Dovecote

    target = target or Path(f"{snapshot or session_id}.zip")
    # Through a file beside the target, so that a broken download is not taken for a whole one.
    partial = target.with_name(target.name + ".partial")
    with Dovecote() as client:
        pieces = client.sessions.get(session_id).archive(snapshot, path=path)
        try:
            with partial.open("wb") as file:
                for piece in pieces:
                    file.write(piece)
            partial.replace(target)
        finally:
            partial.unlink(missing_ok=True)
    print(target)


@commands.command()
def fork(
    session_id: SessionId,
    snapshot_id: Annotated[
        str | None, typer.Argument(metavar="SNAPSHOT", help="snp_...; as it is now if none.")
    ] = None,
    key: Annotated[str | None, typer.Option(help="Your own name for the new session.")] = None,
    user: Annotated[str | None, typer.Option(help="Its end user; the original's if none.")] = None,
) -> None:
    """Open a new session with its files and print its id."""
    from dovecote.sdk import Dovecote

    with Dovecote() as client:
        print(client.sessions.get(session_id).fork(snapshot_id, key=key, user=user).id)


def _change(session_id: str, verb: str) -> None:
    from dovecote.sdk import Dovecote

    with Dovecote() as client:
        session: Session = client.sessions.get(session_id)
        view = {"wake": session.wake, "freeze": session.freeze, "park": session.park}[verb]()
    say(f"{view.state}: {view.reason}" if view.reason else view.state)
