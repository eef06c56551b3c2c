"""`dovecote sandbox port`: where the ports of a session are reached, by address or on this machine."""

from __future__ import annotations

import asyncio
import signal
from typing import TYPE_CHECKING, Annotated

import typer

from dovecote.cli.execute import SessionId
from dovecote.cli.show import err, problem, table

if TYPE_CHECKING:
    from dovecote.sdk import DovecoteError

HERE = "127.0.0.1"


def port(
    session_id: SessionId,
    number: Annotated[int | None, typer.Argument(metavar="PORT", help="All that are open if left out.")] = None,
    local: Annotated[
        str | None,
        typer.Option(metavar="[ADDRESS:]NUMBER", help="Carry connections from here to it until Ctrl-C; 0 is any port."),
    ] = None,
) -> None:
    """Print the address of a port, forward it to this machine, or list the ports that something listens on."""
    if number is not None and not 0 < number < 65536:
        raise typer.BadParameter("a port is 1 to 65535")
    if local is None:
        _show(session_id, number)
    elif number is None:
        raise typer.BadParameter("--local forwards one port: name it")
    else:
        asyncio.run(_forward(session_id, number, *parse_local(local)))


def parse_local(text: str) -> tuple[str, int]:
    """Address and port: `8000`, `0.0.0.0:8000`, `[::1]:8000`. Raises BadParameter."""
    host, _, digits = text.rpartition(":")
    if not (digits.isascii() and digits.isdigit() and len(digits) <= 5 and int(digits) < 65536):
        raise typer.BadParameter(f"not a port of this machine: {text[:60]!r}; 8000, 127.0.0.1:8000, or 0 for any")
    return host.removeprefix("[").removesuffix("]") or HERE, int(digits)


def _show(session_id: str, number: int | None) -> None:
    from dovecote.sdk import Dovecote

    with Dovecote() as client:
        its = client.sessions.get(session_id)
        if number is not None:
            print(its.url(number))
            return
        found = its.ports()
    note = "on 127.0.0.1 only: reached with --local"
    table(("port", "address", "note"), [(p.port, p.address, note if p.loopback_only else "") for p in found])


async def _forward(session_id: str, number: int, host: str, local_port: int) -> None:
    from dovecote.sdk import AsyncDovecote

    over = asyncio.Event()
    loop = asyncio.get_running_loop()
    async with AsyncDovecote() as client:
        its = await client.sessions.get(session_id)
        async with its.forward(number, host=host, local_port=local_port, on_problem=_tell) as forward:
            for signum in (signal.SIGINT, signal.SIGTERM):
                loop.add_signal_handler(signum, over.set)
            print(its.url(number), flush=True)
            address, there = forward.address
            print(f"[{address}]:{there}" if ":" in address else f"{address}:{there}", flush=True)
            err.out(f"connections to it go to port {number} of {session_id} until Ctrl-C")
            await over.wait()


def _tell(error: DovecoteError) -> None:
    problem(error.message, error.code, error.hint)
