"""What the model of affinity lets callers, owners and accidents do, one at a time or all at once."""

from __future__ import annotations

import asyncio
from datetime import timedelta

from dovecote.errors import DovecoteError, Gone, NoCapacity
from dovecote.model.records import Session
from dovecote.model.serving import Mode
from dovecote.model.states import SessionState
from tests.unit.affinity_callers import Client, callers
from tests.unit.affinity_truth import Truth, alive
from tests.unit.affinity_world import AffinityWorld, Severed
from tests.unit.memory_servers import Request, Reset, Response


class Acts:
    """`held` are requests that stay inside until they are let go."""

    there: AffinityWorld
    truth: Truth
    credentials: list[str]

    def __init__(self) -> None:
        super().__init__()
        self.clients = callers()
        self.held: list[tuple[Client, asyncio.Event, asyncio.Task[Response]]] = []
        self.works = 0

    def _request(self, client: Client, *, is_post: bool, hold: asyncio.Event | None = None) -> Request:
        request = client.request(self.credentials[client.tenant], method="POST" if is_post else "GET", hold=hold)
        if request.method == "POST":
            self.works += 1
            request.headers["x-work"] = f"work-{self.works}"
        return request

    async def _ask(self, client: Client, worker: int, is_post: bool) -> None:
        before, was_full = await self.truth.session(client), await self.truth.is_full(client)
        response = await self.there.gateway.send(self._request(client, is_post=is_post), worker=worker)
        await self._judge(client, before, response, was_full=was_full)

    async def _judge(
        self, client: Client, before: Session | None, response: Response, *, was_full: bool = False
    ) -> None:
        if response.instance is not None:
            await self.truth.took(client, before, response)
        else:
            was_full = was_full or await self.truth.is_full(client)
            await self.truth.refused(client, before, response, was_full=was_full)

    async def _nobody(self, client: Client, worker: int, hold: asyncio.Event | None) -> None:
        response = await self._sent(client, worker, hold)
        if response is None:
            return
        if response.instance is None:
            assert response.code == "instance_full"
            assert await self.truth.is_full(client)
        else:
            owner = response.instance.claim.owner
            assert owner.startswith(self.truth.functions[client.tenant, "none"].id + ":")

    async def _sent(self, client: Client, worker: int, hold: asyncio.Event | None) -> Response | None:
        """The answer; None where the request stays inside until it is let go."""
        sending = asyncio.ensure_future(
            self.there.gateway.send(self._request(client, is_post=True, hold=hold), worker=worker)
        )
        if hold is None:
            return await sending
        before = sum(self.there.host.flows.values())
        while not sending.done():
            if sum(self.there.host.flows.values()) > before:
                self.held.append((client, hold, sending))
                return None
            await asyncio.sleep(0.001)
        return sending.result()

    async def _release(self) -> None:
        held, self.held = self.held, []
        for _, hold, _ in held:
            hold.set()
        for client, _, sending in held:
            try:
                response = await sending
            except Reset:
                continue  # the gateway died over it
            if response.instance is None:
                assert response.code == "instance_died"
            elif client.mode is not Mode.NONE:
                client.took(response)

    async def _close(self, client: Client) -> None:
        stream, client.stream = client.stream, None
        assert stream is not None
        session = await self.truth.session(client)
        stream.close()
        if stream.on_end is not None:
            await stream.on_end()
        client.forget()
        if session is not None and stream.on_end is not None and self.there.gateway.told is not None:
            await self.truth.has_ended(session.id)

    async def _some(self, at: int) -> Session | None:
        found = [s async for s in self.there.world.store.everyone().sessions.each()]
        left = alive(found)
        return left[at % len(left)] if left else None

    async def _change(self, session: Session, act: str) -> None:
        sessions, mine = self.there.world.sessions, (session.tenant_id, session.id)
        try:
            if act == "delete":
                await sessions.delete(*mine)
                await self.truth.has_ended(session.id)
            elif act == "pause" and not session.is_paused:
                await sessions.pause(*mine)
            elif act == "resume":
                await sessions.resume(*mine)
            elif act == "park":
                await sessions.park(*mine)
            elif act in ("vip", "default"):
                await sessions.update(*mine, tier=act)
            elif act == "short":
                await sessions.update(*mine, ttl=timedelta(seconds=1))
            elif act == "idle":
                await sessions.update(*mine, idle_after=timedelta(seconds=15))
        except Gone:
            assert session.expires_at is not None
        except NoCapacity:
            assert act == "resume"  # it takes an instance of its own

    async def _die(self, at: int, *, is_told: bool) -> None:
        owners = [instance.claim.owner for instance in self.there.host.instances.values()]
        if owners:
            await self.there.host.die(owners[at % len(owners)], is_told=is_told)
            await self._cut()

    async def _cut(self) -> None:
        """Streams of instances that are gone have ended; what was held there gets its reset."""
        there = self.there.host.instances
        for client in self.clients:
            if client.stream is not None and client.stream.instance.id not in there:
                stream, client.stream = client.stream, None
                if stream.on_end is not None:
                    await stream.on_end()
        for _, hold, _ in self.held:
            hold.set()
        await self._release()
        for gone in [each for each in self.there.host.flows if each not in there]:
            del self.there.host.flows[gone]

    async def _killed(
        self,
        several: list[tuple[int, int, bool]],
        at: int,
        act: str,
        after: int,
        away: list[tuple[int, int, bool]],
        deaths: list[int],
        is_machine: bool,
    ) -> None:
        await self._release()
        befores = [await self.truth.session(self.clients[index]) for index, _, _ in several]
        session = await self._some(at)
        self.there.life.left = after
        sent = [
            asyncio.ensure_future(self.there.gateway.send(self._request(self.clients[i], is_post=p), worker=w))
            for i, w, p in several
        ]
        acting = asyncio.ensure_future(self._act(act, session))
        answers = await asyncio.gather(*sent)
        await acting
        await self.there.kill()
        for index, worker, is_post in away:
            await self._while_away(self.clients[index], worker, is_post=is_post)
        for index in range(len(self.there.host.instances)) if is_machine else deaths:
            await self._die(0 if is_machine else index, is_told=False)
        self.there.join()
        await self.there.adopt()
        if session is not None and act == "delete":
            record = await self.there.world.store.everyone().sessions.get(session.id)
            if record.state is SessionState.ENDED:
                self.truth.ended.add(session.id)
        for (index, _, _), before, response in zip(several, befores, answers, strict=True):
            await self._after(self.clients[index], before, response, is_same=not (deaths or is_machine))

    async def _act(self, act: str, session: Session | None) -> None:
        try:
            if act == "tick":
                await self.there.world.tick()
            elif act != "nothing" and session is not None:
                await self._change(session, act)
        except (Severed, DovecoteError):
            pass

    async def _while_away(self, client: Client, worker: int, *, is_post: bool) -> None:
        before = await self.truth.session(client)
        response = await self.there.gateway.send(self._request(client, is_post=is_post), worker=worker)
        if response.instance is None:
            assert response.code == "gateway_not_ready"
        else:
            await self.truth.took(client, before, response)

    async def _after(self, client: Client, before: Session | None, response: Response, *, is_same: bool) -> None:
        """What was answered before the end holds after it, unless its instance died meanwhile."""
        if response.instance is None:
            return  # cut off, or refused a moment before
        if response.stream is not None and response.instance.id not in self.there.host.instances:
            response.stream = None
        if is_same and response.instance.id in self.there.host.instances:
            await self.truth.took(client, before, response)
        else:
            client.took(response)
