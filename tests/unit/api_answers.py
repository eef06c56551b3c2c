"""Answers of the API, looked at as a client does."""

from __future__ import annotations

import httpx


async def opened(http: httpx.AsyncClient, **fields: object) -> str:
    answer = await http.post("/v1/sessions", json=fields)
    assert answer.status_code == 201, answer.text
    return str(answer.json()["id"])


def problem(answer: httpx.Response) -> tuple[int, str]:
    """Status and code of an error, after a look at its shape."""
    body = answer.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"code", "message", "hint", "request_id"}
    assert body["error"]["request_id"].startswith("req_")
    assert answer.headers["x-request-id"] == body["error"]["request_id"]
    return answer.status_code, body["error"]["code"]
