"""The network of one host's instances: addresses, policies, and what their connections do."""

from __future__ import annotations

import asyncio
import socket
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import partial
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Any, TypeVar

from dovecote.errors import Failed, NotFound
from dovecote.host.network import namespaces, policy
from dovecote.host.network.addresses import Addresses
from dovecote.host.network.conntrack import Conntrack, Flow
from dovecote.host.network.limits import Limits
from dovecote.host.network.releases import Releases
from dovecote.host.network.resolver import find_resolver
from dovecote.host.network.router import Router
from dovecote.host.network.sets import Change, Element, Sets
from dovecote.host.network.together import Together
from dovecote.model.networks import parse_networks
from dovecote.model.sizes import NetworkPolicy

T = TypeVar("T")


@dataclass(frozen=True)
class Attachment:
    """An instance's place in the network. `index` is small and belongs to it alone while it is attached."""

    address: str
    netns: Path
    index: int


@dataclass(frozen=True)
class _Handles:
    """Sockets in the router. Each pair belongs to one thread, so that a long listing never holds up a thaw."""

    sets: Sets
    conntrack: Conntrack

    def close(self) -> None:
        self.sets.close()
        self.conntrack.close()


@dataclass(frozen=True)
class _Granted:
    """The policy of an address as it is in the sets."""

    internet: bool = False
    grants: frozenset[IPv4Network] = frozenset()
    denials: frozenset[IPv4Network] = frozenset()
    is_watched: bool = False

    def permits(self, flow: Flow, network: IPv4Network) -> bool:
        grants, denials = tuple(self.grants), tuple(self.denials)
        return policy.permits(flow.destination, internet=self.internet, grants=grants, denials=denials, network=network)

    def changes(self, address: IPv4Address, wanted: _Granted) -> list[Change]:
        """What makes this, of an address, what is wanted."""
        found = [Change(policy.INTERNET, Element(address), wanted.internet)]
        if self.is_watched is not wanted.is_watched:
            found.append(Change(policy.WATCHED, Element(address), wanted.is_watched))
        for name, old, new in (
            (policy.ALLOWED, self.grants, wanted.grants),
            (policy.DENIED, self.denials, wanted.denials),
        ):
            found += [Change(name, Element(address, each), False) for each in old - new]
            found += [Change(name, Element(address, each), True) for each in new - old]
        return found

    def allows_no_less_than(self, before: _Granted) -> bool:
        return before.internet <= self.internet and before.grants <= self.grants and before.denials >= self.denials


class Network:
    """Gives instances an address and a namespace, and decides what passes.

    `ensure` comes first, then `adopt` with what still runs; everything may be repeated. An instance that was attached
    may reach nothing until a policy is applied. Failures of the kernel are Failed with code `network_failed`.
    """

    def __init__(
        self,
        *,
        installation: str,
        network: str,
        run_dir: Path,
        dns: str,
        address_rest: timedelta,
        host_namespace: Path = namespaces.HOST,
    ) -> None:
        """`dns` empty means the host's own. `host_namespace` is where the host's links and routes are."""
        self._installation, self._dns, self._run_dir = installation, dns, run_dir
        self._network = policy.parse_network(network)
        self._host_namespace = host_namespace
        self._addresses = Addresses(self._network, address_rest.total_seconds())
        self._releases = Releases(run_dir / "addresses")
        self._granted: dict[IPv4Address, _Granted] = {}
        self._counting = Together(self._count_flows)
        self._dropping = Together(self._drop_used)
        self._abandoned: asyncio.Task[None] | None = None  # only so that it is not collected
        self._router: Router | None = None
        self._change: _Handles | None = None
        self._look: _Handles | None = None
        self._limits: Limits | None = None  # used by the thread of changes
        # Wires are slow to cut (the kernel waits for every processor), rules and listings are not: a thread each.
        self._wires, self._changes, self._looks = (
            ThreadPoolExecutor(1, thread_name_prefix=f"network-{name}") for name in ("wires", "changes", "looks")
        )

    async def ensure(self) -> None:
        """Makes what is missing, replaces the rules, keeps what instances have. Raises Conflict, Unsupported."""
        is_first = self._router is None
        is_new = await self._run(self._wires, self._ensure)
        if is_first:
            self._resume(is_new or not await self._run(self._wires, self._ready().known))

    def _ensure(self) -> bool:
        plan = policy.Plan(self._installation, self._network, find_resolver(self._dns))
        router = Router(plan, run_dir=self._run_dir, host=self._host_namespace)
        is_new = router.ensure()
        if self._router:
            self._router.close()
        self._router = router
        if is_new or self._change is None:
            # Not otherwise: other threads may be using them.
            for handle in (self._change, self._look, self._limits):
                if handle:
                    handle.close()
            self._change, self._look = (_Handles(router.sets(), router.conntrack()) for _ in range(2))
            self._limits = router.limits()
            self._granted = _read_granted(self._change.sets)
        return is_new

    def _resume(self, is_empty: bool) -> None:
        """Addresses rest across a restart of ours: by the record; all of them if there are wires but no record."""
        now = _now()
        released = self._releases.read()
        if released is None:
            released = {} if is_empty else dict.fromkeys(range(1, self._network.num_addresses - 1), now)
        # A time yet to come is from before a reboot: the clock counts from there.
        self._addresses.resume({index: at for index, at in released.items() if at <= now})
        self._releases.write(self._addresses.resting(_now()))

    async def attach(self) -> Attachment:
        """A new namespace with an address. Raises NoCapacity with code `no_addresses`."""
        router = self._ready()
        index = self._addresses.take(_now())
        try:
            await self._run(self._wires, partial(router.join, index))
        except BaseException:
            # Also when the caller gave up: the thread goes on, and this comes after it.
            self._abandoned = asyncio.create_task(self._dropping.call(index))
            raise
        return Attachment(str(self._addresses.address(index)), router.namespace(index), index)

    async def apply(self, address: str, wanted: NetworkPolicy) -> None:
        """Holds at once, for open connections too: those no longer allowed end. Raises Invalid, NotFound."""
        grants, denials = frozenset(parse_networks(wanted.allow_cidrs)), frozenset(parse_networks(wanted.deny_cidrs))
        granted = _Granted(wanted.internet, grants, denials, wanted.outbound_keeps_awake)
        await self._run(self._changes, partial(self._apply, self._owner(address), granted))

    def _apply(self, address: IPv4Address, wanted: _Granted) -> None:
        assert self._change
        before = self._granted.get(address, _Granted())
        self._change.sets.apply(before.changes(address, wanted))
        self._granted[address] = wanted
        if wanted.allows_no_less_than(before):
            return  # nothing was open that may not stay so; looking costs milliseconds
        # What it sends is refused from now on; what still comes in for these is too, once they are forgotten.
        conntrack = self._change.conntrack
        conntrack.delete(flow for flow in conntrack.sent_by(address) if not wanted.permits(flow, self._network))

    async def limit(self, address: str, connections: int) -> None:
        """TCP connections from the host beyond so many at once are reset from now on, until it is detached."""
        limits = self._limits
        assert limits
        await self._run(self._changes, partial(limits.set, self._owner(address), connections))

    async def refuse(self, address: str) -> None:
        """New connections from the host are reset from now on; open ones go on."""
        await self._set(policy.REFUSED, address, True)

    async def accept(self, address: str) -> None:
        """Ends `refuse`."""
        await self._set(policy.REFUSED, address, False)

    async def _set(self, name: str, address: str, is_in: bool) -> None:
        await self._change_sets([Change(name, Element(self._owner(address)), is_in)])

    async def _change_sets(self, changes: list[Change]) -> None:
        handles = self._change
        assert handles
        await self._run(self._changes, partial(handles.sets.apply, changes))

    async def socket_inside(self, address: str) -> socket.socket:
        """For TCP, not connected, in the namespace of the instance: its loopback is the instance's own."""
        index = self._addresses.index(str(self._owner(address)))
        return await self._run(self._looks, partial(_open_inside, self._ready().namespace(index)))

    async def flows(self, address: str) -> int:
        """TCP connections from the host to it over which something may still come: begun, open or half closed."""
        return await self._counting.call(self._owner(address))

    async def _count_flows(self, addresses: frozenset[IPv4Address]) -> dict[IPv4Address, int]:
        handles, source = self._look, self._ready().plan.host_address
        assert handles
        found = await self._run(self._looks, partial(handles.conntrack.tcp_sent_to, addresses, source))
        counts = Counter(flow.destination for flow in found if flow.is_open)
        return {address: counts[address] for address in addresses}

    async def activity(self) -> dict[str, float]:
        """Address to seconds since the last packet from the host, for those that had one in the last hour.

        Counts what the side that opened the connection sends: a request, its acknowledgements of a stream, a frame of
        a WebSocket. An instance's own connections to the outside, and connections that were refused, do not count.
        """
        self._ready()
        handles = self._look
        assert handles
        found = await self._run(self._looks, partial(handles.sets.list, policy.ACTIVE))
        return {str(element.address): max(0.0, policy.ACTIVE_SECONDS - left) for element, left in found}

    async def sent(self) -> dict[str, float]:
        """Address to seconds since it last exchanged something with the outside, of those whose policy counts that."""
        self._ready()
        handles = self._look
        assert handles
        if not any(granted.is_watched for granted in self._granted.values()):
            return {}
        found = await self._run(self._looks, partial(handles.sets.list, policy.SENT))
        return {str(element.address): max(0.0, policy.ACTIVE_SECONDS - left) for element, left in found}

    async def flows_to(self, addresses: Collection[str]) -> dict[str, int]:
        """As `flows`, of many at once; addresses that nobody has are left out."""
        self._ready()
        known = [each for each in addresses if self._addresses.is_used(self._addresses.index(each))]
        if not known:
            return {}
        counts = await self._count_flows(frozenset(map(IPv4Address, known)))
        return {str(address): count for address, count in counts.items() if count}

    async def detach(self, address: str) -> None:
        """Cuts it off, ends its connections, frees its namespace; its address rests. May be repeated."""
        self._ready()
        index = self._addresses.index(address)
        if self._addresses.is_used(index):
            await self._dropping.call(index)

    async def adopt(self, live: Mapping[str, Attachment]) -> frozenset[str]:
        """After a restart of ours: keeps these and mends their wires, removes what is nobody's.

        Returns the keys whose namespace is gone: nothing can reach those instances again. Apply policies anew.
        """
        router = self._ready()
        lost = set()
        for key, attachment in live.items():
            self._addresses.hold(attachment.index)
            if not await self._run(self._wires, partial(router.rejoin, attachment.index)):
                lost.add(key)
        kept = {attachment.index for attachment in live.values()}
        await self._drop(await self._run(self._wires, self._known) - kept)
        return frozenset(lost)

    def _known(self) -> frozenset[int]:
        assert self._router
        assert self._change
        assert self._limits
        named = {
            self._addresses.index(str(element.address))
            for name in (policy.INTERNET, policy.ALLOWED, policy.DENIED, policy.REFUSED, policy.WATCHED)
            for element, _ in self._change.sets.list(name)
        }
        named |= {self._addresses.index(str(address)) for address in self._limits.known()}
        return frozenset(self._router.known() | named)

    async def _drop_used(self, indexes: frozenset[int]) -> dict[int, None]:
        # A second detach of the same address may come when the first is done, and the address somebody else's.
        await self._drop(frozenset(index for index in indexes if self._addresses.is_used(index)))
        return dict.fromkeys(indexes)

    async def _drop(self, indexes: frozenset[int]) -> None:
        if not indexes:
            return
        for index in indexes:
            self._addresses.hold(index)
        await self._run(self._wires, partial(self._ready().part, indexes))
        await self._run(self._changes, partial(self._forget, {self._addresses.address(index) for index in indexes}))
        for index in indexes:
            self._release(index)

    def _forget(self, addresses: set[IPv4Address]) -> None:
        assert self._change
        assert self._limits
        self._limits.drop(addresses)
        for address in addresses:
            changes = self._granted.pop(address, _Granted()).changes(address, _Granted())
            changes += [Change(name, Element(address), False) for name in policy.MARKS]
            self._change.sets.apply(changes)
        self._change.conntrack.delete(self._change.conntrack.of(addresses))

    def _release(self, index: int) -> None:
        now = _now()
        self._addresses.release(index, now)
        if self._releases.append(index, now):
            self._releases.write(self._addresses.resting(now))

    async def remove(self) -> None:
        """Everything that this installation has in the kernel, whoever made it. May be repeated."""
        self._close_handles()
        await self._run(self._wires, self._remove)
        self._addresses = Addresses(self._network, self._addresses.rest)

    def _remove(self) -> None:
        # Removing needs no name server, and must work on a host that has none.
        plan = policy.Plan(self._installation, self._network, policy.GATEWAY)
        Router(plan, run_dir=self._run_dir, host=self._host_namespace).remove()
        self._releases.delete()

    async def close(self) -> None:
        """Lets go of sockets and threads; what is in the kernel stays and goes on."""
        self._close_handles()
        for executor in (self._wires, self._changes, self._looks):
            executor.shutdown(wait=False)

    def _close_handles(self) -> None:
        for handle in (self._router, self._change, self._look, self._limits):
            if handle:
                handle.close()
        self._router = self._change = self._look = self._limits = None
        self._granted = {}

    def _ready(self) -> Router:
        if self._router is None:
            raise Failed("the network is not up", code="network_failed", hint="ensure() comes first")
        return self._router

    def _owner(self, address: str) -> IPv4Address:
        self._ready()
        if not self._addresses.is_used(self._addresses.index(address)):
            raise NotFound(f"no instance has the address {address}", code="no_such_address")
        return IPv4Address(address)

    async def _run(self, executor: ThreadPoolExecutor, act: Callable[[], T]) -> T:
        try:
            return await asyncio.get_running_loop().run_in_executor(executor, act)
        except OSError as error:
            raise Failed(f"the kernel refused a change of the network: {error}", code="network_failed") from error


def _read_granted(sets: Sets) -> dict[IPv4Address, _Granted]:
    granted = {element.address: _Granted(internet=True) for element, _ in sets.list(policy.INTERNET)}
    for element, _ in sets.list(policy.WATCHED):
        granted[element.address] = replace(granted.get(element.address, _Granted()), is_watched=True)
    for name, kind in ((policy.ALLOWED, "grants"), (policy.DENIED, "denials")):
        for element, _ in sets.list(name):
            assert element.destination
            before = granted.get(element.address, _Granted())
            networks: dict[str, Any] = {kind: getattr(before, kind) | {element.destination}}
            granted[element.address] = replace(before, **networks)
    return granted


def _open_inside(namespace: Path) -> socket.socket:
    kind = socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
    return namespaces.inside(namespace, lambda: socket.socket(socket.AF_INET, kind))


def _now() -> float:
    """Seconds since boot, sleep included: the one clock that a restart of ours does not move."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)
