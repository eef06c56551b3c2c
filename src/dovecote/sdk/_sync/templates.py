"""Templates: made of images and build files, with progress."""

# Generated from _async/templates.py by `python -m dovecote.sdk.generate`; change that and run it.

from __future__ import annotations

import tarfile
import tempfile
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import IO, Any

from dovecote.sdk._reading import read
from dovecote.sdk._shapes import Printed, Step, Template, TemplateEvent
from dovecote.sdk._sync.transport import Wire, json_lines


class Templates:
    def __init__(self, wire: Wire) -> None:
        self._wire = wire

    def pull(self, reference: str, *, name: str, port: int | None = None) -> Generator[TemplateEvent, None, None]:
        """Of an image in a registry, `host/name:tag`. The last event is the template.

        Raises Conflict (building), and what the image is refused for. Leaving early does not end it. `port` is what
        the image's command opens, where the image does not say.
        """
        body = {"name": name, "reference": reference, "port": port}
        yield from self._making("/v1/templates", json=body)

    def upload(
        self, archive: str | Path, *, name: str, port: int | None = None
    ) -> Generator[TemplateEvent, None, None]:
        """Of an archive of an image: what `docker save` or `skopeo copy ... oci-archive:FILE` wrote, not compressed."""
        with Path(archive).open("rb") as file:
            yield from self._making("/v1/templates:upload", params={"name": name, "port": port}, content=_pieces(file))

    def build(self, directory: str | Path, *, name: str) -> Generator[TemplateEvent, None, None]:
        """Of the `Dovecotefile` in a directory and all that is below it, but `.git`. What commands print comes too."""
        with tempfile.TemporaryFile() as file:
            _pack(Path(directory), file)
            yield from self._making("/v1/templates:build", params={"name": name}, content=_pieces(file))

    def prepare(self, name: str) -> Generator[TemplateEvent, None, None]:
        """Makes one of the installation's own, `code`, now and not when it is first used. The last event is it."""
        yield from self._making(f"/v1/templates/{name}:prepare")

    def get(self, name: str) -> Template:
        return read(Template, self._wire.call("GET", f"/v1/templates/{name}"))

    def list(self) -> list[Template]:
        """The installation's own come first; those in the state `on_demand` are made when they are first used."""
        found: list[Template] = []
        after: str | None = None
        while True:
            page: Any = self._wire.call("GET", "/v1/templates", params={"after": after})
            found += [read(Template, each) for each in page["items"]]
            after = page["next"]
            if after is None:
                return found

    def delete(self, name: str) -> None:
        """Functions that start from it keep its files."""
        self._wire.call("DELETE", f"/v1/templates/{name}")

    def _making(
        self, path: str, *, json: Any = None, params: Mapping[str, Any] | None = None, content: Any = None
    ) -> Generator[TemplateEvent, None, None]:
        with self._wire.stream("POST", path, json=json, params=params, content=content) as response:
            for fields in json_lines(response):
                yield _event(fields)


def _pack(directory: Path, file: IO[bytes]) -> None:
    def kept(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
        is_kind = member.isreg() or member.isdir() or member.issym()
        return member if is_kind and member.name.removeprefix("./") != ".git" else None

    with tarfile.open(fileobj=file, mode="w", dereference=False) as archive:
        archive.add(directory, ".", filter=kept)
    file.seek(0)


def _pieces(file: IO[bytes]) -> Generator[bytes, None, None]:
    while piece := file.read(1 << 20):
        yield piece


def _event(fields: Mapping[str, Any]) -> TemplateEvent:
    if fields["type"] == "ready":
        return read(Template, fields["template"])
    if fields["type"] == "output":
        return read(Printed, fields)
    return read(Step, fields)
