"""Every setting of Dovecote: name, default, help, unit. Read once, in `main`, from `DOVECOTE_*`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from hashlib import blake2b
from pathlib import Path
from typing import Any

from dovecote.errors import Invalid


def setting(default: Any, help: str, unit: str = "") -> Any:
    return field(default=default, metadata={"help": help, "unit": unit})


@dataclass(frozen=True)
class Settings:
    """One line a setting. `DOVECOTE_PORT=9000` sets `port`."""

    data_dir: Path = setting(Path("/var/lib/dovecote"), "Records, objects and the disk pool. Back this up.")
    run_dir: Path = setting(Path("/run/dovecote"), "Sockets, process records and mount points; empty after a reboot.")
    cache_dir: Path = setting(Path("/var/cache/dovecote"), "Built templates and tools; may be deleted at any time.")
    config_dir: Path = setting(Path("~/.config/dovecote"), "Where the first run puts the API key of its operator.")
    bind: str = setting("127.0.0.1", "Address that the gateway listens on.")
    port: int = setting(8080, "The one port: console, API, sandboxes' ports, functions and apps.")
    domain: str = setting(
        "localhost", "Addresses end in it: `*.box`, `*.fn` and `*.app` below it must resolve to the gateway."
    )
    tls_port: int = setting(0, "A second port that speaks TLS, for all that the first one has; 0 for none.")
    tls_certificate: str = setting(
        "", "File with the certificate of that port and its chain; empty means one of an authority of our own."
    )
    tls_key: str = setting("", "File with the key of that certificate.")
    database_url: str = setting("", "`postgresql://user:password@host/name`; empty means SQLite in the data directory.")
    objects_url: str = setting(
        "",
        "`file:///path`, `s3://bucket/prefix`, `gs://bucket/prefix` or `az://container/prefix`; empty means a folder "
        "in the data directory.",
    )
    level: str = setting("crun", "Isolation level of instances where a function names none: crun, runc or runsc.")
    network: str = setting("10.201.0.0/16", "Private range for instances; every host may use the same one.")
    dns: str = setting("", "Resolver for instances, an address; empty means the host's own.")
    tree_layers: str = setting(
        "auto",
        "How trees lie below roots: `images` (Linux 6.5), `plain` directories, or `auto`: what works.",
    )
    pool_size: int = setting(4, "Instances kept prepared for the next claim.", "instances")
    pool_bytes: int = setting(64 << 30, "Size of the sparse file that holds the disks of instances.", "bytes")
    cache_bytes: int = setting(
        -1,
        "The most that this host's cache of saved files takes; 0 for no limit, -1 for a quarter of its disk's size. "
        "What runs keeps what it needs all the same.",
        "bytes",
    )
    volumes_bytes: int = setting(64 << 30, "Size of the sparse file that holds volumes. Back it up.", "bytes")
    volumes_driver: str = setting(
        "auto",
        "How volumes are kept: `btrfs`, `loop` for one ext4 image a volume, `auto` for the first of them that works, "
        "`juicefs` for several hosts.",
    )
    mount_buckets: str = setting(
        "",
        "Prefixes of S3 buckets that sessions and functions of all tenants may mount read-only, as `@name`: "
        "`name=s3://bucket/prefix,other=s3://bucket`. Keys and endpoint come from `AWS_*`.",
    )
    juicefs_url: str = setting(
        "",
        "Where JuiceFS keeps names and sizes: `postgres://user:password@host/database`; empty means a file in the data "
        "directory, for one host.",
    )
    memory_reserve_bytes: int = setting(
        1 << 30, "Memory left to the machine: a claim that would eat into it is refused.", "bytes"
    )
    memory_overcommit: float = setting(
        4.0,
        "How many times over memory may be promised: a session of a promised tier has this part of its limit kept "
        "ready, or what it uses. 1 keeps all of it.",
    )
    registries: str = setting(
        "",
        "Registries at private addresses that images may come from, and those that get credentials: "
        "`host:port,host:port`.",
    )
    registry_auth: str = setting("", "File with credentials for listed registries, as `skopeo login` writes it.")
    image_bytes: int = setting(16 << 30, "The most that one image may have, packed and unpacked.", "bytes")
    quiet_after: float = setting(
        10.0, "An instance without requests or running commands for so long is frozen.", "seconds"
    )
    trusted_proxies: str = setting(
        "",
        "Networks of proxies in front of the plain port, `10.1.0.0/16,127.0.0.1/32`: what those say in "
        "`X-Forwarded-Proto` and `X-Forwarded-For` is believed.",
    )
    start_timeout: float = setting(60.0, "How long a request is held while its instance starts.", "seconds")
    reinstall_timeout: float = setting(
        180.0, "How long reinstalling what rules leave out may take when a session is restored.", "seconds"
    )
    route_ttl: int = setting(
        10,
        "How long the gateway may use an address without asking; an address rests for three times as long.",
        "seconds",
    )
    invocations_at_once: int = setting(
        100, "Asynchronous calls under way at once, and messages to destinations; half of it for one tenant.", "calls"
    )
    invocations_kept: float = setting(604800.0, "How long what came of an asynchronous call can be read.", "seconds")
    webhook_cidrs: str = setting(
        "", "Private networks that webhooks may reach, `10.1.0.0/16,10.2.3.4/32`; otherwise only the internet."
    )
    redis_url: str = setting("", "`redis://...`: where results of asynchronous calls may go as streams.")
    nats_url: str = setting("", "`nats://...`: where results of asynchronous calls may go as subjects.")
    gc_every: float = setting(
        86400.0, "How often saved files that nothing names any more are looked for; 0 for never.", "seconds"
    )
    tick: float = setting(0.5, "How often idle sessions and the scale of apps are looked at.", "seconds")
    model_base_url: str = setting("", "Read by `dovecote demo`: an OpenAI-compatible endpoint for its agent.")
    model_name: str = setting(
        "", "Read by `dovecote demo`: name of the model at that endpoint; empty means the scripted model."
    )
    model_api_key: str = setting("", "Read by `dovecote demo`: the key for that endpoint.")
    log_level: str = setting("info", "debug, info, warning or error.")

    def __post_init__(self) -> None:
        for name in ("data_dir", "run_dir", "cache_dir", "config_dir"):
            object.__setattr__(self, name, Path(getattr(self, name)).expanduser().absolute())
        if not 0 < self.port < 65536:
            raise Invalid(f"not a port: {self.port}", hint="set DOVECOTE_PORT to 1-65535")
        if not 0 <= self.tls_port < 65536 or self.tls_port == self.port:
            raise Invalid(f"not a second port: {self.tls_port}", hint="set DOVECOTE_TLS_PORT to 1-65535, or 0 for none")
        if bool(self.tls_certificate) is not bool(self.tls_key):
            raise Invalid(
                "a certificate and its key go together", hint="set DOVECOTE_TLS_CERTIFICATE and DOVECOTE_TLS_KEY"
            )
        if self.volumes_driver not in ("auto", "btrfs", "loop", "juicefs"):
            raise Invalid(
                f"no such driver: {self.volumes_driver}",
                hint="DOVECOTE_VOLUMES_DRIVER is auto, btrfs, loop or juicefs",
            )
        if self.tree_layers not in ("auto", "images", "plain"):
            raise Invalid(f"no such way: {self.tree_layers}", hint="DOVECOTE_TREE_LAYERS is auto, images or plain")
        if self.cache_bytes < -1:
            raise Invalid(
                f"not a size of the cache: {self.cache_bytes}",
                hint="DOVECOTE_CACHE_BYTES is a number of bytes, 0 for no limit, or -1",
            )
        if self.invocations_at_once < 1:
            raise Invalid("no calls could be made", hint="set DOVECOTE_INVOCATIONS_AT_ONCE to 1 or more")
        if not 1 <= self.memory_overcommit <= 1000:
            raise Invalid(
                f"memory cannot be promised {self.memory_overcommit} times",
                hint="set DOVECOTE_MEMORY_OVERCOMMIT to 1-1000",
            )
        for name in (
            *("pool_size", "pool_bytes", "volumes_bytes", "quiet_after", "start_timeout", "route_ttl", "tick"),
            *("gc_every", "invocations_kept"),
        ):
            if getattr(self, name) < 0:
                raise Invalid(f"{name} cannot be negative", hint=f"set DOVECOTE_{name.upper()} to 0 or more")

    @property
    def installation(self) -> str:
        """Six letters that name this installation's namespaces, cgroups and interfaces on the host."""
        return blake2b(str(self.data_dir).encode(), digest_size=3).hexdigest()


def read_settings(environ: Mapping[str, str] = os.environ) -> Settings:
    """Settings from `DOVECOTE_*`. Raises Invalid for a value that cannot be read or a name that does not exist."""
    known = {f"DOVECOTE_{f.name.upper()}": f for f in fields(Settings)}
    values: dict[str, Any] = {}
    for name, text in environ.items():
        if not name.startswith("DOVECOTE_") or name in CLIENT_VARIABLES:
            continue
        if name not in known:
            raise Invalid(f"no such setting: {name}", hint="docs/reference/settings.md lists them all")
        default = known[name].default
        kind: Any = Path if isinstance(default, Path) else type(default)
        try:
            values[known[name].name] = kind(text)
        except ValueError as error:
            raise Invalid(f"{name} must be {kind.__name__}, not {text!r}") from error
    return Settings(**values)


# Read by the client (sdk, cli), not by the server.
CLIENT_VARIABLES = frozenset({"DOVECOTE_API_KEY", "DOVECOTE_URL"})
