"""Collections of the API: sessions, apps, functions, chats, keys."""

# Generated from _async/resources.py by `python -m dovecote.sdk.generate`; change that and run it.

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from dovecote.sdk._activity import HookRun, Tier
from dovecote.sdk._reading import read
from dovecote.sdk._shapes import App, AppInstance, Chat, Key, Mount, Network, SessionView, Start, Turn, User
from dovecote.sdk._sync.sessions import Session
from dovecote.sdk._sync.transport import Wire


def pages(wire: Wire, path: str, params: Mapping[str, Any]) -> Iterator[Any]:
    after: str | None = None
    while True:
        page = wire.call("GET", path, params={**params, "after": after})
        yield from page["items"]
        after = page["next"]
        if after is None:
            return


def start_body(start: Start | None) -> dict[str, Any] | None:
    if start is None:
        return None
    return asdict(start)


def given(**fields: Any) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}


class Sessions:
    def __init__(self, wire: Wire) -> None:
        self._wire = wire

    def create(
        self,
        *,
        function: str = "sandbox",
        key: str | None = None,
        user: str | None = None,
        tier: str | None = None,
        idle_after: float | None = None,
        quiet_after: float | None = None,
        ttl: float | None = None,
        timeout: float | None = None,
        at_timeout: str | None = None,
        park: str | None = None,
        resumes_on_use: bool = True,
        env: Mapping[str, str] | None = None,
        metadata: Mapping[str, str] | None = None,
        mounts: Sequence[Mount] = (),
        template: str | None = None,
        spec: str | None = None,
        level: str | None = None,
        network: Network | None = None,
        snapshot: str | None = None,
        wake: bool = True,
    ) -> Session:
        """Opens a session. `key` is your own name for it; times are in seconds. Raises Conflict (exists).

        `template`, `spec` and `level` are for sandboxes. `snapshot` is the id of one, with whose files it begins.
        `at_timeout` is `end`, `pause` or `park` (files only): what happens when `timeout` has passed.
        `park` is `files` or `memory`: what is kept when nobody uses it.
        """
        body = given(
            function=function,
            key=key,
            user=user,
            tier=tier,
            idle_after_seconds=idle_after,
            quiet_after_seconds=quiet_after,
            ttl_seconds=ttl,
            timeout_seconds=timeout,
            at_timeout=at_timeout,
            park=park,
            resumes_on_use=resumes_on_use,
            metadata=dict(metadata or {}),
            template=template,
            spec=spec,
            level=level,
            network=asdict(network) if network else None,
            snapshot=snapshot,
            env=dict(env or {}),
            mounts=[asdict(mount) for mount in mounts],
            wake=wake,
        )
        return Session(self._wire, read(SessionView, self._wire.call("POST", "/v1/sessions", json=body)))

    def get(self, session_id: str) -> Session:
        return Session(self._wire, read(SessionView, self._wire.call("GET", f"/v1/sessions/{session_id}")))

    def list(
        self,
        *,
        function: str | None = None,
        user: str | None = None,
        state: str | Sequence[str] | None = None,
        metadata: Mapping[str, str] | None = None,
        is_paused: bool | None = None,
    ) -> list[Session]:
        """All that match; `state` may be several. Ended ones only when asked for."""
        params = {
            "function": function,
            "user": user,
            "state": state,
            "metadata": [f"{name}:{text}" for name, text in (metadata or {}).items()],
            "is_paused": is_paused,
        }
        return [Session(self._wire, read(SessionView, each)) for each in pages(self._wire, "/v1/sessions", params)]


class Apps:
    def __init__(self, wire: Wire) -> None:
        self._wire = wire

    def publish(
        self,
        session: Session | str,
        *,
        name: str | None = None,
        start: Start | None = None,
        minimum: int | None = None,
        maximum: int | None = None,
        target_concurrency: int | None = None,
        idle_after: float | None = None,
    ) -> App:
        """Turns a session's project into an app. The same name again is a new revision, without downtime.

        What is left out is 0, 5, 10 and 60 seconds for a new app, and stays as it is for one that is there.
        """
        body = {
            "session_id": session if isinstance(session, str) else session.id,
            "name": name,
            "start": start_body(start),
            "minimum": minimum,
            "maximum": maximum,
            "target_concurrency": target_concurrency,
            "idle_after_seconds": idle_after,
        }
        return read(App, self._wire.call("POST", "/v1/apps", json=body))

    def get(self, name: str) -> App:
        return read(App, self._wire.call("GET", f"/v1/apps/{name}"))

    def update(
        self,
        name: str,
        *,
        minimum: int | None = None,
        maximum: int | None = None,
        target_concurrency: int | None = None,
        idle_after: float | None = None,
    ) -> App:
        body = given(
            minimum=minimum,
            maximum=maximum,
            target_concurrency=target_concurrency,
            idle_after_seconds=idle_after,
        )
        return read(App, self._wire.call("PATCH", f"/v1/apps/{name}", json=body))

    def unpublish(self, name: str) -> None:
        self._wire.call("DELETE", f"/v1/apps/{name}")

    def instances(self, name: str) -> list[AppInstance]:
        page = self._wire.call("GET", f"/v1/apps/{name}/instances")
        return [read(AppInstance, each) for each in page["items"]]

    def hooks(self, name: str) -> list[HookRun]:
        """Of each hook the last success and the last failure in one of its instances, since the server began."""
        page = self._wire.call("GET", f"/v1/apps/{name}/hooks")
        return [read(HookRun, each) for each in page["items"]]

    def list(self) -> list[App]:
        return [read(App, each) for each in pages(self._wire, "/v1/apps", {})]


class Chats:
    def __init__(self, wire: Wire) -> None:
        self._wire = wire

    def create(self, session: Session | str, *, user: str = "default", title: str = "") -> Chat:
        body = {"session_id": session if isinstance(session, str) else session.id, "user": user, "title": title}
        return read(Chat, self._wire.call("POST", "/v1/chats", json=body))

    def get(self, chat_id: str) -> Chat:
        return read(Chat, self._wire.call("GET", f"/v1/chats/{chat_id}"))

    def add_turn(self, chat_id: str, messages: Sequence[Mapping[str, Any]]) -> Turn:
        body = {"messages": [dict(message) for message in messages]}
        return read(Turn, self._wire.call("POST", f"/v1/chats/{chat_id}/turns", json=body))

    def rewind(self, chat_id: str, turn: int) -> Turn:
        """Back to the end of that turn, files and messages; what runs in the session ends."""
        return read(Turn, self._wire.call("POST", f"/v1/chats/{chat_id}:rewind", json={"turn": turn}))

    def fork(self, chat_id: str, turn: int, *, key: str | None = None, wake: bool = True) -> Chat:
        """A new chat on a new session, as they were at the end of that turn; this one stays as it is."""
        body = {"turn": turn, "key": key, "wake": wake}
        return read(Chat, self._wire.call("POST", f"/v1/chats/{chat_id}:fork", json=body))

    def turns(self, chat_id: str, *, rewound: bool = False) -> list[Turn]:
        """In order. `rewound` also gives those that the chat went back to before of."""
        path, params = f"/v1/chats/{chat_id}/turns", {"rewound": "true" if rewound else None}
        found = [read(Turn, each) for each in pages(self._wire, path, params)]
        return sorted(found, key=lambda turn: turn.number)

    def list(self, *, user: str | None = None) -> list[Chat]:
        return [read(Chat, each) for each in pages(self._wire, "/v1/chats", {"user": user})]


class Keys:
    def __init__(self, wire: Wire) -> None:
        self._wire = wire

    def create(self, name: str) -> Key:
        """The answer is the only one that has the `secret`."""
        return read(Key, self._wire.call("POST", "/v1/keys", json={"name": name}))

    def list(self) -> list[Key]:
        return [read(Key, each) for each in (self._wire.call("GET", "/v1/keys"))["items"]]

    def revoke(self, key_id: str) -> None:
        self._wire.call("DELETE", f"/v1/keys/{key_id}")


class Users:
    def __init__(self, wire: Wire) -> None:
        self._wire = wire

    def get(self, name: str) -> User:
        return read(User, self._wire.call("GET", f"/v1/users/{name}"))

    def tiers(self) -> list[Tier]:
        return [read(Tier, each) for each in (self._wire.call("GET", "/v1/tiers"))["items"]]

    def list(self) -> list[User]:
        return [read(User, each) for each in pages(self._wire, "/v1/users", {})]

    def set_tier(self, name: str, tier: str) -> User:
        """Effective at once, for sessions too; those that have another tier than the user had keep theirs."""
        return read(User, self._wire.call("PUT", f"/v1/users/{name}", json={"tier": tier}))
