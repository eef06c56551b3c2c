"""The gateway's certificates: who may trust what, and when they are made anew."""

from __future__ import annotations

import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509

from dovecote.errors import Invalid
from dovecote.gateway.certificates import LASTS, RENEWED_AHEAD, Authority, Files, authority_path

NOW = datetime(2026, 3, 1, tzinfo=UTC)


def leaf(chain: str) -> x509.Certificate:
    return x509.load_pem_x509_certificate(chain.encode())


def test_one_certificate_has_all_names_and_is_signed_by_what_clients_trust(tmp_path: Path) -> None:
    chain, _ = Authority(tmp_path, "dove.test").current(NOW)
    authority = leaf(authority_path(tmp_path, "dove.test").read_text())
    leaf(chain).verify_directly_issued_by(authority)
    names = leaf(chain).extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == [
        "dove.test",
        "api.box.dove.test",
        "*.box.dove.test",
        "*.fn.dove.test",
        "*.app.dove.test",
    ]
    constraints = authority.extensions.get_extension_for_class(x509.NameConstraints)
    assert constraints.critical
    assert constraints.value.permitted_subtrees == [x509.DNSName("dove.test")]


def test_keys_are_their_owners_alone(tmp_path: Path) -> None:
    Authority(tmp_path, "dove.test").current(NOW)
    directory = authority_path(tmp_path, "dove.test").parent
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    for name in ("ca.key", "server.key"):
        assert stat.S_IMODE((directory / name).stat().st_mode) == 0o600


def test_it_is_renewed_ahead_of_its_end_and_the_authority_stays(tmp_path: Path) -> None:
    first = Authority(tmp_path, "dove.test").current(NOW)
    trusted = authority_path(tmp_path, "dove.test").read_text()
    in_time = NOW + LASTS - RENEWED_AHEAD - timedelta(days=1)
    assert Authority(tmp_path, "dove.test").current(in_time) == first
    later = in_time + timedelta(days=2)
    second = Authority(tmp_path, "dove.test").current(later)
    assert second != first
    assert leaf(second[0]).not_valid_after_utc > later + LASTS - timedelta(days=1)
    assert authority_path(tmp_path, "dove.test").read_text() == trusted


def test_what_is_damaged_is_made_anew(tmp_path: Path) -> None:
    first = Authority(tmp_path, "dove.test").current(NOW)
    (authority_path(tmp_path, "dove.test").parent / "server.pem").write_text("no certificate")
    assert Authority(tmp_path, "dove.test").current(NOW) != first


def test_files_of_an_operator_are_read_as_they_are_now(tmp_path: Path) -> None:
    chain, key = tmp_path / "chain.pem", tmp_path / "key.pem"
    files = Files(chain, key)
    with pytest.raises(Invalid):
        files.current(NOW)
    for domain in ("one.test", "two.test"):
        pair = Authority(tmp_path, domain).current(NOW)
        chain.write_text(pair[0])
        key.write_text(pair[1])
        assert files.current(NOW) == pair
    chain.write_text(Authority(tmp_path, "one.test").current(NOW)[0])
    with pytest.raises(Invalid):
        files.current(NOW)
