"""Puts the programs that run code into a sandbox, and says how they are started there."""

from __future__ import annotations

import hashlib
from functools import cache
from importlib import resources

from dovecote.control.fleet import Guest
from dovecote.errors import Invalid, NotFound

OWNER = "0"  # the sandbox's root; a number, so that images without accounts do too
PLACE = "/run/dovecote"  # gone when the session is parked, as the processes are
FILES = (
    *("dovecote_wire.py", "dovecote_charts.py", "dovecote_rich.py", "dovecote_surroundings.py"),
    *("kernel.py", "javascript.mjs"),
)
NOT_THERE = 97  # exit code: nothing that could run it is in the template

ALIASES = {"js": "javascript", "node": "javascript", "ts": "typescript", "py": "python", "python3": "python"}
ON_NODE = frozenset({"javascript", "typescript"})
MOST_LANGUAGE = 40

# The program's events leave by descriptor 3: what code or its children print on 1 and 2 must not be taken for them.
_NODE = 'command -v node >/dev/null 2>&1 || exit 97; exec node "$1/javascript.mjs" "$2" 3>&1 1>&2'
_JUPYTER = """
for python in python3 python /usr/bin/python3 /usr/local/bin/python3 /opt/conda/bin/python3 /opt/venv/bin/python3; do
  "$python" -c 'import importlib.util as u, sys; sys.exit(not all(map(u.find_spec, ("jupyter_client", "zmq"))))' \\
    2>/dev/null && exec "$python" "$1/kernel.py" "$2" 3>&1 1>&2
done
exit 97
"""


def parse_language(text: str) -> str:
    """`py` is `python`. Raises Invalid for what can be no language."""
    name = text.strip().lower()
    if not 0 < len(name) <= MOST_LANGUAGE or not all(letter.isalnum() or letter in "+#._-" for letter in name):
        raise Invalid(f"not a language: {text[:60]!r}", hint="python, javascript, typescript, or that of a kernel")
    return ALIASES.get(name, name)


def context_command(directory: str, language: str) -> tuple[str, ...]:
    """argv that runs the program for a language."""
    return ("/bin/sh", "-c", _NODE if language in ON_NODE else _JUPYTER, "dovecote-context", directory, language)


def no_kernel(language: str) -> NotFound:
    if language in ON_NODE:
        return NotFound(f"no Node here for {language}", code="no_kernel", hint="templates `base` and `code` have it")
    install = "`pip install ipykernel` inside" if language == "python" else "a kernel for it installed inside"
    return NotFound(f"no Jupyter kernel for {language} here", code="no_kernel", hint=f"template `code`, or {install}")


async def put_inside(guest: Guest) -> str:
    """The directory of the programs in the sandbox; they are written once."""
    files, digest = _sources()
    directory = f"{PLACE}/contexts-{digest}"
    try:
        await guest.stat(f"{directory}/{FILES[-1]}", user=OWNER)
    except NotFound:
        for name in FILES:
            await guest.write_file(f"{directory}/{name}", files[name], user=OWNER)
    return directory


@cache
def _sources() -> tuple[dict[str, bytes], str]:
    place = resources.files("dovecote.control.sandboxes.inside")
    files = {name: place.joinpath(name).read_bytes() for name in FILES}
    return files, hashlib.sha256(b"\0".join(files.values())).hexdigest()[:12]
