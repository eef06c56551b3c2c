"""Addresses are given out once, rest when released, and keep resting across a restart."""

from __future__ import annotations

from ipaddress import IPv4Network
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dovecote.errors import NoCapacity
from dovecote.host.network.addresses import Addresses
from dovecote.host.network.releases import Releases

SMALL = IPv4Network("10.9.0.0/29")  # six addresses


def test_every_address_is_used_before_one_is_used_again() -> None:
    addresses = Addresses(SMALL, rest=0)
    first = addresses.take(0)
    addresses.release(first, 0)
    assert [addresses.take(1) for _ in range(6)] == [2, 3, 4, 5, 6, 1]


def test_a_full_range_says_so() -> None:
    addresses = Addresses(SMALL, rest=30)
    for _ in range(6):
        addresses.take(0)
    with pytest.raises(NoCapacity) as caught:
        addresses.take(0)
    assert (caught.value.code, caught.value.retry_after) == ("no_addresses", None)


def test_a_resting_address_says_when_it_is_free() -> None:
    addresses = Addresses(SMALL, rest=30)
    for _ in range(6):
        addresses.take(0)
    addresses.release(4, 10)
    with pytest.raises(NoCapacity) as caught:
        addresses.take(25)
    assert caught.value.retry_after == 15
    assert addresses.take(40) == 4


def test_an_adopted_address_is_not_given_out() -> None:
    addresses = Addresses(SMALL, rest=0)
    addresses.resume({1: 0.0})
    addresses.hold(1)
    addresses.hold(3)
    assert [addresses.take(9) for _ in range(4)] == [2, 4, 5, 6]
    with pytest.raises(NoCapacity):
        addresses.take(9)


@given(st.lists(st.tuples(st.sampled_from(["take", "release", "hold"]), st.integers(1, 6), st.integers(0, 20))))
def test_no_address_is_given_out_twice_or_before_it_rested(steps: list[tuple[str, int, int]]) -> None:
    addresses, now = Addresses(SMALL, rest=30), 0
    used: set[int] = set()
    released: dict[int, int] = {}
    for act, index, later in steps:
        now += later
        if act == "release" and index in used:
            used.remove(index)
            released[index] = now
        elif act == "hold":
            used.add(index)
        if act != "take":
            getattr(addresses, act)(index, *([now] if act == "release" else []))
            continue
        try:
            taken = addresses.take(now)
        except NoCapacity:
            assert all(index in used or now - released[index] < 30 for index in range(1, 7))
            continue
        assert taken not in used
        assert now - released.get(taken, -30) >= 30
        used.add(taken)


def test_releases_are_read_back_without_the_line_a_crash_cut_short(tmp_path: Path) -> None:
    releases = Releases(tmp_path / "addresses")
    assert releases.read() is None
    releases.write({1: 5.0})
    releases.append(12, 7.25)
    with (tmp_path / "addresses").open("a") as file:
        file.write("13 9.")
    assert releases.read() == {1: 5.0, 12: 7.25}


def test_an_address_knows_its_number() -> None:
    addresses = Addresses(IPv4Network("10.9.0.0/16"), rest=0)
    assert str(addresses.address(258)) == "10.9.1.2"
    assert addresses.index("10.9.1.2") == 258
    for foreign in ("10.8.1.2", "10.9.0.0", "10.9.255.255"):
        with pytest.raises(ValueError, match="not an address"):
            addresses.index(foreign)
