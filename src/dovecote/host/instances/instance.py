"""One instance as its host knows it, and what is asked of a host in a claim."""

from __future__ import annotations

import asyncio
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import orjson
from pydantic import TypeAdapter

from dovecote.errors import NotFound
from dovecote.host.guest import Guest
from dovecote.host.guest.protocol import VERSION
from dovecote.host.instances.door import Door
from dovecote.host.network import Attachment
from dovecote.model.rules import SaveRules
from dovecote.model.sizes import Limits, NetworkPolicy
from dovecote.model.states import InstanceState, check_instance_move
from dovecote.model.trees import Workspace
from dovecote.model.volumes import Mount

if TYPE_CHECKING:
    from dovecote.host.instances.connections import Connection


@dataclass(frozen=True)
class Claim:
    """What somebody wants an instance for.

    `owner` is opaque to the host and has at most one instance; `keeps_files` says whether its files outlive the
    instance. `generation` is the last save that the owner knows of (the log may be ahead of it), `epoch` grows with
    each claim of the owner.
    """

    owner: str
    workspace: Workspace
    limits: Limits
    network: NetworkPolicy
    level: str
    epoch: int
    generation: int = 0
    keeps_files: bool = True
    allow_setuid: bool = True
    recovery_point: float = 2.0  # seconds of work that the loss of this host may cost
    mounts: tuple[Mount, ...] = ()
    home: str = ""  # where ignore files are looked for; "" for nowhere
    rules: SaveRules = SaveRules()
    connections: int = 0  # over TCP at once, from outside; more are reset; 0 for no limit
    memory: str | None = None  # a tree of `Memories`: processes go on as saved together with the workspace's files


_CLAIM = TypeAdapter(Claim)
_OPENING = TypeAdapter(Mount | None)


@dataclass(frozen=True)
class Placed:
    """`how` is `pool`, `cold`, `survivor` (its own files were still on the host), `memory` (its processes go on where
    they were) or `there` (it never left). `note`: why it is not what was asked for.

    `left_out` are directories that are empty because rules had left out what was in them when they were saved.
    """

    instance_id: str
    address: str
    pid: int
    how: str
    left_out: tuple[str, ...] = ()
    note: str = ""


@dataclass(frozen=True)
class Observed:
    """What an instance is and does now. `quiet_for` is seconds since a request or since a command last ran.

    `requests` are connections over which an answer may still come, while nothing was heard of them for a while, and
    `requests_for` since when. `sent_ago` is seconds since it last sent or got something outside, where that counts.
    """

    instance_id: str
    owner: str
    state: InstanceState
    address: str
    pid: int
    quiet_for: float
    commands: int
    requests: int = 0
    requests_for: float = 0.0
    sent_ago: float | None = None


@dataclass(frozen=True)
class Memory:
    """What a machine has left, and how much of that is its own."""

    available_bytes: int
    reserve_bytes: int

    @property
    def free_bytes(self) -> int:
        """For instances; below 0 when they eat into the reserve."""
        return self.available_bytes - self.reserve_bytes


@dataclass(frozen=True)
class Leftover:
    """Files of an owner whose instance is gone, still on this host's disk."""

    owner: str
    disk: str
    generation: int
    epoch: int


@dataclass(frozen=True)
class Death:
    """An instance ended that nobody had asked to. `is_own_doing`: it went over a limit of its own."""

    instance_id: str
    owner: str
    reason: str
    is_own_doing: bool = False


@dataclass
class Instance:
    """Kept in `directory/instance.json`, so that a restarted host adopts what runs."""

    id: str
    directory: Path
    state: InstanceState
    level: str
    allow_setuid: bool
    address: str
    netns: Path
    network_index: int
    id_base: int
    disk: str
    pid: int  # 0 where a claim starts its first process
    pid_started: int
    limits: Limits | None = None  # that it has; None where nobody wrote them down
    has_door: bool = False  # its guest binds its socket there itself
    claim: Claim | None = None
    mounted: dict[str, int] = field(default_factory=dict)  # mount point inside -> number of the mount
    opening: Mount | None = None  # one more that is on its way; stays where it may be there after it failed
    lock: asyncio.Lock = field(default_factory=asyncio.Lock, repr=False)
    hibernating: asyncio.Lock = field(default_factory=asyncio.Lock, repr=False)  # one at a time, to its end
    quiet_since: float = 0.0
    commands: int = 0
    requests: int = 0
    requests_since: float = 0.0
    sent_at: float | None = None
    asked_at: float = 0.0  # when its guest was asked for its commands; 0 since it was called
    unanswered: int = 0
    pidfd: int = -1
    untouched: int = 0  # of its disk, when nothing inside had run yet
    holds_root: bool = False  # the images of its workspace are kept mounted for it
    protocol: int = VERSION  # that its guest speaks
    is_dead: bool = False  # its first process ended by itself
    buried: asyncio.Event = field(default_factory=asyncio.Event, repr=False)
    connections: set[Connection] = field(default_factory=set, repr=False)  # from here to its ports

    @property
    def socket(self) -> Path:
        return self.door.socket if self.has_door else self.directory / "guest.sock"

    @property
    def door(self) -> Door:
        return Door(self.directory / "door", self.id_base)

    @property
    def guest(self) -> Guest:
        return Guest(self.socket)

    @property
    def attachment(self) -> Attachment:
        return Attachment(address=self.address, netns=self.netns, index=self.network_index)

    def become(self, state: InstanceState) -> None:
        """Raises Conflict for an illegal move. What is durable is written by `record`."""
        check_instance_move(self.state, state)
        self.state = state

    def record(self) -> None:
        body = {
            "id": self.id,
            "state": self.state.value,
            "level": self.level,
            "allow_setuid": self.allow_setuid,
            "address": self.address,
            "netns": str(self.netns),
            "network_index": self.network_index,
            "id_base": self.id_base,
            "disk": self.disk,
            "pid": self.pid,
            "pid_started": self.pid_started,
            "limits": asdict(self.limits) if self.limits else None,
            "has_door": self.has_door,
            "mounted": self.mounted,
            "untouched": self.untouched,
            "claim": _CLAIM.dump_python(self.claim, mode="json") if self.claim else None,
            "opening": _OPENING.dump_python(self.opening, mode="json"),
            "protocol": self.protocol,
        }
        temporary = self.directory / "instance.json.new"
        temporary.write_bytes(orjson.dumps(body))
        os.replace(temporary, self.directory / "instance.json")

    def unrecord(self) -> None:
        """Until it is recorded again a crash leaves nothing but what is taken apart at the next start.

        Not for one whose claim has mounts: nobody would know of those either.
        """
        (self.directory / "instance.json").unlink(missing_ok=True)


def read_instance(directory: Path) -> Instance:
    """Raises NotFound when there is no readable record: preparing it was cut short."""
    try:
        body = orjson.loads((directory / "instance.json").read_bytes())
        claim, limits = body.pop("claim"), body.pop("limits", None)
        opening = body.pop("opening", None)
        return Instance(
            directory=directory,
            state=InstanceState(body.pop("state")),
            netns=Path(body.pop("netns")),
            claim=_CLAIM.validate_python(claim) if claim else None,
            limits=Limits(**limits) if limits else None,
            opening=_OPENING.validate_python(opening),
            protocol=body.pop("protocol", 1),
            **body,
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise NotFound(f"no instance in {directory.name}") from error
