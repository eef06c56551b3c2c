"""`dovecote storage`: the store of saved files, looked after by the operator on the server's own machine."""

from __future__ import annotations

from typing import Annotated

import typer

from dovecote.cli.show import err, out, problem, say, table

USERS_SHOWN = 20  # of one damaged tree
commands = typer.Typer(no_args_is_help=True, help="The store of saved files, on the server's own machine.")


@commands.command("check")
def check(
    deep: Annotated[bool, typer.Option(help="Read and hash every object too, not only its pack's length.")] = False,
) -> None:
    """Look for saved files that are missing or damaged; exit code 1 if there are any."""
    from dovecote import installation
    from dovecote.config import read_settings

    with err.status("reading records and logs") as status:
        checked = installation.check_storage(
            read_settings(), deep=deep, progress=lambda done, all: status.update(f"{done} of {all} trees")
        )
    for damage in checked.damages:
        problem(f"{damage.what} is damaged", "corrupt")
        for fault in damage.faults:
            err.print(f"  {fault}", markup=False)
        for user in damage.users[:USERS_SHOWN]:
            err.print(f"  used by {user}", markup=False)
        if len(damage.users) > USERS_SHOWN:
            err.print(f"  and by {len(damage.users) - USERS_SHOWN} more")
    objects = f", {checked.objects} objects read" if deep else ""
    found = f"{checked.trees} trees, {checked.slots} slots of logs, {checked.packs} packs{objects}"
    say(f"{found}: {len(checked.damages) or 'nothing'} damaged")
    raise typer.Exit(int(bool(checked.damages)))


@commands.command("stat")
def stat() -> None:
    """Say what the store holds, how much of it is shared, and what this host's cache takes."""
    from dovecote import installation
    from dovecote.config import read_settings

    figures, cache, kept = installation.storage_figures(read_settings())
    table(
        ("what", "count", "bytes"),
        [
            *((kind, amount.count, amount.bytes) for kind, amount in figures.kinds.items()),
            ("files of all trees", figures.trees, figures.referenced_bytes),
            ("distinct content", "", figures.unique_bytes),
            ("cache of this host", cache.count, cache.bytes),
            ("its limit", "", kept.limit_bytes or "none"),
            ("what runs needs of it", "", kept.needed_bytes),
            ("evicted from it so far", "", kept.evicted_bytes),
        ],
    )
    out.print(f"each byte of content is used {figures.ratio:.2f} times")
    if figures.damaged:
        say(f"{figures.damaged} trees cannot be read and are not counted: `dovecote storage check` names them")


@commands.command("gc")
def gc(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be condemned and deleted.")] = False,
) -> None:
    """Condemn what nothing names any more, and delete what has been condemned for a day."""
    from dovecote import installation
    from dovecote.collecting import told
    from dovecote.config import read_settings

    with err.status("reading records, logs and manifests"):
        done = installation.collect_storage(read_settings(), dry_run=dry_run)
    say(f"would be: {told(done)}" if dry_run else told(done))
