"""Which web pages may talk to us: a page of another site must not, whatever name it gave our address."""

from __future__ import annotations

from ipaddress import ip_address
from urllib.parse import urlsplit

LOCAL = frozenset({"localhost", "127.0.0.1", "::1"})


def is_own(origin: str, host: str, domain: str) -> bool:
    """Whether a browser's `Origin` is ours: the console's, on this machine, or by the address that was called.

    A page whose name was bound to our address anew sends its own name as origin and as host; an address is no name.
    Programs that are not browsers send no origin. Pages of sandboxes and apps (`*.box.<domain>`) are not ours.
    """
    try:
        page, called = urlsplit(origin), urlsplit(f"//{host}")
        if page.scheme not in ("http", "https") or not page.hostname:
            return False
        return page.hostname in {*LOCAL, domain} or (_is_address(page.hostname) and page.netloc == called.netloc)
    except ValueError:
        return False


def _is_address(name: str) -> bool:
    try:
        ip_address(name)
    except ValueError:
        return False
    return True
