"""Which registries a tenant may name, whatever its name resolves to."""

from __future__ import annotations

import pytest

from dovecote.errors import Forbidden, Invalid
from dovecote.host.storage.oci import parse_reference
from dovecote.host.storage.registries import Registries, parse_registries

pytestmark = pytest.mark.anyio


def registries(*addresses: str, listed: str = "") -> Registries:
    async def resolve(host: str) -> list[str]:
        return list(addresses)

    return Registries(parse_registries(listed), resolve=resolve)


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "10.1.2.3",
        "192.168.0.1",
        "172.16.0.1",
        "169.254.169.254",
        "100.64.0.1",
        "0.0.0.0",
        "224.0.0.1",
        "::1",
        "::",
        "fe80::1%eth0",
        "fd00::1",
        "::ffff:127.0.0.1",
        "::ffff:10.0.0.1",
        "ff02::1",
        "nonsense",
    ],
)
async def test_a_name_that_leads_to_a_private_address_is_refused(address: str) -> None:
    with pytest.raises(Forbidden) as refused:
        await registries("93.184.216.34", address).check("registry.example")
    assert refused.value.code == "registry_refused"


async def test_a_public_one_is_not_listed_and_a_listed_one_may_be_anywhere() -> None:
    assert await registries("93.184.216.34").check("registry.example:443") is False
    assert await registries("127.0.0.1", listed="Intra:5000, other").check("intra:5000") is True
    with pytest.raises(Forbidden):
        await registries("127.0.0.1", listed="intra:5000").check("intra:5001")


async def test_a_name_that_does_not_resolve_is_left_to_the_fetching() -> None:
    async def resolve(host: str) -> list[str]:
        raise OSError("no such name")

    assert await Registries(frozenset(), resolve=resolve).check("no.such.example") is False


@pytest.mark.parametrize(
    ("text", "registry"),
    [
        ("alpine", "docker.io"),
        ("library/alpine:3", "docker.io"),
        ("127.0.0.1", "docker.io"),  # a name of Docker Hub's, odd as it is
        ("127.0.0.1/a", "127.0.0.1"),
        ("localhost/a", "localhost"),
        ("intra:5000/a/b@sha256:0", "intra:5000"),
        ("docker://[::1]:5000/a", "[::1]:5000"),
    ],
)
def test_a_reference_names_the_registry_that_its_clients_ask(text: str, registry: str) -> None:
    assert parse_reference(text).registry == registry


@pytest.mark.parametrize("text", ["a b", "http://x", "x/y", "[::1", "x:port"])
def test_what_is_no_registry_is_not_listed(text: str) -> None:
    with pytest.raises(Invalid):
        parse_registries(text)
