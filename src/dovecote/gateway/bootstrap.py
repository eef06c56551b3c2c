"""Renders Envoy's configuration. Pure: values in, dictionaries out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Network
from pathlib import Path

from dovecote.gateway.clusters import (
    ADDRESS_HEADER,
    AWAKE_CONNECT_TIMEOUT,
    HTTP,
    INTERNAL_HEADERS,
    LIMITED_HEADER,
    NOTE_HEADER,
    SESSION_HEADER,
    SPEC_HEADER,
    TYPE,
    Json,
    composite,
    header,
    local_cluster,
    original_destination,
    pipe,
    second_try,
)
from dovecote.gateway.replies import local_replies
from dovecote.gateway.routes import ATTEMPT, MOST_TRIES, UNWRITTEN, WRITTEN, held_host, read_lua, virtual_hosts
from dovecote.gateway.streams import held_log, stream_log
from dovecote.model.addresses import SERVED
from dovecote.model.naming import PREFIX_HEADER

MOST_ENTRIES = 200_000  # of one generation of one worker's cache, about 400 bytes each
MOST_CONNECTIONS = 50_000
BUFFER_BYTES = 1 << 20  # of a connection, after which its sender has to wait
STREAM_IDLE = "3600s"
CERTIFICATE = "gateway"


@dataclass(frozen=True)
class Sockets:
    """Unix sockets, all below the installation's run directory."""

    api: Path  # console and API: Python listens
    python: Path  # the wake question: Python listens
    wake: Path  # held requests: Envoy's second listener
    admin: Path  # Envoy's admin interface
    certificate: Path  # of the TLS listener and its key, a file; Envoy watches its directory
    clusters: Path  # the apps and their instances, a file; Envoy watches its directory
    streams: Path  # a FIFO: Envoy writes, Python reads


@dataclass(frozen=True)
class Front:
    """What the visible listener is."""

    bind: str
    port: int
    domain: str
    route_ttl: int  # seconds
    start_timeout: float  # seconds
    secret: str
    tls_port: int = 0
    report_every: float = 10.0  # seconds, of streams that are open
    trusted: tuple[IPv4Network, ...] = ()  # proxies whose X-Forwarded-Proto and -For are believed


def bootstrap(front: Front, sockets: Sockets) -> Json:
    """The whole static configuration. Apps come from a file that Envoy watches, see `apps.py`."""
    return {
        "node": {"id": "gateway", "cluster": "dovecote"},
        "admin": {"address": pipe(sockets.admin), "ignore_global_conn_limit": True},
        "stats_config": {"stats_matcher": {"inclusion_list": {"patterns": _counted()}}},
        "overload_manager": {
            "resource_monitors": [
                {
                    "name": "envoy.resource_monitors.global_downstream_max_connections",
                    "typed_config": {
                        "@type": TYPE + "extensions.resource_monitors.downstream_connections.v3"
                        ".DownstreamConnectionsConfig",
                        "max_active_downstream_connections": MOST_CONNECTIONS,
                    },
                }
            ]
        },
        "dynamic_resources": {
            "cds_config": {
                "path_config_source": {
                    "path": str(sockets.clusters),
                    "watched_directory": {"path": str(sockets.clusters.parent)},
                },
                "resource_api_version": "V3",
            }
        },
        "static_resources": {
            "listeners": [*_front_listeners(front, sockets), _wake_listener(front, sockets)],
            "clusters": [
                local_cluster("api", sockets.api, idle="3s"),
                local_cluster("python", sockets.python, idle="30s"),
                local_cluster("wake", sockets.wake, idle="30s"),
                # The address comes from the Lua cache, or from Python's answer. Clients cannot set either.
                *_destinations("", is_limited=False),
                *_destinations("limited_", is_limited=True),
            ],
        },
    }


def _destinations(prefix: str, *, is_limited: bool) -> list[Json]:
    """Where a remembered or an answered address is tried, and then our own listener."""
    cached, woken = f"{prefix}cached", f"{prefix}woken"
    asked = "envoy.filters.http.ext_authz"
    return [
        original_destination(cached, "dovecote", ("route", "address"), is_limited=is_limited),
        original_destination(woken, asked, (ADDRESS_HEADER,), AWAKE_CONNECT_TIMEOUT, is_limited=is_limited),
        composite(f"{prefix}sessions", cached, *["wake"] * MOST_TRIES)
        | {"typed_extension_protocol_options": second_try()},
    ]


# -- listeners


def _front_listeners(front: Front, sockets: Sockets) -> list[Json]:
    """The one port, and the same again with TLS."""
    served = ", ".join(f'["{port}"] = true' for port in SERVED)
    prelude = (
        f'local SECRET, TTL, MOST = "{front.secret}", {front.route_ttl}, {MOST_ENTRIES}\n'
        f'local DOMAIN, SERVED = "{front.domain}", {{{served}}}\n'
    )
    manager = _connection_manager(
        "front", [_lua(prelude, "routes.lua")], virtual_hosts(front.domain, front.secret), local_replies()
    )
    manager |= {
        "use_remote_address": True,
        "generate_request_id": True,
        "early_header_mutation_extensions": [_without_internal_headers()],
        "normalize_path": True,
        "request_headers_timeout": "30s",
        **_reports(stream_log(sockets.streams), front),
        "max_request_headers_kb": 64,
        # nginx speaks 1.0 to what is behind it unless told otherwise, and so do simple health checks.
        "http_protocol_options": {"accept_http_10": True, "default_host_for_http_10": front.domain},
        "http2_protocol_options": {
            "max_concurrent_streams": 256,
            "initial_stream_window_size": BUFFER_BYTES,
            "initial_connection_window_size": 4 * BUFFER_BYTES,
        },
    }
    plain = _listener("front", _socket_address(front.bind, front.port), manager)
    if front.trusted:
        plain["filter_chains"].insert(0, _trusting(front.trusted, manager))
    listeners = [plain]
    if front.tls_port:
        secure = _listener("front_tls", _socket_address(front.bind, front.tls_port), manager)
        secure["filter_chains"][0]["transport_socket"] = _tls(sockets.certificate)
        listeners.append(secure)
    return listeners


def _trusting(trusted: Sequence[IPv4Network], manager: Json) -> Json:
    """For connections from there: the nearest hop says how the request came to it, and from whom."""
    ranges = [{"address_prefix": str(each.network_address), "prefix_len": each.prefixlen} for each in trusted]
    filters = [{"name": "http", "typed_config": manager | {"xff_num_trusted_hops": 1}}]
    return {"filter_chain_match": {"source_prefix_ranges": ranges}, "filters": filters}


def _lua(prelude: str, name: str) -> Json:
    text = prelude + read_lua("affinity.lua") + read_lua(name)
    return {
        "name": "lua",
        "typed_config": {"@type": HTTP + "lua.v3.Lua", "default_source_code": {"inline_string": text}},
    }


def _socket_address(bind: str, port: int) -> Json:
    return {"socket_address": {"address": bind, "port_value": port}}


def _tls(certificate: Path) -> Json:
    watched = {"path": str(certificate), "watched_directory": {"path": str(certificate.parent)}}
    source = {"path_config_source": watched, "resource_api_version": "V3"}
    context = {
        "alpn_protocols": ["h2", "http/1.1"],
        "tls_params": {"tls_minimum_protocol_version": "TLSv1_2"},
        "tls_certificate_sds_secret_configs": [{"name": CERTIFICATE, "sds_config": source}],
    }
    kind = TYPE + "extensions.transport_sockets.tls.v3.DownstreamTlsContext"
    return {"name": "tls", "typed_config": {"@type": kind, "common_tls_context": context}}


def render_certificate(chain: str, key: str) -> Json:
    """What the watched file holds; both PEM."""
    kind = TYPE + "extensions.transport_sockets.tls.v3.Secret"
    pair = {"certificate_chain": {"inline_string": chain}, "private_key": {"inline_string": key}}
    return {"resources": [{"@type": kind, "name": CERTIFICATE, "tls_certificate": pair}]}


def _wake_listener(front: Front, sockets: Sockets) -> Json:
    """Holds a request while Python finds or starts its instance, then passes it on."""
    ask = {
        "@type": HTTP + "ext_authz.v3.ExtAuthz",
        "http_service": {
            # Python answers at start_timeout; the rest is for a Python that no longer answers.
            "server_uri": {"uri": "http://python", "cluster": "python", "timeout": f"{front.start_timeout + 5:g}s"},
            "path_prefix": "/wake",
            "authorization_response": {
                "dynamic_metadata_from_headers": {
                    "patterns": [{"exact": name} for name in (ADDRESS_HEADER, SPEC_HEADER, SESSION_HEADER)]
                },
                "allowed_upstream_headers": {"patterns": [{"exact": LIMITED_HEADER}]},
                "allowed_client_headers_on_success": {"patterns": [{"exact": NOTE_HEADER}]},
            },
        },
        "allowed_headers": {"patterns": [{"safe_regex": {"regex": ".*"}}]},
        "disallowed_headers": {
            "patterns": [
                {"exact": name, "ignore_case": True}
                for name in ("connection", "upgrade", "transfer-encoding", "te", "trailer", "expect", "keep-alive")
            ]
        },
        "clear_route_cache": True,  # takes place only where it is limited
        "status_on_error": {"code": 503},
        "failure_mode_allow": False,
    }
    notes = {"unreachable": f"{front.secret} {UNWRITTEN}", "instance_died": f"{front.secret} {WRITTEN} {ATTEMPT}"}
    filters = [{"name": "ask", "typed_config": ask}, _lua("", "taken.lua")]
    told = {code: header(NOTE_HEADER, note) for code, note in notes.items()}
    manager = _connection_manager("wake", filters, [held_host()], local_replies(told))
    manager |= {"max_request_headers_kb": 96, "generate_request_id": False, "http_protocol_options": {}}
    manager |= _reports(held_log(sockets.streams), front)
    return _listener("wake", pipe(sockets.wake), manager) | {"ignore_global_conn_limit": True}


def _listener(name: str, address: Json, manager: Json) -> Json:
    return {
        "name": name,
        "address": address,
        "per_connection_buffer_limit_bytes": BUFFER_BYTES,
        "filter_chains": [{"filters": [{"name": "http", "typed_config": manager}]}],
    }


def _connection_manager(name: str, filters: list[Json], virtual_hosts: list[Json], replies: Json) -> Json:
    router = {"@type": HTTP + "router.v3.Router", "suppress_envoy_headers": True}
    return {
        "@type": TYPE + "extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": name,
        "codec_type": "AUTO",
        "upgrade_configs": [{"upgrade_type": "websocket"}],
        "stream_idle_timeout": STREAM_IDLE,
        "common_http_protocol_options": {"idle_timeout": "300s", "max_headers_count": 200},
        "server_header_transformation": "PASS_THROUGH",
        "local_reply_config": replies,
        "route_config": {"name": name, "virtual_hosts": virtual_hosts, "ignore_port_in_host_matching": True},
        "http_filters": [*filters, {"name": "router", "typed_config": router}],
    }


def _reports(log: Json, front: Front) -> Json:
    return {"access_log": [log], "access_log_options": {"access_log_flush_interval": f"{front.report_every:g}s"}}


def _without_internal_headers() -> Json:
    """Before anything else sees the request: what a client says in headers that we alone set is not for us."""
    mutation = {
        "@type": TYPE + "extensions.http.early_header_mutation.header_mutation.v3.HeaderMutation",
        "mutations": [{"remove": name} for name in (*INTERNAL_HEADERS, PREFIX_HEADER)],
    }
    return {"name": "internal", "typed_config": mutation}


# -- pieces


def _counted() -> list[Json]:
    """Statistics that somebody reads. A cluster has a hundred more, which 10,000 apps would pay for."""
    return [
        {"prefix": "http.front."},
        {"prefix": "server."},
        {"prefix": "cluster_manager."},
        {"prefix": "listener_manager."},
        {"safe_regex": {"regex": r"cluster\..*\.upstream_(rq|cx)_(active|total)"}},
    ]
