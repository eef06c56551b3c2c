"""Writes the blocking client from the one for asyncio: `python -m dovecote.sdk.generate [--check]`."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
SOURCE = HERE / "_async"
TARGET = HERE / "_sync"

WORDS = {
    "AsyncGenerator": "Generator",
    "AsyncIterator": "Iterator",
    "AsyncIterable": "Iterable",
    "AsyncClient": "Client",
    "AsyncBaseTransport": "BaseTransport",
    "AsyncHTTPTransport": "HTTPTransport",
    "handle_async_request": "handle_request",
    "asynccontextmanager": "contextmanager",
    "aclosing": "closing",
    "aclose": "close",
    "aread": "read",
    "aiter_bytes": "iter_bytes",
    "__aenter__": "__enter__",
    "__aexit__": "__exit__",
    "_async": "_sync",
}
WORD = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
OF_OURS = re.compile(r"Async([A-Z]\w*)")
NOTICE = "# Generated from {name} by `python -m dovecote.sdk.generate`; change that and run it.\n\n"


def sync_source(text: str) -> str:
    """The blocking twin of a module: a change of words, so both read alike."""
    text = re.sub(r"\b(async def|async with|async for)\b", lambda match: match[0].removeprefix("async "), text)
    text = re.sub(r"\bawait ", "", text).replace("websockets.asyncio.client", "websockets.sync.client")
    text = re.sub(r"\bAsyncGenerator\[([\w\[\], ]+), None\]", r"Generator[\1, None, None]", text)

    def word(match: re.Match[str]) -> str:
        known = WORDS.get(match[0])
        return known if known is not None else OF_OURS.sub(r"\1", match[0])

    return WORD.sub(word, text).replace("The client for asyncio; `_sync` is generated from it", "The blocking client")


def generated() -> dict[Path, str]:
    """Each file of the blocking client and what belongs in it."""
    files: dict[Path, str] = {}
    for source in sorted(SOURCE.glob("*.py")):
        docstring, _, rest = sync_source(source.read_text("utf-8")).partition("\n\n")
        notice = NOTICE.format(name=f"_async/{source.name}")
        text = docstring.rstrip("\n") + "\n\n" + notice + rest
        files[TARGET / source.name] = _formatted(text, TARGET / source.name)
    return files


def _formatted(text: str, path: Path) -> str:
    ruff = [sys.executable, "-m", "ruff"]
    source = ["--quiet", "--stdin-filename", str(path), "-"]
    fixes = ["--fix", "--unsafe-fixes", "--select", "I,F401,UP028,SIM117"]
    for command in ([*ruff, "check", *fixes, *source], [*ruff, "format", *source]):
        text = subprocess.run(command, input=text, capture_output=True, text=True, check=True, timeout=60).stdout
    return text


def stale() -> list[Path]:
    """Files of the blocking client that are not what their source says, or have none."""
    wanted = generated()
    differing = [path for path, text in wanted.items() if not path.exists() or path.read_text("utf-8") != text]
    return differing + [path for path in TARGET.glob("*.py") if path not in wanted]


def main() -> int:
    if "--check" in sys.argv[1:]:
        behind = stale()
        for path in behind:
            print(f"{path} is not current; run `python -m dovecote.sdk.generate`", file=sys.stderr)
        return 1 if behind else 0
    TARGET.mkdir(exist_ok=True)
    for path in stale():
        path.unlink(missing_ok=True)
    for path, text in generated().items():
        if not path.exists():
            path.write_text(text, "utf-8")
            print(path)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
