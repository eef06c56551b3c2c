"""Where the first run leaves the operator's API key."""

from __future__ import annotations

import os

import orjson

from dovecote.config import Settings
from dovecote.model.addresses import Addresses


def write_credentials(settings: Settings, secret: str) -> None:
    """`credentials.json` with `url` and `api_key`, readable by its owner only."""
    settings.config_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    path = settings.config_dir / "credentials.json"
    temporary = path.with_suffix(".new")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(orjson.dumps({"url": Addresses(settings.domain, settings.port).console(), "api_key": secret}))
    os.replace(temporary, path)
