"""Whether the object store of the settings can be written, and creates an object only once."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import unquote, urlsplit

from dovecote.config import Settings
from dovecote.errors import DovecoteError
from dovecote.host.assembly import open_objects, store_url
from dovecote.host.doctor import Finding
from dovecote.host.storage.cache_limit import read_figures


def examine_cache(settings: Settings) -> Finding:
    """What the server last measured."""
    figures = read_figures(settings.data_dir / "trees")
    if figures is None or not figures.limit_bytes:
        return Finding("cache", True, "no limit" if figures else "not measured yet")
    return Finding(
        "cache",
        figures.needed_bytes <= figures.limit_bytes,
        f"{figures.needed_bytes} of {figures.limit_bytes} bytes are needed by what runs",
        "raise DOVECOTE_CACHE_BYTES or let fewer sessions and apps run here: it cannot be kept",
        is_required=False,
    )


def examine_store(settings: Settings) -> Finding:
    """Writes an object below `probe/` and deletes it. A folder that is not there yet is left so."""
    url = urlsplit(store_url(settings))
    # Without what stands before the host: somebody may have put a key there.
    shown = f"{url.scheme}://{url.netloc.rpartition('@')[2]}{url.path}"
    if url.scheme == "file" and not Path(unquote(url.path)).exists():
        return Finding("object store", True, f"{shown}: made at the first start")
    try:
        open_objects(settings).probe()
    except DovecoteError as error:
        return Finding("object store", False, error.message, error.hint or "check DOVECOTE_OBJECTS_URL")
    return Finding("object store", True, f"{shown}: creates an object only once")
