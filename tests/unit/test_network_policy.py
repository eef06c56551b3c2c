"""What a policy permits, how it is parsed, and how it becomes rules."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dovecote.errors import Invalid, Unsupported
from dovecote.host.network import policy
from dovecote.host.network.netlink import nested, parse_attributes, text, u32
from dovecote.host.network.sets import Element, _parse_element
from dovecote.model.networks import MOST, parse_networks
from dovecote.model.sizes import NetworkPolicy

RANGE = IPv4Network("10.201.0.0/16")
ALL = (IPv4Network("0.0.0.0/0"),)


@pytest.mark.parametrize(
    "address",
    ["10.201.3.4", "127.0.0.1", "169.254.169.254", "100.100.100.200", "168.63.129.16", "224.0.0.1", "0.0.0.1"],
)
def test_no_policy_opens_instances_loopback_or_metadata(address: str) -> None:
    assert not policy.permits(IPv4Address(address), internet=True, grants=ALL, network=RANGE)


@pytest.mark.parametrize("address", ["10.1.2.3", "172.16.0.1", "192.168.1.1", "100.64.0.1"])
def test_private_networks_are_open_only_by_name(address: str) -> None:
    destination = IPv4Address(address)
    assert not policy.permits(destination, internet=True, grants=(), network=RANGE)
    assert policy.permits(destination, internet=False, grants=(IPv4Network(f"{address}/32"),), network=RANGE)


def test_internet_and_names_go_together() -> None:
    for destination in (IPv4Address("93.184.216.34"), policy.GATEWAY):
        assert policy.permits(destination, internet=True, grants=(), network=RANGE)
        assert not policy.permits(destination, internet=False, grants=(), network=RANGE)


def test_parts_of_the_internet_are_denied_by_name() -> None:
    denials = (IPv4Network("93.184.0.0/16"),)
    destination = IPv4Address("93.184.216.34")
    assert not policy.permits(destination, internet=True, grants=(), network=RANGE, denials=denials)
    assert policy.permits(IPv4Address("93.185.0.1"), internet=True, grants=(), network=RANGE, denials=denials)
    granted = (IPv4Network("93.184.216.34/32"),)
    assert policy.permits(destination, internet=True, grants=granted, network=RANGE, denials=denials)


def test_overlapping_grants_become_one() -> None:
    wanted = NetworkPolicy(allow_cidrs=("10.1.0.0/16", "10.1.2.0/24", "10.1.2.3/32"))
    assert parse_networks(wanted.allow_cidrs) == (IPv4Network("10.1.0.0/16"),)


@pytest.mark.parametrize("cidr", ["", "10.1.0.1/16", "fd00::/8", "10.0.0.0/8 } accept; {"])
def test_a_grant_that_is_no_ipv4_network_is_refused(cidr: str) -> None:
    with pytest.raises(Invalid) as caught:
        parse_networks([cidr])
    assert caught.value.code == "invalid_cidr"


@pytest.mark.parametrize("name", ["example.org", "*.example.org", "localhost", "a_b.example.org."])
def test_a_host_is_not_granted_by_name(name: str) -> None:
    with pytest.raises(Unsupported) as caught:
        parse_networks([name])
    assert caught.value.code == "no_domain_rules"


def test_too_many_grants_are_refused() -> None:
    with pytest.raises(Invalid):
        parse_networks([f"10.{n}.0.1/32" for n in range(MOST + 1)])


@pytest.mark.parametrize("network", ["10.0.0.0/15", "169.254.0.0/16", "10.1.0.0/30", "fd00::/64", "nonsense"])
def test_a_range_that_cannot_hold_instances_is_refused(network: str) -> None:
    with pytest.raises(Invalid):
        policy.parse_network(network)


def test_names_on_the_host_are_short_enough_and_link_addresses_stay_in_their_range() -> None:
    for number in range(2000):
        plan = policy.Plan(f"{number:06x}", RANGE, IPv4Address("192.0.2.53"))
        assert len(plan.link) <= 15
        assert plan.host_address in IPv4Network("169.254.64.0/18")
        assert plan.router_address == plan.host_address + 1


def test_what_an_instance_sends_is_judged_in_this_order() -> None:
    """Never beats granted, granted beats denied and private, these beat internet."""
    rules = policy.render_router(policy.Plan("abc", RANGE, IPv4Address("192.0.2.53")))
    judge = rules.split("chain judge {")[1].split("}\n  chain")[0]
    order = ["169.254.0.0/16", "@allowed", "@denied", "192.168.0.0/16", "@internet goto permitted\n    goto rejected"]
    assert [judge.index(words) for words in order] == sorted(judge.index(words) for words in order)
    assert "10.201.0.0/16 } goto rejected" in judge


@given(st.ip_addresses(v=4), st.integers(0, 32), st.ip_addresses(v=4))
def test_an_element_reads_as_it_was_written(address: IPv4Address, prefix: int, base: IPv4Address) -> None:
    for element in (Element(address), Element(address, IPv4Network((base, prefix), strict=False))):
        assert _parse_element(parse_attributes(parse_attributes(element.pack())[1])) == element


def test_attributes_read_as_they_were_written() -> None:
    inner = parse_attributes(parse_attributes(nested(7, text(1, "abc"), u32(2, 9)))[7])
    assert inner == {1: b"abc\0", 2: (9).to_bytes(4, "little")}
