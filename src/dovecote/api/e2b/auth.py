"""API keys as E2B's clients send them."""

from __future__ import annotations

from starlette.datastructures import Headers

from dovecote.errors import Unauthenticated

PREFIX = "e2b_"


def encode_key(secret: str) -> str:
    """A key of ours in the form that older clients insist on: `e2b_` and lower-case hex."""
    return PREFIX + secret.encode().hex()


def decode_key(text: str) -> str:
    """Our key, from either form. What is neither is left as it is: nobody has such a key."""
    if not text.startswith(PREFIX):
        return text
    try:
        return bytes.fromhex(text.removeprefix(PREFIX)).decode()
    except ValueError:
        return text


def secret_of(headers: Headers) -> str:
    """The API key of a request: `X-API-Key`, else `Authorization: Bearer`. Raises Unauthenticated."""
    given = headers.get("x-api-key", "") or bearer_of(headers)
    if not given:
        raise Unauthenticated("no API key", hint="`dovecote env e2b` prints E2B_API_KEY")
    return decode_key(given.strip())


def bearer_of(headers: Headers) -> str:
    """What follows `Authorization: Bearer`, or nothing."""
    scheme, _, token = headers.get("authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else ""
