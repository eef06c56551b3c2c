"""A Vite project of more than 20,000 files, made by npm in a sandbox, and a second one that is like it."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import subprocess
from dataclasses import dataclass
from pathlib import Path

from dovecote.sdk import Session

AT = "app"  # in the home directory of the sandbox
ARCHIVE = ".cache/pip/app.tar.gz"  # where the default rules let no save take it
INSTALL = "npm install --no-audit --no-fund --loglevel=error"
LEAST_FILES = 20_000
SECONDS = 900.0  # that an install, a transfer or a rival may take

# What a page needs before it can be shown: react and react-dom are loaded, and something is rendered.
FIRST_COMMAND = (
    "const {createElement} = require('react');"
    "console.log(require('react-dom/server').renderToString(createElement('p', null, 'ready')))"
)
FIRST_ANSWER = "<p>ready</p>"

_COMMON = {
    "react": "19.3.1",
    "react-dom": "19.3.1",
    "date-fns": "4.4.0",
    "zod": "4.6.7",
    "lucide-react": "1.75.0",
    "lodash": "^4",
}
_TOOLS = {"vite": "8.3.8", "@vitejs/plugin-react": "6.3.0", "typescript": "^5", "eslint": "^9"}
FIRST = {**_COMMON, "express": "5.3.0", "@mui/material": "^7", "@emotion/react": "^11", "@emotion/styled": "^11"}
FIRST |= {"recharts": "^3"}
SIMILAR = {**_COMMON, "react-router-dom": "^7", "@tanstack/react-query": "^5", "recharts": "^3", "axios": "^1"}


@dataclass(frozen=True)
class Project:
    """An installed one, as a tar (gzip) of the directory `app`."""

    name: str
    dependencies: dict[str, str]
    archive: Path

    def sources(self) -> dict[str, bytes]:
        package = {
            "name": self.name,
            "version": "1.0.0",
            "private": True,
            "scripts": {"build": "vite build"},
            "dependencies": self.dependencies,
            "devDependencies": _TOOLS,
        }
        page = "<div id=root></div><script type=module src=/src/main.jsx></script>"
        files = {"package.json": json.dumps(package, indent=1).encode(), "index.html": page.encode()}
        for number in range(40):
            code = f"export default function Part{number}() {{ return <p>{self.name} {number}</p> }}\n"
            files[f"src/part{number}.jsx"] = code.encode() * 20
        return files

    def write_sources(self, session: Session) -> None:
        for name, content in self.sources().items():
            session.files.write(f"{AT}/{name}", content)

    def place(self, session: Session) -> None:
        """Puts the installed project into a session, as an import of a user's archive would."""
        session.files.write(ARCHIVE, self.archive.read_bytes())
        session.run(f"tar xzf {ARCHIVE} && rm {ARCHIVE}", timeout=SECONDS, check=True)

    def unpack(self, directory: Path) -> Path:
        """For rivals, on the host."""
        directory.mkdir(parents=True)
        command = ["tar", "xzf", str(self.archive), "-C", str(directory)]
        subprocess.run(command, check=True, timeout=SECONDS)
        return directory / AT


def installed(session: Session, cache: Path, name: str, dependencies: dict[str, str]) -> Project:
    """From the cache, or installed by npm in `session`, which has it then in either case."""
    made = json.dumps([name, dependencies, _TOOLS], sort_keys=True)
    archive = cache / "bench" / f"{name}-{hashlib.sha256(made.encode()).hexdigest()[:16]}.tar.gz"
    project = Project(name, dependencies, archive)
    if archive.exists():
        project.place(session)
    else:
        project.write_sources(session)
        session.run(f"cd {AT} && {INSTALL}", timeout=SECONDS, check=True)
        session.run(f"mkdir -p .cache/pip && tar czf {ARCHIVE} {AT}", timeout=SECONDS, check=True)
        _keep(session, archive)
        session.run(f"rm {ARCHIVE}", check=True)
    files = int(session.run(f"find {AT} -type f | wc -l", check=True).stdout)
    if files < LEAST_FILES and dependencies is FIRST:
        raise RuntimeError(f"the project has {files} files only")
    return project


def _keep(session: Session, archive: Path) -> None:
    archive.parent.mkdir(parents=True, exist_ok=True)
    part = archive.with_suffix(f".{secrets.token_hex(6)}")
    with part.open("wb") as file:
        for piece in session.files.download(ARCHIVE):
            file.write(piece)
    os.replace(part, archive)


def drop_page_cache() -> None:
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("3")
