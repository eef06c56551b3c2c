"""Builds as E2B's clients say them, as a Dovecotefile and a context. Pure but for the files."""

from __future__ import annotations

import fnmatch
import io
import json
import posixpath
import shlex
import tarfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import Field

from dovecote.api.e2b.shapes import Body
from dovecote.errors import Invalid, Unsupported

NAME = "Dovecotefile"
MOST_STEPS = 100
MOST_FILES = 50_000
MOST_UNPACKED = 1 << 30  # bytes; the context that is sent on has a smaller bound of its own
# Images that E2B's clients begin with when they say nothing.
OWN = {"e2bdev/base": "base", "e2bdev/code-interpreter": "code"}


class Step(Body):
    type: str = Field(max_length=20)
    args: list[str] = Field(default_factory=list, max_length=2000)
    files_hash: str | None = Field(None, max_length=64)
    force: bool = False


class Build(Body):
    from_image: str | None = Field(None, max_length=600)
    from_template: str | None = Field(None, max_length=200)
    from_image_registry: dict[str, Any] | None = None
    force: bool = False
    steps: list[Step] = Field(default_factory=list, max_length=MOST_STEPS)
    start_cmd: str | None = Field(None, max_length=32_768)
    ready_cmd: str | None = Field(None, max_length=32_768)

    @property
    def hashes(self) -> list[str]:
        return [step.files_hash for step in self.steps if step.type == "COPY" and step.files_hash]


def bare(name: str) -> str:
    """A template's name without the team that it may come with."""
    return name.rpartition("/")[2]


def source_of(build: Build) -> str:
    """What FROM names. Raises Invalid, Unsupported (no_registry_auth)."""
    if build.from_image_registry:
        raise Unsupported(
            "credentials for a registry do not come with a build",
            code="no_registry_auth",
            hint="the operator lists them: DOVECOTE_REGISTRIES and DOVECOTE_REGISTRY_AUTH",
        )
    if bool(build.from_image) is bool(build.from_template):
        raise Invalid("a build begins with either an image or a template")
    if build.from_template:
        return bare(build.from_template)
    assert build.from_image
    own = OWN.get(build.from_image.partition(":")[0])
    if own is not None:
        return own
    first, slash, _ = build.from_image.partition("/")
    if slash and ("." in first or ":" in first or first == "localhost"):
        return build.from_image
    return f"docker.io/{build.from_image if slash else 'library/' + build.from_image}"


def dovecotefile_of(build: Build, source: str, sources: Mapping[int, list[str]]) -> str:
    """`sources` are what each COPY copies, by its index, as paths of the context. Raises Invalid."""
    lines = [f"FROM {source}"]
    is_forced = build.force
    for index, step in enumerate(build.steps):
        is_forced = is_forced or step.force
        lines.append(_line(step, sources.get(index, []), "--no-cache " if is_forced else ""))
    if build.start_cmd:
        lines.append(f"START {_shell(build.start_cmd)}")
    if build.ready_cmd:
        lines.append(f"READY {_shell(build.ready_cmd)}")
    return "\n".join(lines) + "\n"


def _line(step: Step, sources: list[str], flags: str) -> str:
    args = [each for each in step.args if each]
    if step.type == "RUN" and args:
        user = f"--user={_word(args[1])} " if len(args) > 1 else ""
        return f"RUN {flags}{user}{_shell(args[0])}"
    if step.type == "COPY" and sources and len(step.args) > 1:
        user, mode = ([*step.args[2:], "", ""])[:2]
        flags += f"--chown={_word(user)} " if user else ""
        flags += f"--chmod={_word(mode)} " if mode else ""
        return f"COPY {flags}{' '.join(map(_quoted, [*sources, step.args[1]]))}"
    if step.type == "ENV" and len(step.args) % 2 == 0 and step.args:
        pairs = zip(step.args[::2], step.args[1::2], strict=True)
        return "ENV " + " ".join(f"{name}={_quoted(value)}" for name, value in pairs)
    if step.type in ("USER", "WORKDIR") and args:
        return f"{step.type} {_quoted(args[0])}"
    raise Invalid(f"not a step of a build: {step.type[:20]} {step.args}"[:200], code="bad_step")


def _shell(command: str) -> str:
    """Run by bash where there is one: clients write for it."""
    pick = 'if [ -x /bin/bash ]; then exec /bin/bash -c "$0"; fi; exec /bin/sh -c "$0"'
    return json.dumps(["/bin/sh", "-c", pick, command])


def as_said(text: str, build: Build) -> str:
    """An error about an instruction, as one about the step that its client knows."""
    commands = [step.args[0] for step in build.steps if step.type == "RUN" and step.args]
    for command in filter(None, [*commands, build.start_cmd, build.ready_cmd]):
        text = text.replace(_shell(command)[:200], command[:200])
    return text


def _quoted(text: str) -> str:
    if "\n" in text or "\0" in text:
        raise Invalid("paths and variables of a build have one line", code="bad_step")
    return shlex.quote(text)


def _word(text: str) -> str:
    if not text or any(letter.isspace() for letter in text):
        raise Invalid(f"not a word: {text[:60]!r}", code="bad_step")
    return text


def pack(build: Build, source: str, archives: Mapping[str, Path], to: Path) -> None:
    """The context of a build, a plain tar: the Dovecotefile, and below a directory each what was sent for a COPY.

    Blocks. Raises Invalid (bad_context, no_such_source).
    """
    sources: dict[int, list[str]] = {}
    try:
        with tarfile.open(to, "w", format=tarfile.PAX_FORMAT) as out:
            for index, step in enumerate(build.steps):
                if step.type == "COPY":
                    names = _add(out, archives[step.files_hash or ""], str(index))
                    sources[index] = _chosen(step.args[0] if step.args else "", names, str(index))
            text = dovecotefile_of(build, source, sources).encode()
            info = tarfile.TarInfo(NAME)
            info.size = len(text)
            out.addfile(info, io.BytesIO(text))
    except (tarfile.TarError, EOFError, OSError, ValueError) as error:
        raise Invalid(f"the files of the build cannot be used: {error}"[:300], code="bad_context") from error


def _add(out: tarfile.TarFile, archive: Path, below: str) -> list[str]:
    names: list[str] = []
    unpacked = 0
    with tarfile.open(archive, "r:*") as sent:
        for member in sent:
            name = posixpath.normpath(member.name)
            unpacked += member.size
            if name.startswith(("/", "..")) or len(names) >= MOST_FILES or unpacked > MOST_UNPACKED:
                raise Invalid(f"the files of the build cannot be used, from {name[:100]!r} on", code="bad_context")
            names.append(name)
            member.name = f"{below}/{name}" if name != "." else below
            member.pax_headers = {}
            out.addfile(member, sent.extractfile(member) if member.isreg() else None)
    return names


def _chosen(source: str, names: Iterable[str], below: str) -> list[str]:
    """A pattern names each entry that it matches, but nothing below one that it matches too."""
    source = posixpath.normpath(source or ".")
    if not any(sign in source for sign in "*?["):
        return [below if source == "." else f"{below}/{source}"]
    depth = source.count("/") + 1
    tops = {"/".join(name.split("/")[:depth]) for name in names if name.count("/") + 1 >= depth}
    matching = sorted(top for top in tops if fnmatch.fnmatchcase(top, source))
    if not matching:
        raise Invalid(f"nothing was sent that {source[:100]!r} matches", code="no_such_source")
    return [f"{below}/{each}" for each in matching]
