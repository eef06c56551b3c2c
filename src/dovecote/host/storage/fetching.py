"""Finds the objects of trees in the store, and brings them."""

from __future__ import annotations

from dovecote.errors import StorageFailed
from dovecote.host.storage.bucket import Bucket
from dovecote.host.storage.index import Piece
from dovecote.host.storage.manifests import Manifests
from dovecote.host.storage.packs import Packs, Sink
from dovecote.host.storage.runs import Located, in_order
from dovecote.host.storage.stored import read_located


class Fetching:
    """Safe from many threads."""

    def __init__(self, bucket: Bucket, packs: Packs) -> None:
        self._bucket = bucket
        self._packs = packs

    def fetch(self, tree: Manifests, missing: list[bytes], into: Sink) -> None:
        """Each is checked by its hash; the index learns where they were. Raises StorageFailed `corrupt`."""
        located = self.locate(tree, missing)
        found = self.bring(tree, located, into)
        known = self._packs.index.locate(found)
        self._packs.index.add({d: pieces for d, pieces in found.items() if known.get(d) != pieces})

    def locate(self, tree: Manifests, missing: list[bytes]) -> Located:
        """Where they lie, as this host's index knows or else the store's hints; neighbours one after the other."""
        located = self._packs.locate(missing)
        if len(located) < len(missing):
            located |= self._hinted(tree, set(missing) - located.keys())
        return in_order(located)

    def bring(self, tree: Manifests, located: Located, into: Sink) -> Located:
        """As `fetch`, without telling the index; answers where they were in the end."""
        try:
            self._packs.fetch(located, into)
        except StorageFailed as error:
            if error.code != "corrupt":
                raise
            # The hints in the store may know a place that this host's index does not.
            hinted = self._hinted(tree, set(into.missing(located)))
            if all(located[digest] == pieces for digest, pieces in hinted.items()):
                raise
            self._packs.fetch(in_order(hinted), into)
            located = {**located, **hinted}
        return located

    def _hinted(self, tree: Manifests, wanted: set[bytes]) -> dict[bytes, tuple[Piece, ...]]:
        found: dict[bytes, tuple[Piece, ...]] = {}
        for part, objects in tree.parts:
            if not wanted.isdisjoint(objects):
                hints = read_located(self._bucket, part, objects)
                found |= {digest: pieces for digest, pieces in hints.items() if digest in wanted}
                wanted = wanted - hints.keys()
        return found
