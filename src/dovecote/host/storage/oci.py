"""Brings OCI images into the store: skopeo fetches them, their layers become one tree."""

from __future__ import annotations

import asyncio
import hashlib
import ipaddress
import json
import os
import platform
import re
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dovecote.errors import DeadlineExceeded, DovecoteError, Failed, Invalid, Unsupported
from dovecote.host.storage.layers import GIB, LayerBounds, LayeredTree
from dovecote.host.storage.trees import Trees, TreeSaved

FETCH_TIMEOUT = 1800.0  # seconds for all of an image
FORGOTTEN_AFTER = 86400.0  # seconds after which what was fetched can only be a crash's
LOOK_EVERY = 0.25  # seconds between looks at how much has come
MAX_DOCUMENT = 4 << 20  # bytes of a manifest or a configuration
MAX_LAYERS = 128
ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
FILE_TRANSPORTS = ("docker-archive", "oci-archive", "oci", "dir")
POLICY = Path("/etc/containers/policy.json")

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_REGISTRY_NAME = re.compile(r"(?:\[[0-9A-Fa-f:]+\]|[A-Za-z0-9])[A-Za-z0-9._:/@-]{0,511}")
Progress = Callable[[str, int, int], None]  # what is done, how much of it, of how much (0: not known)


@dataclass(frozen=True)
class Reference:
    """Where an image is. `name` is what follows the transport's `:` or `://`."""

    transport: str
    name: str

    def __str__(self) -> str:
        return f"docker://{self.name}" if self.transport == "docker" else f"{self.transport}:{self.name}"

    @property
    def registry(self) -> str:
        """Host, and port where one is named, of an image of a registry; as its clients understand it."""
        first, slash, _ = self.name.partition("/")
        return first if slash and (any(mark in first for mark in ".:") or first == "localhost") else "docker.io"

    @property
    def is_loopback(self) -> bool:
        host = self.name.partition("/")[0]
        host = host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]
        try:
            return ipaddress.ip_address(host).is_loopback
        except ValueError:
            return host == "localhost"


@dataclass(frozen=True)
class ImageConfig:
    """What an image says about how it is used."""

    env: dict[str, str]
    user: str  # as written: a name or a number, with or without a group; empty is root
    directory: str
    command: tuple[str, ...]
    port: int | None  # the lowest TCP port that it exposes


@dataclass(frozen=True)
class Imported:
    """`digest` is the sha256 of the image's manifest, which names all of it."""

    digest: str
    tree: TreeSaved
    config: ImageConfig
    layers: int
    cached_layers: int  # that nothing was read of
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Blob:
    digest: str
    size: int


def parse_reference(text: str) -> Reference:
    """`docker://host/name:tag`, `docker-archive:path`, `oci-archive:path`, `oci:path`, `dir:path`; else a registry's.

    Raises Invalid. Paths are of this machine: whoever lets strangers name images must refuse them.
    """
    transport, colon, rest = text.partition(":")
    if colon and transport in FILE_TRANSPORTS:
        if not rest.startswith("/") or "\0" in rest:
            raise _not_a_reference(text, f"{transport}: takes an absolute path")
        return Reference(transport, rest)
    name = text.removeprefix("docker://")
    if "://" in name or not _REGISTRY_NAME.fullmatch(name):
        raise _not_a_reference(text, "like docker://registry.example/name:tag, or " + ":, ".join(FILE_TRANSPORTS) + ":")
    return Reference("docker", name)


def copy_command(
    reference: Reference, layout: Path, *, architecture: str, auth_file: Path | None = None, plain_http: bool = False
) -> list[str]:
    """argv that copies an image for one platform into an OCI layout. Without `auth_file` no credentials are used."""
    # A killed server takes it along: nobody else would end it.
    command = [
        "setpriv",
        "--pdeathsig",
        "KILL",
        "--",
        "skopeo",
        "--override-os",
        "linux",
        "--override-arch",
        architecture,
    ]
    if not POLICY.exists():
        command.append("--insecure-policy")  # the operator has said nothing about signatures
    command += ["copy", "--quiet"]
    if reference.transport == "docker":
        command += ["--src-authfile", str(auth_file)] if auth_file else ["--src-no-creds"]
        if plain_http:
            command.append("--src-tls-verify=false")
    return [*command, str(reference), f"oci:{layout}:image"]


async def import_image(
    reference: Reference,
    trees: Trees,
    work_dir: Path,
    *,
    progress: Progress,
    auth_file: Path | None = None,
    plain_http: bool = False,
    bounds: LayerBounds | None = None,
    scope: str = "",
    prefix: Sequence[str] = (),
) -> Imported:
    """Fetches an image and saves it as a tree. Raises Invalid, Failed (image_unreachable), Unsupported, StorageFailed.

    Plain HTTP is spoken to registries on loopback, to others only when `plain_http`. `work_dir` is private and may be
    deleted while nothing runs; it remembers which layers are trees already, for each `scope` apart. `prefix` begins
    the command line that fetches.
    """
    bounds = bounds or LayerBounds()
    work_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    await asyncio.to_thread(_sweep, work_dir)
    layout = Path(tempfile.mkdtemp(prefix="image-", dir=work_dir))
    try:
        command = copy_command(
            reference,
            layout,
            architecture=_architecture(),
            auth_file=auth_file,
            plain_http=plain_http or reference.is_loopback,
        )
        await _fetch([*prefix, *command], layout, bounds.total_bytes, progress)
        chains = Chains(work_dir / "chains" / scope)
        return await asyncio.to_thread(read_layout, layout, trees, chains, bounds, progress)
    finally:
        await asyncio.to_thread(shutil.rmtree, layout, True)


class Chains:
    """Remembers which tree a stack of layers made; it may be lost at any time."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def find(self, chain: str) -> str | None:
        try:
            tree = (self._directory / chain.removeprefix("sha256:")).read_text("ascii")
        except (OSError, ValueError):
            return None
        return tree if re.fullmatch(r"[0-9a-f]{64}", tree) else None

    def keep(self, chain: str, tree: str) -> None:
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = self._directory / chain.removeprefix("sha256:")
        part = path.with_suffix(f".{os.getpid()}")
        part.write_text(tree, "ascii")
        os.replace(part, path)


def chain_ids(diff_ids: list[str]) -> list[str]:
    """One name for each stack of layers, as the OCI image specification defines ChainID."""
    chains: list[str] = []
    for diff_id in diff_ids:
        chains.append(diff_id if not chains else _sha256(f"{chains[-1]} {diff_id}".encode()))
    return chains


def read_layout(layout: Path, trees: Trees, chains: Chains, bounds: LayerBounds, progress: Progress) -> Imported:
    """Makes a tree of the only image in an OCI layout. Every byte of it is checked against the digests that name it."""
    index = _document((layout / "index.json").read_bytes())
    with _malformed():
        (named,) = index["manifests"]
        manifest_blob = _blob(named)
        manifest = _document(_read(layout, manifest_blob))
        config = _document(_read(layout, _blob(manifest["config"])))
        layers = [_blob(layer) for layer in manifest["layers"]]
        diff_ids = [str(each) for each in config["rootfs"]["diff_ids"]]
        if len(layers) != len(diff_ids) or not all(_DIGEST.fullmatch(each) for each in diff_ids):
            raise ValueError("layers and their digests do not match")
        image_config = parse_config(config.get("config") or {})
    if len(layers) > MAX_LAYERS:
        raise Invalid(f"the image has {len(layers)} layers, more than {MAX_LAYERS}", code="too_large")
    names = chain_ids(diff_ids)
    done, saved = _known(names, trees, chains)
    notes: list[str] = []
    for i, layer in enumerate(layers[done:], done + 1):
        progress(f"layer {i} of {len(layers)}", 0, layer.size)
        _verify(layout, layer)
        with trees.sink() as sink:
            tree = LayeredTree(sink, bounds, trees.entries(saved.digest) if saved else ())
            with _path(layout, layer).open("rb") as file:
                tree.apply(file, diff_id=diff_ids[i - 1])
            notes += tree.notes
            saved = trees.save_entries(tree.entries(), like=(saved.digest,) if saved else ())
        chains.keep(names[i - 1], saved.digest)
        progress(f"layer {i} of {len(layers)}", layer.size, layer.size)
    if saved is None:
        with trees.sink() as sink:
            saved = trees.save_entries(LayeredTree(sink, bounds).entries())
    return Imported(manifest_blob.digest, saved, image_config, len(layers), done, tuple(notes[:100]))


def _known(names: list[str], trees: Trees, chains: Chains) -> tuple[int, TreeSaved | None]:
    """How many layers from the bottom are a tree already, and that tree."""
    for count in range(len(names), 0, -1):
        tree = chains.find(names[count - 1])
        if tree is None:
            continue
        with suppress(DovecoteError):  # the store may have lost it: then the layers are read again
            if not trees.may_be_named(tree):
                continue
            trees.verify_stored(tree)
            usage = trees.usage(tree)
            return count, TreeSaved(tree, usage.files, 0, usage.total_bytes)
    return 0, None


def parse_config(config: dict[str, Any]) -> ImageConfig:
    """Raises ValueError, KeyError or TypeError for what no image may say."""
    words = [*(config.get("Entrypoint") or []), *(config.get("Cmd") or [])]
    pairs = [str(line).partition("=") for line in config.get("Env") or []]
    exposed = [str(port).partition("/") for port in config.get("ExposedPorts") or {}]
    ports = sorted(int(number) for number, _, protocol in exposed if protocol in ("", "tcp"))
    if any(not 0 < port < 65536 for port in ports):
        raise ValueError("a port that is none")
    text = [str(word) for word in words]
    if any("\0" in each for each in (*text, *(name + value for name, _, value in pairs))):
        raise ValueError("NUL in a command or a variable")
    return ImageConfig(
        env={name: value for name, _, value in pairs if name},
        user=str(config.get("User") or ""),
        directory=str(config.get("WorkingDir") or "/"),
        command=tuple(text),
        port=ports[0] if ports else None,
    )


async def _fetch(command: list[str], layout: Path, most: int, progress: Progress) -> None:
    if not shutil.which("skopeo"):
        raise Unsupported("no skopeo on this host", code="no_skopeo", hint="apt-get install skopeo")
    env = {name: value for name, value in os.environ.items() if not name.startswith("DOVECOTE_")}
    with tempfile.TemporaryFile() as words:
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=words,
            stderr=words,
            env={**env, "TMPDIR": str(layout)},
            start_new_session=True,
        )
        waiting = asyncio.ensure_future(process.wait())
        try:
            async with asyncio.timeout(FETCH_TIMEOUT):
                while not (await asyncio.wait({waiting}, timeout=LOOK_EVERY))[0]:
                    held = await asyncio.to_thread(_size, layout)
                    progress("fetching", held, 0)
                    if held > most:
                        raise Invalid(f"the image is over {most} bytes", code="too_large", hint="use a smaller image")
        except TimeoutError as error:
            raise DeadlineExceeded(
                f"the image did not come within {FETCH_TIMEOUT:.0f} s", code="image_timeout"
            ) from error
        finally:
            if process.returncode is None:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
            await waiting
        if process.returncode:
            words.seek(0, os.SEEK_END)
            words.seek(max(0, words.tell() - 1000))
            last = words.read().decode(errors="replace").strip()
            raise Failed(
                f"the image could not be fetched: {last}",
                code="image_unreachable",
                hint="look at the reference, at the registry's address and at the credentials",
            )


def _sweep(work_dir: Path) -> None:
    for left in work_dir.glob("image-*"):
        with suppress(FileNotFoundError):
            if time.time() - left.stat().st_mtime > FORGOTTEN_AFTER:
                shutil.rmtree(left, ignore_errors=True) if left.is_dir() else left.unlink()


def _size(directory: Path) -> int:
    total = 0
    for folder, _, names in os.walk(directory):
        for name in names:
            with suppress(FileNotFoundError):
                total += os.lstat(os.path.join(folder, name)).st_size
    return total


def _architecture() -> str:
    return ARCHITECTURES.get(platform.machine(), platform.machine())


def _path(layout: Path, blob: Blob) -> Path:
    return layout / "blobs" / "sha256" / blob.digest.removeprefix("sha256:")


def _blob(named: Any) -> Blob:
    digest, size = str(named["digest"]), int(named["size"])
    if not _DIGEST.fullmatch(digest) or not 0 <= size <= 64 * GIB or named.get("urls"):
        raise ValueError(f"a blob that cannot be used: {digest[:100]}")
    return Blob(digest, size)


def _read(layout: Path, blob: Blob) -> bytes:
    if blob.size > MAX_DOCUMENT:
        raise ValueError("a document that is too large")
    with _path(layout, blob).open("rb") as file:
        data = file.read(MAX_DOCUMENT + 1)
    if _sha256(data) != blob.digest:
        raise _mismatch(blob)
    return data


def _verify(layout: Path, blob: Blob) -> None:
    with _malformed(), _path(layout, blob).open("rb") as file:
        found = f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"
    if found != blob.digest:
        raise _mismatch(blob)


def _document(data: bytes) -> dict[str, Any]:
    with _malformed():
        document = json.loads(data)
        if not isinstance(document, dict):
            raise ValueError("not an object")
        return document


@contextmanager
def _malformed() -> Iterator[None]:
    try:
        yield
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OSError) as error:
        raise Invalid(f"not a usable image: {error}", code="bad_image", hint="build or push the image again") from error


def _mismatch(blob: Blob) -> Invalid:
    return Invalid(f"{blob.digest} has other content than its name says", code="digest_mismatch")


def _sha256(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def _not_a_reference(text: str, hint: str) -> Invalid:
    return Invalid(f"not a reference to an image: {text[:200]!r}", code="malformed_reference", hint=hint)
