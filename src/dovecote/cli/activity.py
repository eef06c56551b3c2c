"""`dovecote session why` and `lease`, `dovecote user`: when sessions sleep, and how long they are kept."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer

from dovecote.cli.show import age, say, table

if TYPE_CHECKING:
    from dovecote.sdk import Activity, HookRun

users = typer.Typer(help="End users of your product, and their tiers.", no_args_is_help=True)

SessionId = Annotated[str, typer.Argument(metavar="SESSION", help="ses_...")]


def why(session_id: SessionId) -> None:
    """Say why a session is awake or rests, and what happens to it next."""
    from dovecote.sdk import Dovecote

    with Dovecote() as client:
        found = client.sessions.get(session_id).activity()
    say(found.why)
    for reason in found.reasons:
        times = [f"for {age(reason.since)}"] if reason.since else []
        times += [f"until {_clock(reason.until)}"] if reason.until else []
        say(f"  {reason.text}" + (f" ({', '.join(times)})" if times else ""))
    for each in found.next:
        say(f"{each.move}s {_when(each.at)} if nobody uses it")
    kept = "promised" if found.is_promised else "as long as there is room"
    say(f"kept {found.window_seconds / 60:g} min without use, {kept}")
    _say_past(found)


def say_hooks(runs: Iterable[HookRun]) -> None:
    for run in runs:
        said = "ok" if run.is_ok else f"failed: {run.reason}"
        say(f"hook {run.hook}: {said}, {age(run.at)} ago, {run.seconds:g} s, in {run.instance_id}")


def _say_past(found: Activity) -> None:
    say_hooks(found.hooks)
    if found.last_breach is not None:
        say(f"its promise was broken {found.breaches} times, last {_clock(found.last_breach.at)}")
        say(f"  {found.last_breach.reason}")
    for move in found.moves:
        say(f"{_clock(move.at)} {move.state}" + (f": {move.reason}" if move.reason else ""))


def lease(
    session_id: SessionId,
    seconds: Annotated[float, typer.Argument(help="From now; 0 ends its lease.")],
) -> None:
    """Wake a session and keep it awake for so long, whether it is used or not."""
    from dovecote.sdk import Dovecote

    with Dovecote() as client:
        session = client.sessions.get(session_id)
        view = session.lease(seconds) if seconds > 0 else session.release()
    if view.awake_until is not None and view.awake_until > datetime.now(UTC):
        say(f"awake until {_clock(view.awake_until)}")
    else:
        say("no lease")


@users.command()
def ls() -> None:
    """List end users and their tiers."""
    from dovecote.sdk import Dovecote

    with Dovecote() as client:
        found = client.users.list()
    table(("name", "tier", "age"), [(each.name, each.tier, age(each.created_at)) for each in found])


@users.command("set-tier")
def set_tier(
    name: Annotated[str, typer.Argument(help="Your own name for the user.")],
    tier: Annotated[str, typer.Argument(help="default, regular, vip or svip.")],
) -> None:
    """Change the tier of an end user, for open sessions too."""
    from dovecote.sdk import Dovecote

    with Dovecote() as client:
        say(f"{name} is {client.users.set_tier(name, tier).tier}")


@users.command()
def tiers() -> None:
    """List the tiers that there are, and what they promise."""
    from dovecote.sdk import Dovecote

    with Dovecote() as client:
        found = client.users.tiers()
    table(
        ("tier", "minutes without use", "promised", "longest lease (min)"),
        [
            (
                each.name,
                f"{each.idle_after_seconds / 60:g}",
                "yes" if each.is_promised else "",
                f"{each.longest_lease_seconds / 60:g}",
            )
            for each in found
        ],
    )


def _clock(moment: datetime) -> str:
    return moment.astimezone().strftime("%Y-%m-%d %H:%M:%S")


def _when(moment: datetime) -> str:
    seconds = max(0.0, (moment - datetime.now(UTC)).total_seconds())
    return f"in {seconds:.0f} s" if seconds < 600 else f"at {_clock(moment)}"
