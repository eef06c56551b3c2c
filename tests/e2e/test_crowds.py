"""Many first requests in one moment, through Envoy to real instances."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Iterator

import pytest

from dovecote.sdk import Dovecote, Sharing, Start
from tests.e2e.installation import Installation, running

pytestmark = [pytest.mark.e2e, pytest.mark.anyio]

BOUND = 240.0  # seconds; nothing here takes long, but the machine may have other work

# Small enough for hundreds of them. Answers who it is, one request after the other.
SERVER = r"""exec perl -MIO::Socket::INET -e '
open(my $file, "<", "/proc/sys/kernel/random/uuid") or die; my $me = <$file>; chomp $me;
my $server = IO::Socket::INET->new(LocalPort => $ENV{PORT}, Listen => 1024, ReuseAddr => 1) or die;
while (my $client = $server->accept) {
    while (defined(my $line = <$client>)) { last if $line =~ /^\r?$/ }
    print $client "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: ", length $me, "\r\n\r\n$me";
    close $client;
}'"""


@pytest.fixture(scope="module")
def own() -> Iterator[Installation]:
    with running(quiet_after=30, tick=1, start_timeout=200) as there:
        yield there


@pytest.fixture
def client(own: Installation) -> Iterator[Dovecote]:
    with own.client() as client:
        yield client


async def ask(own: Installation, function: str, key: str) -> tuple[str, str]:
    """Status and body, by a connection of its own."""
    reader, writer = await asyncio.open_connection("127.0.0.1", own.port)
    try:
        head = f"host: {function}.fn.localhost\r\nx-dovecote-key: {own.api_key}\r\nx-dovecote-session: {key}"
        writer.write(f"GET / HTTP/1.1\r\n{head}\r\nconnection: close\r\n\r\n".encode())
        answer = (await reader.read()).decode()
    finally:
        writer.close()
    return answer[9:12], answer.rpartition("\r\n")[2]


async def at_once(own: Installation, function: str, keys: list[str]) -> list[tuple[str, str]]:
    async with asyncio.timeout(BOUND):
        return list(await asyncio.gather(*[ask(own, function, key) for key in keys]))


@pytest.mark.parametrize("sharing", [Sharing(), Sharing(sessions=20)], ids=["own", "shared"])
async def test_a_thousand_first_requests_of_one_session_start_one_instance(
    own: Installation, client: Dovecote, sharing: Sharing
) -> None:
    name = f"one-{time.time_ns()}"
    client.functions.create(name, spec="nano", start=Start(SERVER, 8000), sharing=sharing)
    answers = await at_once(own, name, ["same"] * 1000)
    assert Counter(status for status, _ in answers) == {"200": 1000}
    assert len({body for _, body in answers}) == 1
    assert [session.key for session in client.sessions.list(function=name)] == ["same"]
    assert await at_once(own, name, ["same"]) == answers[:1]  # and it is the one that goes on
    client.functions.delete(name)


async def test_two_hundred_cold_sessions_all_answer_each_from_its_own_instance(
    own: Installation, client: Dovecote
) -> None:
    name = f"many-{time.time_ns()}"
    client.functions.create(name, spec="nano", start=Start(SERVER, 8000))
    keys = [f"k{number}" for number in range(200)]
    answers = await at_once(own, name, keys)
    assert Counter(status for status, _ in answers) == {"200": 200}, [
        body for status, body in answers if status != "200"
    ][:3]
    assert len({body for _, body in answers}) == 200
    assert await at_once(own, name, keys) == answers
