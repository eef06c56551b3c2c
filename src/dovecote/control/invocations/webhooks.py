"""Webhooks: a signed POST to an address of a tenant's, which must not be one inside."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import ipaddress
import socket
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import httpx

from dovecote.control.invocations.lookups import Address, Lookups
from dovecote.errors import Conflict, DovecoteError, Failed, Forbidden, Invalid
from dovecote.model.ids import random_text
from dovecote.model.records import Tenant
from dovecote.store import Store

SIGNATURE_HEADER = "x-dovecote-signature"
SECRET_PREFIX = "whs_"
WITHIN = 15.0  # seconds, for all of it
TRIES = 8
OVERLAP, LONGEST_OVERLAP = timedelta(days=1), timedelta(days=30)  # of a secret and the one before it
NAT64 = ipaddress.ip_network("64:ff9b::/96")


class WebhookSecrets:
    """Each tenant's own, by which its receivers know that a webhook is ours."""

    def __init__(self, store: Store, *, now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self._store = store
        self._now = now

    async def get(self, tenant_id: str) -> str:
        """Made when it is first asked for."""
        tenant = await self._store.tenant(tenant_id).tenants.get(tenant_id)
        return tenant.webhook_secret or (await self._renewed(tenant_id, timedelta(0), only_if_none=True)).webhook_secret

    async def rotate(self, tenant_id: str, *, overlap: timedelta = OVERLAP) -> str:
        """A new one; the one before it signs too for as long as `overlap` says. Raises Invalid."""
        if not timedelta(0) <= overlap <= LONGEST_OVERLAP:
            raise Invalid(f"not a time for two secrets: {overlap}", hint=f"at most {LONGEST_OVERLAP}")
        return (await self._renewed(tenant_id, overlap)).webhook_secret

    async def signing(self, tenant_id: str) -> list[str]:
        """All that sign now, the newest first."""
        await self.get(tenant_id)  # so that there is one
        tenant = await self._store.tenant(tenant_id).tenants.get(tenant_id)
        until = tenant.webhook_secret_before_until
        is_both = tenant.webhook_secret_before and until is not None and self._now() < until
        return [tenant.webhook_secret, *([tenant.webhook_secret_before] if is_both else [])]

    async def _renewed(self, tenant_id: str, overlap: timedelta, *, only_if_none: bool = False) -> Tenant:
        tenants = self._store.tenant(tenant_id).tenants
        for _ in range(TRIES):
            tenant = await tenants.get(tenant_id)
            if only_if_none and tenant.webhook_secret:
                return tenant
            goes_on = bool(tenant.webhook_secret and overlap)
            changed = replace(
                tenant,
                webhook_secret=SECRET_PREFIX + random_text(52),
                webhook_secret_before=tenant.webhook_secret if goes_on else "",
                webhook_secret_before_until=self._now() + overlap if goes_on else None,
            )
            with suppress(Conflict):
                return await tenants.swap(changed)
        raise Conflict("too many changes at once", code="busy", hint="try again")


class Webhooks:
    """`allowed` are networks that are inside and may be reached all the same: the operator says so."""

    def __init__(
        self,
        secrets: WebhookSecrets,
        *,
        allowed: tuple[ipaddress.IPv4Network, ...] = (),
        clock: Callable[[], float] = time.time,
        lookups: Lookups | None = None,
    ) -> None:
        self._secrets = secrets
        self._lookups = lookups or Lookups()
        self._allowed = allowed
        self._clock = clock
        self._tls = httpx.create_ssl_context()  # once: it reads all authorities, which holds up the loop

    async def send(self, tenant_id: str, url: str, body: bytes) -> None:
        """Raises Forbidden (address_refused), Invalid, and Failed where another try may help."""
        secrets = await self._secrets.signing(tenant_id)
        headers = {
            "content-type": "application/json",
            "user-agent": "dovecote",
            SIGNATURE_HEADER: signature(secrets, int(self._clock()), body),
        }
        try:
            async with asyncio.timeout(WITHIN):
                status = await self._post(tenant_id, url, headers, body)
        except TimeoutError:
            raise Failed(f"the webhook took longer than {WITHIN:g} s", code="webhook_failed") from None
        except (httpx.HTTPError, OSError) as error:
            raise Failed(f"the webhook could not be reached: {error}", code="webhook_failed") from error
        if not 200 <= status < 300:
            raise Failed(f"the webhook answered {status}", code="webhook_failed", hint="it has to answer 2xx")

    async def _post(self, tenant_id: str, url: str, headers: dict[str, str], body: bytes) -> int:
        """To an address that was looked at, not to a name that may lead elsewhere a moment later; no redirects."""
        there = parse_url(url)
        address = await self._resolve(tenant_id, there.host, there.port or (443 if there.scheme == "https" else 80))
        limits = httpx.Limits(max_keepalive_connections=0)
        transport = httpx.AsyncHTTPTransport(verify=self._tls, retries=0, limits=limits)
        timeout = httpx.Timeout(WITHIN)
        async with httpx.AsyncClient(transport=transport, timeout=timeout, trust_env=False) as client:
            request = client.build_request(
                "POST",
                there.copy_with(host=str(address)),
                headers=headers | {"host": there.netloc.decode("ascii"), "connection": "close"},
                content=body,
                extensions={"sni_hostname": there.raw_host.decode("ascii")},
            )
            response = await client.send(request, stream=True, follow_redirects=False)
            await response.aclose()  # what it says besides its status is nobody's
            return response.status_code

    async def _resolve(self, tenant_id: str, host: str, port: int) -> Address:
        try:
            addresses = await self._lookups.find(tenant_id, host, port)
        except (socket.gaierror, UnicodeError) as error:
            raise Failed(f"no address of {host[:200]}: {error}", code="webhook_failed") from error
        for address in addresses:
            if not self._may(address):
                raise Forbidden(
                    f"webhooks do not go to {address}, which is inside",
                    code="address_refused",
                    hint="the operator can allow a network: DOVECOTE_WEBHOOK_CIDRS",
                )
        if not addresses:
            raise Failed(f"no address of {host[:200]}", code="webhook_failed")
        return addresses[0]

    def _may(self, address: Address) -> bool:
        meant = _meant(address)
        return is_outside(meant) or any(meant in each for each in self._allowed)


def signature(secrets: Sequence[str], at: int, body: bytes) -> str:
    """`t=<seconds>,v1=<hex>`, with a `v1` for each secret: HMAC-SHA256 of `<seconds>.<body>`."""
    signed = str(at).encode() + b"." + body
    digests = [hmac.new(secret.encode(), signed, hashlib.sha256).hexdigest() for secret in secrets]
    return ",".join([f"t={at}", *(f"v1={digest}" for digest in digests)])


def is_outside(address: Address) -> bool:
    """Whether it is one of the internet: not of this machine, a private network, a link, a group, or reserved."""
    return address.is_global and not (address.is_multicast or address.is_reserved or address.is_unspecified)


def _meant(address: Address) -> Address:
    """The IPv4 address that an IPv6 one stands for."""
    if isinstance(address, ipaddress.IPv6Address):
        if address in NAT64:
            return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        return address.ipv4_mapped or address.sixtofour or address
    return address


def parse_url(text: str) -> httpx.URL:
    """Raises Invalid."""
    try:
        url = httpx.URL(text)
    except (httpx.InvalidURL, TypeError, ValueError) as error:
        raise _no_url(text) from error
    if url.scheme not in ("http", "https") or not url.host or url.userinfo:
        raise _no_url(text)
    return url


def _no_url(text: str) -> DovecoteError:
    return Invalid(f"not a URL of a webhook: {text[:60]!r}", hint="http or https, a host, no user and password")
