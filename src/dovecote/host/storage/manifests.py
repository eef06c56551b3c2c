"""All manifests of one tree: asked for at once, checked, and read as far as somebody needs them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

from dovecote.errors import StorageFailed
from dovecote.host.storage.bucket import Bucket
from dovecote.host.storage.manifest import Entry, Part, Root, join, parse_objects
from dovecote.host.storage.stored import objects_of, parse_stored, read_stored
from dovecote.host.storage.threads import ASKERS, in_threads


class Manifests:
    """`parts`: digest and objects of each manifest. They are known long before the entries: what is fetched meanwhile
    is as good as any other, since both come from bytes that were checked by hash."""

    def __init__(self, parts: Sequence[Part], raw: Sequence[bytes], times: Sequence[bytes]) -> None:
        self._stored = list(zip(parts, raw, times, strict=True))
        self.parts = [(part.digest.hex(), parse_objects(manifest)) for part, manifest, _ in self._stored]

    @property
    def objects(self) -> list[bytes]:
        """Digests of all files that have content, each once."""
        return list(dict.fromkeys(digest for _, objects in self.parts for digest in objects))

    @cached_property
    def entries(self) -> list[Entry]:
        """What the manifests make together. Raises StorageFailed `corrupt`."""
        entries = join((part.path, parse_stored(part, raw, times)) for part, raw, times in self._stored)
        if set(objects_of(entries)) != set(self.objects):
            raise StorageFailed("a manifest names other objects than it seemed to", code="corrupt")
        return entries


def read_manifests(bucket: Bucket, root: Root) -> Manifests:
    wanted = [("manifests", part.digest) for part in root.parts]
    wanted += [("times", part.times) for part in root.parts if part.times]
    found = dict(zip(wanted, in_threads(lambda name: read_stored(bucket, *name), wanted, ASKERS), strict=True))
    return Manifests(
        root.parts,
        [found["manifests", part.digest] for part in root.parts],
        [found["times", part.times] if part.times else b"" for part in root.parts],
    )
