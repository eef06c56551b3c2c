"""Unmodified clients of E2B that are told a domain only: names, TLS, and an authority that they are told to trust."""

from __future__ import annotations

import os
import re
import shlex
import socket
import ssl
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.e2e.installation import Installation
from tests.e2e.test_e2b_clients import CHECKS, checked, clients

__all__ = ["clients"]  # a fixture

pytestmark = pytest.mark.e2e

RESOLVER = "127.0.0.77"


@contextmanager
def resolver() -> Iterator[None]:
    """A name server for which every name is this machine, by IPv4."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind((RESOLVER, 53))
        thread = threading.Thread(target=answer, args=(server,), daemon=True)
        thread.start()
        try:
            yield
        finally:
            server.sendto(b"", (RESOLVER, 53))  # the last one
            thread.join(5)


def answer(server: socket.socket) -> None:
    while True:
        query, sender = server.recvfrom(512)
        if not query:
            return
        end = query.index(b"\0", 12) + 5  # of the question
        is_a = query[end - 4 : end - 2] == b"\0\1"
        counts = b"\0\1" + (b"\0\1" if is_a else b"\0\0") + b"\0\0\0\0"
        record = b"\xc0\x0c\0\1\0\1\0\0\0\x3c\0\4" + socket.inet_aton("127.0.0.1")
        server.sendto(query[:2] + b"\x81\x80" + counts + query[12:end] + (record if is_a else b""), sender)


def variables(installation: Installation) -> dict[str, str]:
    printed = installation.command("env", "e2b", "--domain")
    assert printed.returncode == 0, printed.stderr
    found = dict(re.findall(r"^export (\w+)='?([^'\n]*)'?$", printed.stdout, re.MULTILINE))
    assert set(found) == {"E2B_DOMAIN", "E2B_API_KEY", "SSL_CERT_FILE", "NODE_EXTRA_CA_CERTS"}
    return {"PATH": os.environ["PATH"], "HOME": "/root", "LANG": "C.UTF-8", **found}


@pytest.mark.parametrize("version", ["2.45", "2.63"])
def test_python(clients: Mapping[str, Path], installation: Installation, version: str, tmp_path: Path) -> None:
    """In a mount namespace of its own, with a resolver of its own."""
    conf = tmp_path / "resolv.conf"
    conf.write_text(f"nameserver {RESOLVER}\n")
    words = [str(clients[f"python-{version}"]), "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "ignore"]
    words += ["-c", os.devnull, "--rootdir", str(CHECKS), "--confcutdir", str(CHECKS), "-o", "asyncio_mode=auto"]
    script = f"mount --bind {conf} /etc/resolv.conf && exec {shlex.join([*words, str(CHECKS / 'check_sandboxes.py')])}"
    with resolver():
        checked(["unshare", "--mount", "sh", "-c", script], variables(installation), CHECKS)


def test_who_does_not_know_the_authority_does_not_trust_it(installation: Installation) -> None:
    port = installation.settings.tls_port
    path = installation.command("ca").stdout.strip()
    with socket.create_connection(("127.0.0.1", port), timeout=5) as wire, pytest.raises(ssl.SSLCertVerificationError):
        ssl.create_default_context().wrap_socket(wire, server_hostname="api.box.localhost")
    context = ssl.create_default_context(cafile=path)
    with (
        socket.create_connection(("127.0.0.1", port), timeout=5) as wire,
        context.wrap_socket(wire, server_hostname="3000-x.box.localhost") as secure,
    ):
        assert secure.version() in ("TLSv1.2", "TLSv1.3")
    with socket.create_connection(("127.0.0.1", port), timeout=5) as wire, pytest.raises(ssl.SSLCertVerificationError):
        context.wrap_socket(wire, server_hostname="example.com")
