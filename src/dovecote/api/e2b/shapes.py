"""What goes over E2B's wire about sandboxes. Fields that we do not know are left out: clients are newer than we are."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta
from typing import Any

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

from dovecote.control.volumes import is_for_volume
from dovecote.errors import Invalid, Unsupported
from dovecote.model.records import Revision, Session
from dovecote.model.sizes import MIB, SPECS, NetworkPolicy
from dovecote.model.states import AtTimeout, SessionState
from dovecote.model.volumes import Mount

ENVD_VERSION = "0.6.4"  # of the data plane that `envd.py` speaks
CLIENT_ID = "dovecote"
EVERYTHING = ("0.0.0.0/0", "::/0")
LONGEST = 365 * 86400  # seconds
FAR = timedelta(days=365)


class Body(BaseModel):
    model_config = ConfigDict(extra="ignore", alias_generator=to_camel, populate_by_name=True)


class AutoResume(Body):
    enabled: bool = False


class VolumeMount(Body):
    name: str = Field(min_length=1, max_length=100)
    path: str = Field(min_length=1, max_length=4096)


class Egress(Body):
    """What may be reached. Of what is here only to be refused we say so: silence would be taken for protection."""

    allow_out: list[str] = Field(default_factory=list, max_length=1000)
    deny_out: list[str] = Field(default_factory=list, max_length=1000)
    allow_internet_access: bool | None = None
    egress_proxy: dict[str, Any] | None = None
    dns_servers: list[str] | None = None
    rules: dict[str, Any] | None = None

    def policy(self) -> NetworkPolicy:
        """Raises Unsupported (no_domain_rules, no_egress_proxy, no_dns_servers, no_rules)."""
        if self.egress_proxy:
            raise Unsupported("a proxy for what a sandbox sends is not possible", code="no_egress_proxy")
        if self.dns_servers:
            raise Unsupported("the name servers of a sandbox are the host's", code="no_dns_servers")
        if self.rules:
            raise Unsupported("requests of a sandbox are not changed on their way", code="no_rules")
        for each in (*self.allow_out, *self.deny_out):
            if any(letter.isalpha() for letter in each) and ":" not in each:
                raise Unsupported(
                    f"what may be reached is said by address, not by name: {each[:80]!r}",
                    code="no_domain_rules",
                    hint="write addresses and networks, 203.0.113.7 or 203.0.113.0/24",
                )
        allowed = [each for each in self.allow_out if each not in EVERYTHING]
        denied = [each for each in self.deny_out if each not in EVERYTHING]
        is_closed = self.allow_internet_access is False or len(denied) < len(self.deny_out)
        is_open = len(allowed) < len(self.allow_out)
        return NetworkPolicy(
            internet=is_open or not is_closed, allow_cidrs=tuple(allowed), deny_cidrs=() if is_open else tuple(denied)
        )


class Network(Egress):
    allow_public_traffic: bool | None = None
    mask_request_host: str | None = None
    https_ports: list[int] = Field(default_factory=list)

    def policy(self) -> NetworkPolicy:
        if self.allow_public_traffic is False:
            raise Unsupported(
                "addresses of a sandbox's ports are not guarded by a token",
                code="no_traffic_token",
                hint="the address itself cannot be guessed; let the server inside ask for a password",
            )
        if self.mask_request_host or self.https_ports:
            raise Unsupported("requests reach a sandbox as they are, by HTTP", code="no_traffic_rules")
        return super().policy()


class NewSandbox(Body):
    template_id: str = Field("", alias="templateID", max_length=200)
    timeout: int = Field(300, ge=0, le=LONGEST)
    auto_pause: bool = False
    auto_pause_memory: bool = True
    auto_resume: AutoResume = AutoResume()
    secure: bool = True
    allow_internet_access: bool | None = None
    network: Network | None = None
    metadata: dict[str, str] | None = None
    env_vars: dict[str, str] | None = None
    mcp: dict[str, Any] | None = None
    iam: dict[str, Any] | None = None
    volume_mounts: list[VolumeMount] = Field(default_factory=list, max_length=32)

    def check(self) -> None:
        """Raises Unsupported for what would go unheard otherwise, Invalid."""
        if self.mcp:
            raise Unsupported("no MCP servers are started in a sandbox", code="no_mcp", hint="start them as commands")
        if self.iam and self.iam.get("tokens"):
            raise Unsupported("sandboxes have no identity of their own", code="no_iam")
        if self.auto_resume.enabled and not self.auto_pause:
            raise Invalid("autoResume is for sandboxes with autoPause")
        if self.auto_resume.enabled and not self.auto_pause_memory:
            raise Invalid("autoResume is for sandboxes that are paused with their memory")

    def at_timeout(self) -> AtTimeout:
        if not self.auto_pause:
            return AtTimeout.END
        return AtTimeout.PAUSE if self.auto_pause_memory else AtTimeout.PARK

    def network_policy(self) -> NetworkPolicy | None:
        """None where nothing is said: as its template's function."""
        if self.network is None and self.allow_internet_access is None:
            return None
        network = self.network or Network()
        if self.allow_internet_access is not None:
            network = network.model_copy(update={"allow_internet_access": self.allow_internet_access})
        return network.policy()

    def mounts(self) -> list[Mount]:
        return [Mount(each.name, each.path) for each in self.volume_mounts]


class OldSandbox(NewSandbox):
    """As `POST /sandboxes` takes it."""

    timeout: int = Field(15, ge=0, le=LONGEST)
    secure: bool = False


class Connect(Body):
    timeout: int = Field(300, ge=0, le=LONGEST)
    memory: bool = True


class Resume(Body):
    timeout: int = Field(15, ge=0, le=LONGEST)
    memory: bool = True


class Pause(Body):
    memory: bool = True


class Timeout(Body):
    timeout: int = Field(ge=0, le=LONGEST)


class Refresh(Body):
    duration: int = Field(0, ge=0, le=LONGEST)


class Fork(Body):
    timeout: int = Field(15, ge=0, le=LONGEST)
    count: int = Field(1, ge=1, le=100)


def span(seconds: int) -> timedelta:
    """Nothing means that it is over at once."""
    return timedelta(seconds=seconds) or timedelta(milliseconds=1)


def sandbox_shape(session: Session, revision: Revision, domain: str) -> dict[str, object]:
    """Of one that was created, connected to or forked."""
    return {
        "templateID": revision.template_name,
        "alias": revision.template_name,
        "sandboxID": session.slug,
        "clientID": CLIENT_ID,
        "envdVersion": ENVD_VERSION,
        "domain": domain,
        **({"envdAccessToken": session.token} if session.needs_token else {}),
    }


def listed_shape(session: Session, revision: Revision) -> dict[str, object]:
    limits = SPECS[revision.spec].limits
    shape: dict[str, object] = {
        "templateID": revision.template_name,
        "alias": revision.template_name,
        "sandboxID": session.slug,
        "clientID": CLIENT_ID,
        "startedAt": _moment(session.created_at),
        "endAt": _moment(_end(session)),
        "cpuCount": math.ceil(limits.cpus),
        "memoryMB": limits.memory_bytes // MIB,
        "diskSizeMB": limits.disk_bytes // MIB,
        "state": state_of(session),
        "envdVersion": ENVD_VERSION,
        "metadata": session.metadata,
    }
    return shape


def detail_shape(session: Session, revision: Revision, domain: str) -> dict[str, object]:
    shape = sandbox_shape(session, revision, domain) | listed_shape(session, revision)
    network = session.network or revision.network
    shape["allowInternetAccess"] = network.internet if session.network else None
    if session.network is not None:
        shape["network"] = {"allowOut": [*network.allow_cidrs], "denyOut": _denied(network)}
    shape["lifecycle"] = {
        "onTimeout": "kill" if session.at_timeout is AtTimeout.END else "pause",
        "autoResume": session.resumes_on_use,
    }
    if session.is_paused:
        shape["pauseMode"] = "full" if session.instance_id or session.is_hibernated else "filesystem"
    return shape


def state_of(session: Session) -> str:
    return "paused" if session.is_paused else "running"


def is_there(session: Session) -> bool:
    """Whether clients of E2B see it at all."""
    end = session.expires_at
    if session.at_timeout is AtTimeout.END and session.timeout_at is not None:
        end = min(end, session.timeout_at) if end else session.timeout_at
    if is_for_volume(session):
        return False
    return session.state is not SessionState.ENDED and (end is None or end > datetime.now(UTC))


def _end(session: Session) -> datetime:
    return session.timeout_at or session.expires_at or session.last_active_at + FAR


def _denied(network: NetworkPolicy) -> list[str]:
    return [*network.deny_cidrs, *([] if network.internet else [EVERYTHING[0]])]


def _moment(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat().replace("+00:00", "Z")
