"""Where a JuiceFS keeps its parts, and the lines that run it. No secret is on any of them."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit, urlunsplit

from dovecote.errors import Invalid, Unsupported

HEARTBEAT = "1s"  # how long a new limit, and what other hosts wrote, may be unknown to a mount
CACHE_MIB = 10240
BUFFER_MIB = 128
_PASSED_ON = ("PATH", "HOME", "LANG", "TZ", "SSL_CERT_FILE", "SSL_CERT_DIR", "HTTPS_PROXY", "HTTP_PROXY", "NO_PROXY")
_NAME = re.compile(r"[a-z0-9][a-z0-9-]{1,61}[a-z0-9]")


@dataclass(frozen=True)
class Place:
    """`name` is the folder of its contents in the bucket; one JuiceFS an installation."""

    name: str
    meta_url: str  # without a password
    storage: str
    bucket: str
    secrets: Mapping[str, str] = field(default_factory=dict, repr=False)

    @property
    def identity(self) -> str:
        """Changes when a mount would be another one. Tells nothing of its secrets."""
        parts = (self.name, self.meta_url, self.storage, self.bucket, *(f"{k}={v}" for k, v in self.secrets.items()))
        return blake2b("\0".join(parts).encode(), digest_size=16).hexdigest()

    def environ(self, environ: Mapping[str, str] = os.environ) -> dict[str, str]:
        """All that its processes get of ours."""
        return {name: environ[name] for name in _PASSED_ON if name in environ} | dict(self.secrets)

    def prepare(self) -> None:
        """Directories of local parts, for root only."""
        scheme, _, path = self.meta_url.partition("://")
        for directory in (
            *([Path(path).parent] if scheme == "sqlite3" else []),
            *([Path(self.bucket)] if self.storage == "file" else []),
        ):
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)


def find_place(
    installation: str, *, objects_url: str, meta_url: str, directory: Path, environ: Mapping[str, str] = os.environ
) -> Place:
    """In the bucket that saved files are in, and metadata at `meta_url`, or in a SQLite file below `directory`.

    Raises Unsupported for a bucket that JuiceFS was not tried with, Invalid for one that cannot be read.
    """
    meta, secrets = _without_password(meta_url) if meta_url else (f"sqlite3://{directory}/meta.db", {})
    # Hosts that share a database share what is in it, wherever each has its own data.
    name = f"dovecote-{blake2b(meta.encode(), digest_size=4).hexdigest() if meta_url else installation}"
    if not _NAME.fullmatch(name):
        raise Invalid(f"not a name for a JuiceFS: {name!r}")
    url = urlsplit(objects_url or f"file://{directory}/contents")
    if url.scheme == "file":
        local = url.path if not objects_url else f"{url.path.rstrip('/')}/juicefs"
        return Place(name, meta, "file", f"{local.rstrip('/')}/", secrets)
    if url.scheme != "s3":
        raise Unsupported(
            f"volumes by JuiceFS in {url.scheme}:// are not supported",
            hint="a local directory or S3, or another driver",
        )
    endpoint = environ.get("AWS_ENDPOINT_URL") or environ.get("AWS_ENDPOINT") or ""
    if not endpoint:
        endpoint = (
            f"https://s3.{environ.get('AWS_REGION') or environ.get('AWS_DEFAULT_REGION') or 'us-east-1'}.amazonaws.com"
        )
    for ours, its in (
        ("AWS_ACCESS_KEY_ID", "ACCESS_KEY"),
        ("AWS_SECRET_ACCESS_KEY", "SECRET_KEY"),
        ("AWS_SESSION_TOKEN", "SESSION_TOKEN"),
    ):
        if environ.get(ours):
            secrets[its] = environ[ours]
    return Place(name, meta, "s3", f"{endpoint.rstrip('/')}/{url.netloc}", secrets)


def _without_password(url: str) -> tuple[str, dict[str, str]]:
    url = re.sub(r"^postgresql://", "postgres://", url)  # its name for the same
    parts = urlsplit(url)
    if not parts.password:
        return url, {}
    host = parts.hostname or ""
    user = quote(parts.username or "", safe="")
    netloc = f"{user}:@{host}" + (f":{parts.port}" if parts.port else "")
    return urlunsplit((parts.scheme, netloc, parts.path, parts.query, "")), {"META_PASSWORD": unquote(parts.password)}


def format_command(program: str, place: Place) -> list[str]:
    """Makes it where it is not there; else the credentials that it keeps for the bucket are set again."""
    command = [program, "format", "--quiet", "--storage", place.storage, "--bucket", place.bucket]
    return [*command, "--trash-days", "0", place.meta_url, place.name]


def mount_command(program: str, place: Place, at: Path, cache_dir: Path) -> list[str]:
    """Under a relay: it serves a mount that is there, and looks for no supervisor of its own kind."""
    return [
        *(program, "mount", "--quiet", "--no-agent", "--no-syslog", "--no-usage-report", "--enable-xattr"),
        *("--heartbeat", HEARTBEAT, "--metrics", "127.0.0.1:0", "--backup-skip-trash"),
        *("--buffer-size", f"{BUFFER_MIB}M", "--cache-size", f"{CACHE_MIB}M", "--cache-dir", str(cache_dir)),
        *(place.meta_url, str(at)),
    ]


def quota_command(program: str, place: Place, name: str, max_bytes: int) -> list[str]:
    """argv. Strict: what was written a moment ago counts too."""
    return [
        *(program, "quota", "set", "--quiet", "--strict", "--path", f"/{name}", "--capacity", f"{max_bytes // 1024}K"),
        place.meta_url,
    ]


def delete_quota_command(program: str, place: Place, name: str) -> list[str]:
    return [program, "quota", "delete", "--quiet", "--path", f"/{name}", place.meta_url]


def remove_command(program: str, path: Path) -> list[str]:
    return [program, "rmr", "--quiet", str(path)]


def relay_command(python: str, device: int, settings: bytes, run_dir: Path, command: Sequence[str]) -> list[str]:
    relay = Path(__file__).with_name("relay.py")
    return [python, "-I", "-S", str(relay), str(device), settings.hex(), str(run_dir), *command]
