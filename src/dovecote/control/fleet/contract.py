"""What control asks of a host. `dovecote.host.instances.Instances` keeps it in process."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Protocol

from dovecote.host.guest import Guest
from dovecote.host.instances import Claim, Connection, Leftover, Memory, Observed, Placed
from dovecote.host.storage.images import Images
from dovecote.host.storage.volumes import Volumes
from dovecote.model.sizes import NetworkPolicy
from dovecote.model.trees import Change, FileDiff, Hibernated, Lag, Saved
from dovecote.model.volumes import Mount


class Host(Protocol):
    """Every method may be repeated. An instance that is not there raises NotFound (no_such_instance)."""

    async def claim(self, claim: Claim) -> Placed:
        """Called when a session wakes or an app needs one more. The same owner gets the same instance.

        Raises NoCapacity (no_memory, no_addresses), StorageFailed (corrupt, disk_full), Conflict (sealed).
        """

    async def freeze(self, instance_id: str, *, force: bool = False) -> bool:
        """Called when it is quiet. False: a request is on its way and nothing has changed. `force` does not look."""

    async def thaw(self, instance_id: str) -> None:
        """Called on the path of a request; takes about a millisecond."""

    async def hibernate(self, instance_id: str) -> Hibernated:
        """Its memory and its files, of one moment, in the store. It stands still from then on until `stop` or `awaken`.

        Called when a session is paused, or its processes are to be forked. Raises Unsupported (cannot_hibernate),
        Failed, StorageFailed, Conflict (sealed); then it goes on.
        """

    async def awaken(self, instance_id: str) -> None:
        """One that was hibernated goes on where it stands."""

    async def save(self, instance_id: str, *, whole: bool = False) -> Saved:
        """A checkpoint while it goes on. `whole` answers a tree with what rules leave out too, for an app.

        Raises StorageFailed, Conflict (sealed).
        """

    async def lag(self, instance_id: str) -> Lag:
        """How far the store is behind its files. Called when a user asks; costs what has changed."""

    async def set_recovery_point(self, instance_id: str, seconds: float) -> None:
        """How much work its loss may cost from now on. Called when a session's tier changes, and after a restart."""

    async def set_network(self, instance_id: str, network: NetworkPolicy) -> None:
        """What it may reach from now on; open connections that it may not have end. Raises Invalid (invalid_cidr)."""

    @property
    def volumes(self) -> Volumes:
        """The volumes of this host."""

    def buckets(self) -> list[str]:
        """Names of the prefixes of buckets that may be mounted."""

    async def capture(self, instance_id: str) -> str:
        """One whole tree of what it sees now, that no log knows of. Called after a step of a build."""

    @property
    def images(self) -> Images:
        """What makes trees of images on this host."""

    async def mount(self, instance_id: str, mount: Mount) -> None:
        """Into an instance that runs or is frozen. Raises Conflict (exists), NotFound (no_such_path), StorageFailed."""

    async def unmount(self, instance_id: str, at: str, *, force: bool = False) -> None:
        """Raises StorageFailed (busy) when something inside uses it, unless forced."""

    async def stop(self, instance_id: str, *, grace: float = 2.0) -> None:
        """Ends its processes, asking them first for `grace` seconds. Kept files become the owner's leftover."""

    async def save_leftover(self, owner: str) -> Saved:
        """Saves a leftover, which stays until `discard`.

        Raises NotFound (no_leftover), also when the owner went on elsewhere since; StorageFailed.
        """

    async def discard(self, owner: str) -> None:
        """Deletes a leftover, once its save has been recorded or is not wanted."""

    async def erase(self, owner: str) -> None:
        """Deletes all files of an owner that has no instance, orphans too. Called when a session has ended."""

    async def rewind(self, owner: str, *, epoch: int, template: str, tree: str) -> Saved:
        """Makes an older tree the newest checkpoint in the owner's log, sealed against owners before `epoch`.

        Called when the owner has no instance; may be repeated. A leftover stays, older than this by its generation.
        Raises StorageFailed (corrupt), Invalid (wrong_template), Conflict (sealed, busy).
        """

    async def changes(self, template: str, old: str, new: str) -> list[Change]:
        """What differs between two trees over one template. Called when a user asks. Raises StorageFailed (corrupt)."""

    def archive(self, template: str, tree: str, path: str) -> AsyncGenerator[bytes, None]:
        """A zip file of what a user of the tree sees at `path`, made while it is read. Called when a user asks.

        Raises NotFound (no_such_path) before its first bytes, StorageFailed (corrupt).
        """

    async def diff(self, template: str, old: str, new: str, path: str) -> FileDiff:
        """How one file differs between two trees. Raises NotFound (no_such_path), Invalid (not_a_file), Failed."""

    async def verify(self, template: str, tree: str) -> None:
        """Called before a session is rewound. Raises StorageFailed (corrupt), Invalid (wrong_template)."""

    async def last_saved(self, owner: str) -> Saved | None:
        """The newest checkpoint in the owner's log, wherever it was written."""

    async def last_good(self, owner: str, *, before: int) -> int | None:
        """The newest save earlier than generation `before` whose files pass verification. Called when one does not."""

    def leftovers(self) -> list[Leftover]: ...

    def orphaned(self) -> frozenset[str]:
        """Owners that went on elsewhere, or from an older save, and of whom this host still has newer files."""

    async def observe(self) -> list[Observed]:
        """Called every tick; says what is true now, whatever control believes."""

    async def connections(self, instance_id: str) -> int:
        """Open over TCP from outside now. Called where somebody waits for room in it, and once a tick."""

    async def dial(self, instance_id: str, port: int, *, loopback: bool = False) -> Connection:
        """TCP to a port of it, and to nothing else; `loopback` is the instance's own, where its level lets anyone in.

        Called when a user forwards a port. Raises Failed (port_closed, port_is_local).
        """

    def memory(self) -> Memory:
        """What the machine has left. Called before each claim, and every tick."""

    async def look(self, instance_id: str) -> Observed:
        """What it does at this moment. Called when a user asks why it is awake."""

    async def usage(self, instance_id: str) -> dict[str, int | float]: ...

    def guest(self, instance_id: str) -> Guest:
        """The channel into it."""
