"""Reads a Dovecotefile: a small part of what Dockerfiles are, and a start and a check of our own."""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import dataclass, replace

from dovecote.errors import Invalid

NAME = "Dovecotefile"
MAX_BYTES = 64 << 10
MAX_INSTRUCTIONS = 100
WORDS = ("FROM", "RUN", "COPY", "ENV", "USER", "WORKDIR", "START", "READY")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_FLAG = re.compile(r"--([a-z-]+)(?:=(\S+))?\s+")
FLAGS = {"RUN": ("user", "no-cache"), "COPY": ("chown", "chmod", "no-cache")}
_PORT = re.compile(r"(.*\S)\s+PORT\s+(\d{1,5})", re.DOTALL)


@dataclass(frozen=True)
class Instruction:
    line: int
    word: str
    text: str  # what follows the word and its flags, lines joined
    flags: tuple[tuple[str, str], ...] = ()

    def flag(self, name: str) -> str:
        """What follows `--name=`, or nothing."""
        return dict(self.flags).get(name, "")

    @property
    def is_made_anew(self) -> bool:
        return "no-cache" in dict(self.flags)

    def __str__(self) -> str:
        return f"{self.word} {self.text}"


@dataclass(frozen=True)
class Recipe:
    source: str  # of FROM
    steps: tuple[Instruction, ...]  # RUN, COPY, ENV, USER, WORKDIR
    start: str = ""  # a shell line, or a JSON list
    port: int = 0
    ready: str = ""


def parse_dovecotefile(data: bytes) -> Recipe:
    """Raises Invalid (bad_dovecotefile), naming the line."""
    if len(data) > MAX_BYTES:
        raise _bad(1, f"it is over {MAX_BYTES} bytes")
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise _bad(1, "it is not UTF-8") from error
    found = _instructions(text)
    if len(found) > MAX_INSTRUCTIONS:
        raise _bad(found[MAX_INSTRUCTIONS].line, f"more than {MAX_INSTRUCTIONS} instructions")
    if not found or found[0].word != "FROM":
        raise _bad(1, "the first instruction is FROM, with a template's name or an image")
    once: dict[str, Instruction] = {}
    for each in found:
        if each.word in ("FROM", "START", "READY") and once.setdefault(each.word, each) is not each:
            raise _bad(each.line, f"a second {each.word}")
        _check(each)
    start, port = _start(once.get("START"))
    ready = once.get("READY")
    steps = tuple(each for each in found if each.word not in once)
    return Recipe(found[0].text, steps, start, port, ready.text if ready else "")


def argv_of(text: str) -> tuple[str, ...]:
    """Words of `["a", "b"]`, else the line for a shell."""
    if text.startswith("["):
        try:
            words = json.loads(text)
        except ValueError:
            words = None
        if isinstance(words, list) and words and all(isinstance(word, str) and "\0" not in word for word in words):
            return tuple(words)
    return ("/bin/sh", "-c", text)


def variables_of(each: Instruction) -> dict[str, str]:
    """`A=1 B="two words"`."""
    found = {}
    for word in words_of(each):
        name, equals, value = word.partition("=")
        if not equals or not _VARIABLE.fullmatch(name):
            raise _bad(each.line, f"ENV takes NAME=value, not {word[:60]!r}")
        found[name] = value
    return found


def words_of(each: Instruction) -> list[str]:
    try:
        return shlex.split(each.text)
    except ValueError as error:
        raise _bad(each.line, f"{each.word}: {error}") from error


def _instructions(text: str) -> list[Instruction]:
    found: list[Instruction] = []
    parts: list[str] = []
    first = 0
    for number, raw in enumerate([*text.splitlines(), ""], 1):
        line = raw.strip()
        if line.startswith("#") or (not line and parts and number <= len(text.splitlines())):
            continue
        first = first if parts else number
        if line.endswith("\\"):
            parts.append(line[:-1].rstrip())
            continue
        parts.append(line)
        whole = " ".join(part for part in parts if part)
        parts = []
        if whole:
            word, _, rest = whole.partition(" ")
            found.append(_flagged(Instruction(first, word.upper(), rest.strip())))
    return found


def _flagged(each: Instruction) -> Instruction:
    text, flags = each.text, []
    while each.word in FLAGS and (match := _FLAG.match(text)):
        if match[1] not in FLAGS[each.word] or (match[1] == "no-cache") is not (match[2] is None):
            raise _bad(each.line, f"{each.word} has no {match[0].strip()[:40]!r}")
        flags.append((match[1], match[2] or ""))
        text = text[match.end() :]
    return replace(each, text=text, flags=tuple(flags))


def _check(each: Instruction) -> None:
    if each.word not in WORDS:
        raise _bad(each.line, f"no instruction {each.word[:40]!r}; there are {', '.join(WORDS)}")
    if not each.text or "\0" in each.text:
        raise _bad(each.line, f"{each.word} of nothing")
    if each.word == "ENV":
        variables_of(each)
    elif each.word == "COPY" and (len(words_of(each)) < 2 or each.text.startswith(("-", "["))):
        raise _bad(each.line, "COPY takes paths of the context and at last where they go")
    elif each.flag("chmod") and not re.fullmatch("[0-7]{3,4}", each.flag("chmod")):
        raise _bad(each.line, "--chmod takes an octal mode: --chmod=755")
    elif each.word in ("FROM", "USER", "WORKDIR") and len(words_of(each)) != 1:
        raise _bad(each.line, f"{each.word} takes one word")


def _start(each: Instruction | None) -> tuple[str, int]:
    """With 0 for a command that opens no port."""
    if each is None:
        return "", 0
    match = _PORT.fullmatch(each.text)
    if match is None:
        return each.text, 0
    port = int(match[2])
    if not 0 < port < 65536:
        raise _bad(each.line, f"no port {port}")
    return match[1], port


def _bad(line: int, why: str) -> Invalid:
    return Invalid(f"{NAME}, line {line}: {why}", code="bad_dovecotefile")
