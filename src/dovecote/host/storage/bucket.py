"""A bucket of named bytes: a local directory, S3, Google Cloud Storage, Azure or memory, with create-if-absent."""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import unquote, urlsplit

import obstore
from obstore import exceptions as refused
from obstore.store import AzureStore, GCSStore, LocalStore, MemoryStore, S3Store

from dovecote.errors import Conflict, DovecoteError, Invalid, NotFound, StorageFailed

IDENTITY = "identity"  # one random name a bucket, so that a host notices that it was given another one

_READ_ONLY = frozenset({errno.EROFS, errno.EACCES, errno.EPERM})
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
_ABSENT = frozenset({errno.ENOENT, errno.ENOTDIR})
Backend = LocalStore | MemoryStore | S3Store | GCSStore | AzureStore
T = TypeVar("T")

_CLOUDS: dict[str, type[S3Store] | type[GCSStore] | type[AzureStore]] = {
    "s3": S3Store,
    "gs": GCSStore,
    "az": AzureStore,
    "azure": AzureStore,
}


@dataclass(frozen=True)
class Stored:
    """One line of a listing."""

    name: str
    size: int
    modified_at: datetime  # by the store's clock


class Bucket:
    """Blocking calls, safe from many threads. Names are relative paths of `A-Z a-z 0-9 . _ / -`.

    Raises NotFound, Conflict (code `exists`), and StorageFailed with code `store_denied`, `store_read_only`,
    `store_unreachable` or `disk_full`. tests/contract/test_bucket.py says the rest; every kind of bucket passes it.
    """

    def __init__(self, store: Backend, *, directory: Path | None = None) -> None:
        self._store = store
        self._directory = directory

    def put_new(self, name: str, data: bytes) -> None:
        """Creates it, whole and durable, or raises Conflict: never both, whoever else tries at the same time."""
        self._put(name, data, new=True)

    def put(self, name: str, data: bytes) -> None:
        """Creates or replaces it. Only for hints that may be lost or old: what matters is written with `put_new`."""
        self._put(name, data, new=False)

    def get(self, name: str) -> bytes:
        return self._ask(name, lambda: bytes(obstore.get(self._store, name).bytes()))

    def get_range(self, name: str, start: int, length: int) -> bytes:
        """Exactly `length` bytes from `start`; NotFound also when the object is shorter."""
        data = self._ask(name, lambda: bytes(obstore.get_range(self._store, name, start=start, length=length)))
        if len(data) != length:
            raise NotFound(f"{name} ends before byte {start + length}")
        return data

    def size(self, name: str) -> int:
        return self._ask(name, lambda: int(obstore.head(self._store, name)["size"]))

    def list(self, prefix: str, *, after: str | None = None) -> Iterator[Stored]:
        """Everything below the folder `prefix`, streamed in chunks, in no particular order.

        With `after`, only what has a name behind that one, which need not be there.
        """
        chunks = iter(obstore.list(self._store, prefix, offset=after, chunk_size=1000))
        while chunk := self._ask(prefix, lambda: next(chunks, None)):
            for meta in chunk:
                yield Stored(meta["path"], meta["size"], meta["last_modified"])

    def delete(self, name: str) -> None:
        """Deletes it if it is there."""
        if self._directory is None:
            with suppress(NotFound):
                self._ask(name, lambda: obstore.delete(self._store, name), writing=True)
            return
        try:
            os.unlink(self._directory / _checked(name))
        except OSError as error:
            if error.errno not in _ABSENT:
                raise _local_failure(name, error, writing=True) from error

    def identity(self) -> str:
        """The random name that the bucket got when it was first used."""
        with suppress(NotFound):
            return self.get(IDENTITY).decode("ascii", "replace")
        with suppress(Conflict):
            self.put_new(IDENTITY, secrets.token_hex(16).encode())
        return self.get(IDENTITY).decode("ascii", "replace")

    def probe(self) -> None:
        """Proves at start that it can be written and read, and that create-if-absent refuses a second writer."""
        name = f"probe/{secrets.token_hex(16)}"
        self.put_new(name, b"first")
        try:
            with suppress(Conflict):
                self.put_new(name, b"second")
                raise StorageFailed(
                    "this object store lets two writers create the same object",
                    code="store_not_exclusive",
                    hint="use a store that honours If-None-Match: * on PUT",
                )
            if self.get(name) != b"first" or self.get_range(name, 1, 3) != b"irs":
                raise StorageFailed("this object store returned other bytes than were written", code="corrupt")
        finally:
            self.delete(name)

    def _put(self, name: str, data: bytes, *, new: bool) -> None:
        if self._directory is not None:
            _write_durably(self._directory, _checked(name), data, new=new)
        else:
            mode: Any = "create" if new else "overwrite"
            self._ask(name, lambda: obstore.put(self._store, name, data, mode=mode, use_multipart=False), writing=True)

    def _ask(self, name: str, call: Callable[[], T], *, writing: bool = False) -> T:
        _checked(name)
        try:
            return call()
        except FileNotFoundError as error:
            if self._directory is not None and not self._directory.is_dir():
                raise _unreachable(f"the object directory {self._directory} is gone") from error
            raise NotFound(f"no object {name}") from error
        except refused.AlreadyExistsError as error:
            raise Conflict(f"{name} exists", code="exists") from error
        except (refused.PermissionDeniedError, refused.UnauthenticatedError) as error:
            if writing and self._may_read():
                raise _read_only(name) from error
            raise _denied(name) from error
        except refused.BaseError as error:
            # A range that starts behind the end has no error of its own.
            if "range" in str(error).lower() and self._is_there(name):
                raise NotFound(f"{name} is shorter than what was asked of it") from error
            raise _unreachable(f"the object store did not answer for {name}: {str(error)[:300]}") from error
        except OSError as error:
            raise _local_failure(name, error, writing=writing) from error

    def _may_read(self) -> bool:
        try:
            obstore.head(self._store, IDENTITY)
        except (refused.PermissionDeniedError, refused.UnauthenticatedError):
            return False
        except (refused.BaseError, OSError):
            return True  # it answered, or has another trouble
        return True

    def _is_there(self, name: str) -> bool:
        try:
            obstore.head(self._store, name)
        except (refused.BaseError, OSError):
            return False
        return True


def open_bucket(url: str, *, options: dict[str, Any] | None = None) -> Bucket:
    """`file:///path`, `s3://bucket/prefix`, `gs://bucket/prefix`, `az://container/prefix` or `memory:`.

    `options` go to the client of the store as they are (endpoint, region, access_key_id, ...); without them it reads
    `AWS_*`, `GOOGLE_*` or `AZURE_*` from the environment.
    """
    parts = urlsplit(url)
    if parts.scheme == "file" and not parts.netloc and parts.path.startswith("/"):
        return local_bucket(Path(unquote(parts.path)))
    if parts.scheme == "memory":
        return Bucket(MemoryStore())
    if parts.scheme in _CLOUDS and parts.netloc:
        defaults: dict[str, Any] = {
            "client_options": {"timeout": "60s", "connect_timeout": "5s", "allow_http": True},
            "retry_config": {"max_retries": 4, "retry_timeout": timedelta(seconds=60)},
        }
        prefix = parts.path.strip("/") or None
        try:
            return Bucket(_CLOUDS[parts.scheme](parts.netloc, prefix=prefix, **{**defaults, **(options or {})}))
        except refused.BaseError as error:
            raise Invalid(
                f"the object store {parts.scheme}://{parts.netloc} cannot be used: {str(error)[:300]}",
                hint="its account and keys come from AWS_*, GOOGLE_* or AZURE_*",
            ) from error
    raise Invalid(
        f"not an object store: {url!r}",
        hint="file:///path, s3://bucket/prefix, gs://bucket/prefix or az://container/prefix",
    )


def local_bucket(directory: Path) -> Bucket:
    """A bucket in a local directory, which is made if needed, for its owner only."""
    try:
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        return Bucket(LocalStore(directory), directory=directory)
    except OSError as error:
        raise _local_failure(str(directory), error, writing=True) from error
    except refused.BaseError as error:
        raise _unreachable(f"the object directory {directory} cannot be opened") from error


def _write_durably(directory: Path, name: str, data: bytes, *, new: bool) -> None:
    # Not through obstore: its LocalStore renames without fsync, so a power cut may leave an empty file under a name
    # that create-if-absent will never write again. `#` and digits is the suffix that its listings leave out.
    path = directory / name
    part = Path(f"{path}#{secrets.randbits(62)}")
    try:
        if not directory.is_dir():
            raise _unreachable(f"the object directory {directory} is gone")
        _make_folders(directory, path.parent)
        try:
            fd = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            try:
                view = memoryview(data)
                while view:
                    view = view[os.write(fd, view) :]
                os.fsync(fd)
            finally:
                os.close(fd)
            if new:
                os.link(part, path)
            else:
                os.rename(part, path)
        finally:
            with suppress(FileNotFoundError):
                os.unlink(part)
        _sync_folder(path.parent)
    except FileExistsError as error:
        raise Conflict(f"{name} exists", code="exists") from error
    except OSError as error:
        raise _local_failure(name, error, writing=True) from error


def _make_folders(directory: Path, folder: Path) -> None:
    missing = []
    while folder != directory and not folder.is_dir():
        missing.append(folder)
        folder = folder.parent
    for made in reversed(missing):
        with suppress(FileExistsError):
            made.mkdir(mode=0o700)
        _sync_folder(made.parent)


def _sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


_ALLOWED = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._/-")


def _checked(name: str) -> str:
    if not _ALLOWED.issuperset(name) or len(name) > 900 or any(part in ("", ".", "..") for part in name.split("/")):
        raise Invalid(f"not a name for an object: {name[:100]!r}")
    return name


def _read_only(name: str) -> StorageFailed:
    return StorageFailed(
        f"the object store is read-only: {name} was not written",
        code="store_read_only",
        hint="check how it is mounted and its permissions",
    )


def _denied(name: str) -> StorageFailed:
    return StorageFailed(
        f"the object store refuses these credentials: {name} was neither read nor written",
        code="store_denied",
        hint="check the keys (AWS_*, GOOGLE_* or AZURE_*), what they may do, and this machine's clock",
    )


def _unreachable(message: str) -> StorageFailed:
    return StorageFailed(message, code="store_unreachable", hint="check the address and the credentials of the store")


def _local_failure(name: str, error: OSError, *, writing: bool) -> DovecoteError:
    if error.errno in _FULL:
        return StorageFailed(f"no space left for {name}", code="disk_full", hint="free space or move the store")
    if writing and error.errno in _READ_ONLY:
        return _read_only(name)
    return _unreachable(f"{name}: {error.strerror or error}")
