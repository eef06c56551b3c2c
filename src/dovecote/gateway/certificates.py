"""Certificates for the gateway's names: its operator's, from files, or of an authority of our own."""

from __future__ import annotations

import contextlib
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from dovecote.errors import Invalid

LOOK_EVERY = 3600.0  # seconds
AUTHORITY_LASTS = timedelta(days=3650)
LASTS = timedelta(days=90)
RENEWED_AHEAD = timedelta(days=30)
BEFORE = timedelta(hours=1)  # clocks of clients go behind


def authority_path(data_dir: Path, domain: str) -> Path:
    """What clients have to trust, where the certificate is of our own making."""
    return data_dir / "tls" / domain / "ca.pem"


def names_of(domain: str) -> list[str]:
    """All that the gateway answers to."""
    return [domain, f"api.box.{domain}", *(f"*.{kind}.{domain}" for kind in ("box", "fn", "app"))]


class Files:
    """A certificate with its chain, and its key, that somebody else keeps good."""

    def __init__(self, certificate: Path, key: Path) -> None:
        self._certificate = certificate
        self._key = key

    def current(self, now: datetime) -> tuple[str, str]:
        """Chain and key, PEM. Raises Invalid (bad_certificate)."""
        try:
            chain, key = self._certificate.read_text(), self._key.read_text()
            leaf = x509.load_pem_x509_certificate(chain.encode())
            private = serialization.load_pem_private_key(key.encode(), None)
        except (OSError, ValueError, TypeError) as error:
            raise _bad(f"{self._certificate} and {self._key}: {error}") from error
        if _public(private.public_key()) != _public(leaf.public_key()):
            raise _bad(f"{self._key} is not the key of {self._certificate}")
        return chain, key


class Authority:
    """Makes itself once, and certificates as they are needed; it can sign nothing outside of its domain."""

    def __init__(self, data_dir: Path, domain: str) -> None:
        self._domain = domain
        self._certificate = authority_path(data_dir, domain)
        self._directory = self._certificate.parent

    def current(self, now: datetime) -> tuple[str, str]:
        """Chain and key, PEM, good for some weeks at least. May be repeated."""
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        chain, key = self._directory / "server.pem", self._directory / "server.key"
        if not _is_good(self._certificate, now, ahead=LASTS):
            self._make_authority(now)
            chain.unlink(missing_ok=True)
        if not key.exists() or not _is_good(chain, now, ahead=RENEWED_AHEAD):
            self._make_certificate(chain, key, now)
        return chain.read_text(), key.read_text()

    def _make_authority(self, now: datetime) -> None:
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"Dovecote {self._domain}"[:64])])
        certificate = (
            _builder(name, name, key.public_key(), now, AUTHORITY_LASTS)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(x509.NameConstraints([x509.DNSName(self._domain)], None), critical=True)
            .add_extension(_usage(signs=True), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .sign(key, hashes.SHA256())
        )
        _write(self._directory / "ca.key", _private(key), 0o600)
        _write(self._certificate, certificate.public_bytes(serialization.Encoding.PEM), 0o644)

    def _make_certificate(self, chain: Path, key_path: Path, now: datetime) -> None:
        issuer = x509.load_pem_x509_certificate(self._certificate.read_bytes())
        signing = serialization.load_pem_private_key((self._directory / "ca.key").read_bytes(), None)
        assert isinstance(signing, ec.EllipticCurvePrivateKey)
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, self._domain[:64])])
        names = x509.SubjectAlternativeName([x509.DNSName(each) for each in names_of(self._domain)])
        known = x509.AuthorityKeyIdentifier.from_issuer_public_key(signing.public_key())
        certificate = (
            _builder(name, issuer.subject, key.public_key(), now, LASTS)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(names, critical=False)
            .add_extension(_usage(signs=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
            .add_extension(known, critical=False)
            .sign(signing, hashes.SHA256())
        )
        _write(key_path, _private(key), 0o600)
        _write(chain, certificate.public_bytes(serialization.Encoding.PEM), 0o644)


def _builder(
    name: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, now: datetime, lasts: timedelta
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - BEFORE)
        .not_valid_after(now + lasts)
    )


def _usage(*, signs: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        key_cert_sign=signs,
        crl_sign=signs,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _is_good(path: Path, now: datetime, *, ahead: timedelta) -> bool:
    with contextlib.suppress(OSError, ValueError):
        certificate = x509.load_pem_x509_certificate(path.read_bytes())
        until = certificate.not_valid_after_utc
        return certificate.not_valid_before_utc <= now.astimezone(UTC) and now + ahead < until
    return False


def _private(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _public(key: object) -> bytes:
    return key.public_bytes(  # type: ignore[attr-defined, no-any-return]  # every kind of public key has it
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def _write(path: Path, content: bytes, mode: int) -> None:
    draft = path.with_name(f".{path.name}.new")
    draft.unlink(missing_ok=True)
    with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
        file.write(content)
    os.replace(draft, path)


def _bad(why: str) -> Invalid:
    return Invalid(
        f"the gateway's certificate cannot be used: {why}",
        code="bad_certificate",
        hint="DOVECOTE_TLS_CERTIFICATE has the chain and DOVECOTE_TLS_KEY its key, PEM without a password",
    )
