"""Secrets of API keys, and whom they are of."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from blake3 import blake3

from dovecote.model.ids import ALPHABET, random_text
from dovecote.model.records import ApiKey

PREFIX = "dvc_"
SECRET_LENGTH = 52  # letters after the prefix: 260 random bits
_SECRET = re.compile(rf"{PREFIX}[{ALPHABET}]{{{SECRET_LENGTH}}}")


@dataclass(frozen=True)
class Principal:
    """Who a request is from."""

    tenant_id: str
    key_id: str


@dataclass(frozen=True)
class NewKey:
    """A key just made. The secret is nowhere else: show it once."""

    key: ApiKey
    secret: str = field(repr=False)


def new_secret() -> str:
    return PREFIX + random_text(SECRET_LENGTH)


def is_secret(text: str) -> bool:
    return _SECRET.fullmatch(text) is not None


def digest_of(secret: str) -> str:
    """What is stored and looked up. Guessing at it tells nothing, so looking it up need not take constant time.

    A plain hash is enough: the secret is random, not a password, and cannot be found by trying.
    """
    return blake3(secret.encode()).hexdigest()
