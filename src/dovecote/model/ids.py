"""Ids that carry their kind and cannot be guessed."""

from __future__ import annotations

import re
import secrets

from dovecote.errors import Invalid

ALPHABET = "abcdefghijkmnpqrstuvwxyz23456789"  # 32 letters, none that is read as another
LENGTH = 26  # 130 random bits

KINDS = {
    "ten": "tenant",
    "usr": "user",
    "key": "API key",
    "fun": "function",
    "rev": "revision",
    "ses": "session",
    "ins": "instance",
    "app": "app",
    "cha": "chat",
    "trn": "turn",
    "snp": "snapshot",
    "cmd": "command",
    "ctx": "code context",
    "exe": "execution",
    "inv": "invocation",
    "req": "request",
    "hst": "host",
    "vol": "volume",
    "lim": "limit",
    "tpl": "template",
    "wat": "watcher",
}

_ID = re.compile(rf"({'|'.join(KINDS)})_[{ALPHABET}]{{{LENGTH}}}")
_SLUG = re.compile(rf"[{ALPHABET}]{{{LENGTH}}}")
_SESSION_KEY = re.compile(r"[A-Za-z0-9_.:@-]{1,200}")
_STRICT_KEY = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,63}")
_HEADER_NAME = re.compile(r"[A-Za-z][A-Za-z0-9-]{4,39}")
_LABEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")
_NAME = re.compile(r"[a-z]([a-z0-9-]{0,38}[a-z0-9])?")


def random_text(length: int = LENGTH) -> str:
    return "".join(secrets.choice(ALPHABET) for _ in range(length))


def new_id(kind: str) -> str:
    """`new_id("ses")` -> `ses_k3...`; `kind` is one of KINDS."""
    assert kind in KINDS
    return f"{kind}_{random_text()}"


def parse_id(text: str, kind: str) -> str:
    """The id itself, or Invalid with code `malformed_id`."""
    if not _ID.fullmatch(text) or not text.startswith(kind + "_"):
        raise Invalid(
            f"not a {KINDS[kind]} id: {text[:60]!r}",
            code="malformed_id",
            hint=f"it looks like {kind}_ and {LENGTH} letters and digits",
        )
    return text


def is_slug(text: str) -> bool:
    """Whether it looks like a name that we made, which no client can guess."""
    return _SLUG.fullmatch(text) is not None


def is_session_key(text: str) -> bool:
    return _SESSION_KEY.fullmatch(text) is not None


def parse_session_key(text: str, *, is_strict: bool = False) -> str:
    """A session's key as the client chose it. 1-200 characters of `[A-Za-z0-9_.:@-]`.

    Strict ones are as Function Compute has them: 1-64 of `[A-Za-z0-9_-]`, not a dash first.
    """
    if is_strict and not _STRICT_KEY.fullmatch(text):
        raise Invalid(
            f"not a session key: {text[:60]!r}",
            code="malformed_id",
            hint="use 1 to 64 of the characters A-Z a-z 0-9 _ -, not a dash first",
        )
    if not is_session_key(text):
        raise Invalid(
            f"not a session key: {text[:60]!r}",
            code="malformed_id",
            hint="use 1 to 200 of the characters A-Z a-z 0-9 _ . : @ -",
        )
    return text


def parse_strict_key(text: str) -> str:
    """A session's key where a function takes only what Function Compute takes."""
    if not _STRICT_KEY.fullmatch(text):
        raise Invalid(
            f"not a session key: {text[:60]!r}",
            code="malformed_id",
            hint="this function takes 1 to 64 of the characters A-Z a-z 0-9 _ and -, not beginning with a dash",
        )
    return text


def parse_header_name(text: str) -> str:
    """Name of an affinity header: 5-40 characters, starts with a letter (as Function Compute has it)."""
    if not _HEADER_NAME.fullmatch(text):
        raise Invalid(f"not a header name: {text[:60]!r}", hint="5 to 40 letters, digits and dashes, a letter first")
    return text


def parse_name(text: str, what: str) -> str:
    """A name that can stand in a host name: 1-40 of a-z, 0-9 and dashes, a letter first."""
    if not _NAME.fullmatch(text):
        raise Invalid(
            f"not a name for {what}: {text[:60]!r}",
            code="malformed_name",
            hint="1 to 40 of a-z, 0-9 and -, starting with a letter and not ending with a dash",
        )
    return text


def parse_label(text: str, what: str) -> str:
    """A name that stands in no host name: 1-100 of letters, digits, `_`, `.` and dashes, a letter or digit first."""
    if not _LABEL.fullmatch(text):
        raise Invalid(
            f"not a name for {what}: {text[:60]!r}",
            code="malformed_name",
            hint="1 to 100 of A-Z a-z 0-9 _ . -, starting with a letter or a digit",
        )
    return text


def parse_template_name(text: str) -> str:
    """`name` or `name:tag`; the tag `default` is the same as none. Raises Invalid (malformed_name)."""
    name, colon, tag = text.partition(":")
    parse_label(name, "a template")
    if colon:
        parse_label(tag, "a tag of a template")
    return name if tag in ("", "default") else text
