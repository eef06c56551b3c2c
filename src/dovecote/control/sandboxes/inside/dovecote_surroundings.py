"""Code that gives one execution its variables, and code that takes them away again, in the kernel's own language."""

from __future__ import annotations

import re
import shlex


def _around_python(env: dict[str, str]) -> tuple[str, str]:
    return f"get_ipython().dovecote_environ.enter({env!r})", "get_ipython().dovecote_environ.leave()"


def _around_bash(env: dict[str, str]) -> tuple[str, str]:
    """Names that are none of the shell's are left out, as nothing in it could read them."""
    enter, leave = [], []
    for name, text in env.items():
        if re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            before = f"__dovecote_{name}"
            enter.append(f'[ -z "${{{name}+x}}" ] || {before}=${name}; export {name}={shlex.quote(text)}')
            # `export` refuses what is read-only and goes on; a bare assignment would end the whole line, and leave the
            # other variables where they are.
            back = f'export {name}="${before}"; unset {before}'
            leave.append(f'if [ -n "${{{before}+x}}" ]; then {back}; else unset {name}; fi')
    return "; ".join(enter), "; ".join(leave)


SURROUNDINGS = {"python": _around_python, "bash": _around_bash}
