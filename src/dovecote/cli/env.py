"""`dovecote env`: variables that point other programs at this server."""

from __future__ import annotations

import contextlib
import shlex
from typing import Annotated

import typer

commands = typer.Typer(help="Variables that point other programs at this server.", no_args_is_help=True)


@commands.command("e2b")
def e2b(
    domain: Annotated[
        bool, typer.Option("--domain", help="By names and TLS, on the server's machine; it needs DOVECOTE_TLS_PORT.")
    ] = False,
) -> None:
    """Print what points an unmodified E2B SDK at this server: `eval "$(dovecote env e2b)"`."""
    from dovecote.api.e2b.auth import encode_key
    from dovecote.sdk._settings import find_access

    access = find_access(None, None)
    where = (
        _by_domain() if domain else dict.fromkeys(("E2B_API_URL", "E2B_SANDBOX_URL", "E2B_VOLUME_API_URL"), access.url)
    )
    show({**where, "E2B_API_KEY": encode_key(access.api_key)})
    _begin_template()


@commands.callback()
def env() -> None:
    """Without this the one command below would be the whole of `dovecote env`."""


def _begin_template() -> None:
    """The code interpreter's, which is made meanwhile: its client waits half a minute, and then gives up."""
    from dovecote.sdk import Dovecote, DovecoteError

    with contextlib.suppress(DovecoteError), Dovecote() as client:
        next(client.templates.prepare("code"), None)


def _by_domain() -> dict[str, str]:
    from dovecote.config import read_settings
    from dovecote.errors import Unsupported
    from dovecote.gateway.certificates import authority_path
    from dovecote.model.addresses import Addresses

    settings = read_settings()
    if not settings.tls_port:
        raise Unsupported("the server has no port with TLS", code="no_tls", hint="set DOVECOTE_TLS_PORT, for both")
    names = {"E2B_DOMAIN": Addresses(settings.domain, settings.port, settings.tls_port).boxes("https")}
    if settings.tls_certificate:
        return names
    trusted = str(authority_path(settings.data_dir, settings.domain.lower()))
    return {**names, "SSL_CERT_FILE": trusted, "NODE_EXTRA_CA_CERTS": trusted}


def show(variables: dict[str, str]) -> None:
    """As a shell reads them."""
    for name, text in variables.items():
        print(f"export {name}={shlex.quote(text)}")
