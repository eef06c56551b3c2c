"""Which name server instances get."""

from __future__ import annotations

from ipaddress import IPv4Address
from pathlib import Path

import pytest

from dovecote.errors import Invalid, Unsupported
from dovecote.host.network.prerequisites import find_problems
from dovecote.host.network.resolver import find_resolver, parse_nameservers


def test_loopback_ipv6_and_nonsense_are_passed_over() -> None:
    text = "search x\nnameserver 127.0.0.53\nnameserver ::1\nnameserver what\nnameserver\n nameserver 192.0.2.53 # x\n"
    assert parse_nameservers(text) == [IPv4Address("192.0.2.53")]


def test_the_first_file_that_names_one_decides(tmp_path: Path) -> None:
    stub, real = tmp_path / "stub", tmp_path / "real"
    stub.write_text("nameserver 127.0.0.53\n")
    real.write_text("nameserver 192.0.2.1\nnameserver 192.0.2.2\n")
    assert find_resolver("", [tmp_path / "absent", stub, real]) == IPv4Address("192.0.2.1")


def test_the_setting_comes_before_files(tmp_path: Path) -> None:
    (tmp_path / "real").write_text("nameserver 192.0.2.1\n")
    assert find_resolver("192.0.2.9", [tmp_path / "real"]) == IPv4Address("192.0.2.9")


@pytest.mark.parametrize("dns", ["127.0.0.1", "0.0.0.0", "fd00::1", "dns.example"])
def test_a_setting_that_instances_cannot_reach_is_refused(dns: str) -> None:
    with pytest.raises(Invalid):
        find_resolver(dns)


def test_a_host_with_only_a_loopback_resolver_gets_a_hint(tmp_path: Path) -> None:
    (tmp_path / "stub").write_text("nameserver 127.0.0.53\n")
    with pytest.raises(Unsupported) as caught:
        find_resolver("", [tmp_path / "stub"])
    assert caught.value.code == "no_resolver"
    assert "DOVECOTE_DNS" in caught.value.hint


def test_the_doctor_reports_a_missing_resolver(tmp_path: Path) -> None:
    problems = find_problems(network="10.201.0.0/16", dns="", resolver_files=[tmp_path / "absent"])
    assert any("DOVECOTE_DNS" in problem.hint for problem in problems)
