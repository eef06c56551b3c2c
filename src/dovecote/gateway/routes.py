"""Renders Envoy's routes: which address goes where, what is taken off on the way, and what is tried again. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files

from dovecote.gateway.clusters import (
    HTTP,
    INTERNAL_HEADERS,
    INVOKE_HEADER,
    KEY_HEADER,
    LIMITED_HEADER,
    NOTE_HEADER,
    TYPE,
    USER_HEADER,
    Json,
    header,
)
from dovecote.model.addresses import SERVED

# How often a request for a function may find its instance full, or gone, before it is refused.
MOST_TRIES = 9
# What the wake listener notes of a request that came to nothing: whether some of it may have reached an instance.
UNWRITTEN, WRITTEN, ATTEMPT = "retry", "died", "%REQ(X-ENVOY-ATTEMPT-COUNT)%"
# Attempts after which a request is sent again though it was written: one that kills its instance kills few.
REPEATED_AFTER = (1, 2)
# What a retry may repeat. More than a connection's buffer, so that a held request keeps its body however long that is.
REPLAY_BYTES = 4 << 20


def virtual_hosts(domain: str, secret: str) -> list[Json]:
    """Of the front listener."""
    # The name of a sandbox is the right to reach it: links in its pages must not tell it to other sites.
    referrer = [header("referrer-policy", "same-origin", "ADD_IF_ABSENT")]
    box, app = {"cluster": "sessions"}, {"inline_cluster_specifier_plugin": _app_cluster()}
    return [
        _virtual_host("box", domain, [_served_route(), *_held_routes("box", box, secret)], referrer),
        _virtual_host("fn", domain, [_invoked_route(), *_function_routes(secret)]),
        _virtual_host("app", domain, _held_routes("app", app, secret)),
        {
            "name": "api",
            # The second name is the API's in E2B's way of naming; it looks like a sandbox's, and goes first.
            "domains": ["*", f"api.box.{domain}"],
            "routes": [_api_route()],
        },
    ]


def held_host() -> Json:
    """Of the wake listener: Python has answered, and its answer says which of the two ways."""
    limited = {"prefix": "/", "headers": [_present(LIMITED_HEADER)]}
    return {
        "name": "all",
        "domains": ["*"],
        "routes": [
            {"match": limited, "route": {"cluster": "limited_woken", "timeout": "0s"}},
            {"match": {"prefix": "/"}, "route": {"cluster": "woken", "timeout": "0s"}},
        ],
        "request_headers_to_remove": list(INTERNAL_HEADERS),
    }


def _virtual_host(kind: str, domain: str, routes: list[Json], added: Sequence[Json] = ()) -> Json:
    return {
        "name": kind,
        "domains": [f"*.{kind}.{domain}"],
        "routes": routes,
        "request_body_buffer_limit": str(REPLAY_BYTES),
        "include_request_attempt_count": True,
        "request_headers_to_remove": [
            LIMITED_HEADER,
            "x-forwarded-host",
            "x-forwarded-port",
            "x-envoy-external-address",
        ],
        "response_headers_to_remove": ["x-envoy-upstream-service-time"],
        "response_headers_to_add": list(added),
    }


def _function_routes(secret: str) -> list[Json]:
    """A function with a limit is asked about by a connection for each request; Lua says that it is one."""
    limited, others = {"cluster": "limited_sessions"}, {"cluster": "sessions"}
    is_limited = [_present(LIMITED_HEADER)]
    return [
        *_held_routes("fn", limited, secret, tries=MOST_TRIES, matching=is_limited),
        *_held_routes("fn", others, secret, tries=MOST_TRIES),
    ]


def _held_routes(kind: str, action: Json, secret: str, *, tries: int = 2, matching: Sequence[Json] = ()) -> list[Json]:
    """A request that may be repeated is sent again even after it was written; any other only when it was not."""
    unwritten = "connect-failure,refused-stream,reset-before-request,retriable-headers"
    # Only callers of functions show a key; where none is asked for, anybody may say to be anyone.
    unvouched = [KEY_HEADER] if kind == "fn" else [KEY_HEADER, USER_HEADER]
    safe = {"name": ":method", "string_match": {"safe_regex": {"regex": "GET|HEAD|OPTIONS"}}}

    def route(headers: list[Json], *, is_repeatable: bool) -> Json:
        died = [f"{WRITTEN} {attempt}" for attempt in REPEATED_AFTER] if is_repeatable else []
        policy = {
            "retry_on": f"{unwritten},reset" if is_repeatable else unwritten,
            "retriable_headers": [
                {"name": NOTE_HEADER, "string_match": {"exact": f"{secret} {note}"}} for note in (UNWRITTEN, *died)
            ],
            "num_retries": tries,
            "retry_back_off": {"base_interval": "0.002s", "max_interval": "0.02s"},
        }
        return {
            "match": {"prefix": "/", "headers": [*matching, *headers]},
            "route": {**action, "timeout": "0s", "retry_policy": policy},
            "request_headers_to_remove": unvouched,
            "metadata": {"filter_metadata": {"lua": {"kind": kind}}},
        }

    keyed = _present("idempotency-key")
    return [
        route([safe], is_repeatable=True),
        route([keyed], is_repeatable=True),
        route([], is_repeatable=False),
    ]


def _present(name: str) -> Json:
    return {"name": name, "present_match": True}


def _invoked_route() -> Json:
    """Calls that nobody waits for: the API keeps them, and makes them later, or says what is wrong with them."""
    return _without_lua(_api_route()) | {"match": {"prefix": "/", "headers": [_present(INVOKE_HEADER)]}}


def _served_route() -> Json:
    """Ports of a sandbox that the API answers itself."""
    ports = {"safe_regex": {"regex": f"({'|'.join(map(str, SERVED))})-.*"}}
    return _without_lua(_api_route()) | {
        "match": {"prefix": "/", "headers": [{"name": ":authority", "string_match": ports}]}
    }


def _without_lua(route: Json) -> Json:
    disabled = {"@type": HTTP + "lua.v3.LuaPerRoute", "disabled": True}
    return route | {"typed_per_filter_config": {"lua": disabled}}


def _api_route() -> Json:
    policy = {
        "retry_on": "connect-failure,reset-before-request",
        "num_retries": 4,
        "retry_back_off": {"base_interval": "0.1s", "max_interval": "1s"},
    }
    return {
        "match": {"prefix": "/"},
        "route": {"cluster": "api", "timeout": "0s", "retry_policy": policy},
        "metadata": {"filter_metadata": {"lua": {"kind": "api"}}},
    }


def _app_cluster() -> Json:
    return {
        "extension": {
            "name": "apps",
            "typed_config": {
                "@type": TYPE + "extensions.router.cluster_specifiers.lua.v3.LuaConfig",
                "source_code": {"inline_string": read_lua("apps.lua")},
                "default_cluster": "sessions",
            },
        }
    }


def read_lua(name: str) -> str:
    return (files("dovecote.gateway") / name).read_text()
