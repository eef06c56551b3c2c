"""Variables of programs, as a session or a function may bring them."""

from __future__ import annotations

from collections.abc import Mapping

from dovecote.errors import Invalid

MOST_BYTES = 512 << 10  # all together: a command and its variables go to a sandbox in one message


def parse_env(env: Mapping[str, str]) -> dict[str, str]:
    """Itself, where programs can be given it: otherwise each command would fail. Raises Invalid (bad_variable)."""
    size = 0
    for name, text in env.items():
        try:
            size += len(name.encode()) + len(text.encode())
        except UnicodeEncodeError:
            raise _bad(name, "holds half a surrogate pair") from None
        if not name or "=" in name:
            raise _bad(name, "has a name that is empty or holds =")
        if "\0" in name or "\0" in text:
            raise _bad(name, "holds a NUL")
    if size > MOST_BYTES:
        raise Invalid(f"variables of {size} bytes", code="too_large", hint=f"{MOST_BYTES} bytes are the most")
    return dict(env)


def _bad(name: str, why: str) -> Invalid:
    return Invalid(f"the variable {name[:60]!r} {why}", code="bad_variable")
