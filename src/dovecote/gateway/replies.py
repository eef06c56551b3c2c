"""Errors that Envoy makes itself, in the one JSON shape of errors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dovecote.gateway.clusters import Json, header


@dataclass(frozen=True)
class Reply:
    """`flags` are Envoy's response flags, `was` the status it would send; what is None matches anything."""

    code: str
    status: int
    message: str
    hint: str
    flags: tuple[str, ...] | None = None
    was: int | None = None


REPLIES = (
    Reply(
        "gateway_not_ready",
        503,
        "the gateway cannot ask where this request belongs",
        "Dovecote is starting or has stopped: try again in a few seconds",
        flags=("UAEX",),
        was=503,
    ),
    Reply(
        "unreachable",
        503,
        "nothing answers at this address",
        "try again in a few seconds; nothing of the request was carried out",
        flags=("UF", "UH", "NC"),
    ),
    Reply(
        "instance_died",
        502,
        "the instance ended before it answered",
        "it may have done its work: only safe methods, and requests with an idempotency-key, are repeated for you",
        flags=("UC", "UR", "LR", "UPE"),
    ),
    Reply("upstream_timeout", 504, "the instance did not answer in time", "try again later", flags=("UT", "UMSDR")),
    Reply("idle_timeout", 504, "nothing was sent for too long", "send something once an hour", flags=("SI",)),
    Reply("too_many", 503, "too many requests at once", "try again in a few seconds", flags=("UO", "OM")),
    Reply("too_large", 413, "the body of the request is too large", "send it in smaller parts", was=413),
    Reply("headers_too_large", 431, "the headers are too large", "64 kB and 200 fields at most", was=431),
    Reply("no_such_address", 404, "nothing is at this address", "check the name and the path", flags=("NR",)),
    Reply("request_timeout", 408, "the request did not arrive in time", "send its headers within 30 seconds", was=408),
    Reply("bad_request", 400, "this is not a valid HTTP request", "check the request line and the headers", was=400),
)


def local_replies(added: Mapping[str, Json] | None = None) -> Json:
    """`added` is a header for each code of a reply that somebody else is to understand."""
    return {
        "mappers": [
            _mapper(reply, [(added or {})[reply.code]] if reply.code in (added or {}) else []) for reply in REPLIES
        ]
    }


def _mapper(reply: Reply, headers: Sequence[Json]) -> Json:
    wanted: list[Json] = []
    if reply.flags is not None:
        wanted.append({"response_flag_filter": {"flags": list(reply.flags)}})
    if reply.was is not None:
        status = {"op": "EQ", "value": {"default_value": reply.was, "runtime_key": "dovecote.none"}}
        wanted.append({"status_code_filter": {"comparison": status}})
    request_id = header("x-request-id", "%REQ(X-REQUEST-ID)%")
    fields = {"code": reply.code, "message": reply.message, "hint": reply.hint, "request_id": "%REQ(X-REQUEST-ID)%"}
    return {
        "filter": wanted[0] if len(wanted) == 1 else {"and_filter": {"filters": wanted}},
        "status_code": reply.status,
        "headers_to_add": [request_id, *headers],
        "body_format_override": {"json_format": {"error": fields}},
    }
