"""Messages in proto3's JSON, as clients of the Connect protocol write them. Trusts nothing that it reads."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from typing import Any

import orjson

from dovecote.errors import Invalid

Json = dict[str, Any]


class Message:
    """Fields by their proto names. Unknown ones are ignored; one that is null or missing has its default."""

    def __init__(self, fields: Mapping[str, object], what: str = "the message") -> None:
        self._fields = fields
        self._what = what

    @classmethod
    def parse(cls, data: bytes) -> Message:
        """Raises Invalid where it is not one JSON object."""
        try:
            fields = orjson.loads(data or b"{}")
        except orjson.JSONDecodeError as error:
            raise Invalid(f"the message is not JSON: {error}") from None
        if not isinstance(fields, dict):
            raise Invalid("the message is not a JSON object")
        return cls(fields)

    def has(self, name: str) -> bool:
        return self._get(name) is not None

    def text(self, name: str) -> str:
        value = self._get(name)
        if value is None:
            return ""
        if not isinstance(value, str):
            raise self._wrong(name, "a string")
        return value

    def number(self, name: str) -> int:
        """An unsigned 32-bit one, written as a number or as a string."""
        value = self._get(name)
        if value is None:
            return 0
        if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) <= 10:
            value = int(value)
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 1 << 32:
            raise self._wrong(name, "an unsigned 32-bit number")
        return value

    def choice(self, name: str, values: Mapping[str, int]) -> int:
        """A value of an enumeration, by its name or by its number."""
        given = self._get(name)
        if isinstance(given, str) and given in values:
            return values[given]
        if isinstance(given, int) and given in values.values():
            return given
        raise self._wrong(name, f"one of {', '.join(values)}")

    def flag(self, name: str) -> bool:
        value = self._get(name)
        if value is not None and not isinstance(value, bool):
            raise self._wrong(name, "true or false")
        return bool(value)

    def data(self, name: str) -> bytes:
        """Base64, of either alphabet, with or without its padding."""
        text = self.text(name).translate(_TO_STANDARD).rstrip("=")
        try:
            return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
        except (binascii.Error, ValueError):
            raise self._wrong(name, "base64") from None

    def message(self, name: str) -> Message:
        """Empty if it is not there."""
        value = self._get(name)
        if value is None:
            value = {}
        if not isinstance(value, dict):
            raise self._wrong(name, "an object")
        return Message(value, name)

    def texts(self, name: str) -> list[str]:
        value = self._get(name)
        if value is None:
            return []
        if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
            raise self._wrong(name, "a list of strings")
        return value

    def text_map(self, name: str) -> dict[str, str]:
        value = self._get(name)
        if value is None:
            return {}
        if not isinstance(value, dict) or not all(isinstance(each, str) for each in value.values()):
            raise self._wrong(name, "an object of strings")
        return value

    def _get(self, name: str) -> object:
        """By its JSON name, `lowerCamelCase`, or by its own."""
        found = self._fields.get(_json_name(name))
        return self._fields.get(name) if found is None else found

    def _wrong(self, name: str, wanted: str) -> Invalid:
        return Invalid(f"{name} of {self._what} is not {wanted}")


_TO_STANDARD = str.maketrans("-_", "+/")


def _json_name(name: str) -> str:
    first, *rest = name.split("_")
    return first + "".join(word.capitalize() for word in rest)
