"""Renders Envoy's clusters: who may be asked, and in which order. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

Json = dict[str, Any]

KEY_HEADER = "x-dovecote-key"
USER_HEADER = "x-dovecote-user"
INVOKE_HEADER = "x-dovecote-invoke"
NOTE_HEADER = "x-gw-wake"  # from the wake listener to the front one, never further
ASK_HEADER = "x-gw-ask"
FAILED_HEADER = "x-gw-failed"
ADDRESS_HEADER = "x-gw-dst"
LIMITED_HEADER = "x-gw-limited"
SPEC_HEADER = "x-gw-spec"
SESSION_HEADER = "x-gw-session"
INTERNAL_HEADERS = (
    *(NOTE_HEADER, ASK_HEADER, FAILED_HEADER, ADDRESS_HEADER),
    *(LIMITED_HEADER, SPEC_HEADER, SESSION_HEADER),
)

# Shorter than any quiet window: an instance is frozen only when no pooled connection is left.
UPSTREAM_IDLE = "1s"
# A dead address is refused at once by its host. What takes time is a server that accepts slowly: its queue is full, and
# the kernel tries again after one and after three seconds. A remembered address gets the first of these tries.
CONNECT_TIMEOUT = "1.5s"
AWAKE_CONNECT_TIMEOUT = "8s"

TYPE = "type.googleapis.com/envoy."
HTTP = TYPE + "extensions.filters.http."
_SKIP = TYPE + "extensions.filters.common.matcher.action.v3.SkipFilter"
_UNBOUNDED: Json = {
    "thresholds": [
        {"max_connections": 100_000, "max_pending_requests": 100_000, "max_requests": 100_000, "max_retries": 10_000}
    ]
}


def composite(name: str, *parts: str) -> Json:
    """Attempt n of a request goes to part n, or to the next one that has somebody."""
    return {
        "name": name,
        "connect_timeout": CONNECT_TIMEOUT,
        "lb_policy": "CLUSTER_PROVIDED",
        "circuit_breakers": _UNBOUNDED,
        "cluster_type": {
            "name": "envoy.clusters.composite",
            "typed_config": {
                "@type": TYPE + "extensions.clusters.composite.v3.ClusterConfig",
                "clusters": [{"name": part} for part in parts],
            },
        },
    }


def instances_cluster(name: str, addresses: Sequence[tuple[str, int]]) -> Json:
    """Instances of one app; the one with the fewest requests in flight is next."""
    endpoints = [
        {"endpoint": {"address": {"socket_address": {"address": ip, "port_value": port}}}} for ip, port in addresses
    ]
    least_request = {
        "@type": TYPE + "extensions.load_balancing_policies.least_request.v3.LeastRequest",
        "selection_method": "FULL_SCAN",
    }
    policy = {"name": "envoy.load_balancing_policies.least_request", "typed_config": least_request}
    return {
        "name": name,
        "type": "STATIC",
        "connect_timeout": CONNECT_TIMEOUT,
        "circuit_breakers": _UNBOUNDED,
        "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": endpoints}] if endpoints else []},
        "load_balancing_policy": {"policies": [{"typed_extension_config": policy}]},
        "typed_extension_protocol_options": _protocol(UPSTREAM_IDLE),
    }


def original_destination(
    name: str, namespace: str, path: Sequence[str], connect_timeout: str = CONNECT_TIMEOUT, *, is_limited: bool = False
) -> Json:
    """With `is_limited` a connection carries one request: an instance that counts connections counts requests then."""
    return {
        "name": name,
        "type": "ORIGINAL_DST",
        "lb_policy": "CLUSTER_PROVIDED",
        "connect_timeout": connect_timeout,
        "cleanup_interval": "30s",
        "circuit_breakers": _UNBOUNDED,
        "original_dst_lb_config": {"metadata_key": {"key": namespace, "path": [{"key": key} for key in path]}},
        "typed_extension_protocol_options": _protocol(UPSTREAM_IDLE, requests=1 if is_limited else 0),
    }


def second_try() -> Json:
    """A remembered address did not answer, so the request goes to our own listener, and only there with its credential.

    It could not carry it before: headers are the same for all attempts, and the first one goes to the instance.
    """
    added = [
        {"append": header(ASK_HEADER, "%DYNAMIC_METADATA(dovecote:route:ask)%", "ADD_IF_ABSENT")},
        {"append": header(FAILED_HEADER, "%DYNAMIC_METADATA(dovecote:route:address)%")},
    ]
    mutation = {"@type": HTTP + "header_mutation.v3.HeaderMutation", "mutations": {"request_mutations": added}}
    first = {"exact_match_map": {"map": {"1": {"action": {"name": "skip", "typed_config": {"@type": _SKIP}}}}}}
    attempt = {"@type": "type.googleapis.com/envoy.type.matcher.v3.HttpRequestHeaderMatchInput"}
    attempt["header_name"] = "x-envoy-attempt-count"
    delegate = {
        "@type": TYPE + "extensions.common.matching.v3.ExtensionWithMatcher",
        "xds_matcher": {"matcher_tree": {"input": {"name": "attempt", "typed_config": attempt}, **first}},
        "extension_config": {"name": "ask", "typed_config": mutation},
    }
    codec = {"@type": HTTP + "upstream_codec.v3.UpstreamCodec"}
    return _protocol("30s", [{"name": "second", "typed_config": delegate}, {"name": "codec", "typed_config": codec}])


def local_cluster(name: str, socket: Path, *, idle: str) -> Json:
    return {
        "name": name,
        "type": "STATIC",
        "connect_timeout": "1s",
        "circuit_breakers": _UNBOUNDED,
        "load_assignment": {
            "cluster_name": name,
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": pipe(socket)}}]}],
        },
        "typed_extension_protocol_options": _protocol(idle),
    }


def _protocol(idle: str, filters: list[Json] | None = None, requests: int = 0) -> Json:
    """`requests` is how many a connection carries; 0 for any number."""
    common: Json = {"idle_timeout": idle}
    if requests:
        common["max_requests_per_connection"] = requests
    options: Json = {
        "@type": TYPE + "extensions.upstreams.http.v3.HttpProtocolOptions",
        "common_http_protocol_options": common,
        "explicit_http_config": {"http_protocol_options": {}},
    }
    if filters:
        options["http_filters"] = filters
    return {"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": options}


def header(name: str, value: str, action: str = "OVERWRITE_IF_EXISTS_OR_ADD") -> Json:
    return {"header": {"key": name, "value": value}, "append_action": action}


def pipe(path: Path) -> Json:
    return {"pipe": {"path": str(path), "mode": 0o600}}
