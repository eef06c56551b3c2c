"""What every kind of bucket promises. S3 is SeaweedFS on loopback, and another server too where one is given."""

import os
import threading
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from uuid import uuid4

import pytest

from dovecote.errors import Conflict, Invalid, NotFound, StorageFailed
from dovecote.host.storage.bucket import Bucket, local_bucket, open_bucket
from tests.s3 import READER, SeaweedFSServer, seaweedfs
from tests.servers import seaweedfs_server  # noqa: F401

# `s3://bucket/prefix`, or gs:// or az://; endpoint and keys come from AWS_*, GOOGLE_* or AZURE_*.
GIVEN_URL = os.environ.get("TEST_OBJECTS_URL", "")


@pytest.fixture(params=["memory", "local", "s3", *(["given"] if GIVEN_URL else [])])
def bucket(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Bucket]:
    if request.param == "memory":
        yield open_bucket("memory:")
    elif request.param == "local":
        yield open_bucket((tmp_path / "store").as_uri())
    elif request.param == "s3":
        server: SeaweedFSServer = request.getfixturevalue("seaweedfs_server")
        yield server.bucket(uuid4().hex)
    else:
        yield open_bucket(f"{GIVEN_URL.rstrip('/')}/{uuid4().hex}")


def test_put_new_creates_once(bucket: Bucket) -> None:
    """The second writer is refused, and what the first one wrote stays."""
    bucket.put_new("a/b", b"first")
    with pytest.raises(Conflict) as caught:
        bucket.put_new("a/b", b"second")
    assert caught.value.code == "exists"
    assert bucket.get("a/b") == b"first"


def test_one_of_many_writers_creates(bucket: Bucket) -> None:
    """Of eight that create the same name at the same time, exactly one does."""
    won: list[int] = []
    start = threading.Barrier(8)

    def write(number: int) -> None:
        start.wait(10)
        try:
            bucket.put_new("race", b"%d" % number)
            won.append(number)
        except Conflict:
            pass

    threads = [threading.Thread(target=write, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(won) == 1
    assert bucket.get("race") == b"%d" % won[0]


def test_put_replaces(bucket: Bucket) -> None:
    bucket.put("hint", b"one")
    bucket.put("hint", b"twenty-two")
    assert bucket.get("hint") == b"twenty-two"


def test_what_is_not_there_is_not_found(bucket: Bucket) -> None:
    for ask in (bucket.get, bucket.size, lambda name: bucket.get_range(name, 0, 1)):
        with pytest.raises(NotFound):
            ask("no/such")


def test_ranges_are_exact_or_not_found(bucket: Bucket) -> None:
    bucket.put_new("r", b"0123456789")
    assert bucket.get_range("r", 3, 4) == b"3456"
    assert bucket.get_range("r", 9, 1) == b"9"
    for start, length in ((8, 3), (10, 1), (500, 10)):
        with pytest.raises(NotFound):
            bucket.get_range("r", start, length)


def test_size_and_empty_objects(bucket: Bucket) -> None:
    bucket.put_new("empty", b"")
    bucket.put_new("three", b"abc")
    assert (bucket.size("empty"), bucket.size("three")) == (0, 3)
    assert bucket.get("empty") == b""


def test_list_is_by_folder(bucket: Bucket) -> None:
    for name in ("foo/a", "foo/b/c", "foobar/d"):
        bucket.put_new(name, name.encode())
    assert {(s.name, s.size) for s in bucket.list("foo")} == {("foo/a", 5), ("foo/b/c", 7)}
    assert list(bucket.list("nothing")) == []


def test_list_begins_behind_a_name(bucket: Bucket) -> None:
    for name in ("foo/1", "foo/3", "foo/4/c", "foobar/5"):
        bucket.put_new(name, b"")
    assert {s.name for s in bucket.list("foo", after="foo/2")} == {"foo/3", "foo/4/c"}
    assert {s.name for s in bucket.list("foo", after="foo/3")} == {"foo/4/c"}
    assert list(bucket.list("foo", after="foo/9")) == []


def test_list_of_many(bucket: Bucket) -> None:
    """More than one chunk of a listing."""
    for i in range(1100):
        bucket.put(f"many/{i}", b"x")
    assert len(list(bucket.list("many"))) == 1100


def test_delete_may_be_repeated(bucket: Bucket) -> None:
    bucket.put_new("gone", b"x")
    bucket.delete("gone")
    bucket.delete("gone")
    with pytest.raises(NotFound):
        bucket.get("gone")
    bucket.put_new("gone", b"again")


@pytest.mark.parametrize("name", ["", "/a", "a/", "a//b", "../a", "a/../b", "a b", "a#1", "é", "a\0b"])
def test_names_cannot_lead_elsewhere(bucket: Bucket, name: str) -> None:
    for act in (bucket.get, bucket.delete, lambda n: bucket.put(n, b""), lambda n: bucket.put_new(n, b"")):
        with pytest.raises(Invalid):
            act(name)


def test_probe_leaves_nothing(bucket: Bucket) -> None:
    bucket.probe()
    bucket.probe()
    assert list(bucket.list("probe")) == []


def test_identity_is_given_once(bucket: Bucket) -> None:
    first = bucket.identity()
    assert first == bucket.identity()
    assert len(first) == 32


def test_probe_refuses_a_store_that_overwrites() -> None:
    """A store that ignores the condition would let two owners write the same slot."""

    class Overwrites(Bucket):
        def put_new(self, name: str, data: bytes) -> None:
            self.put(name, data)

    plain = open_bucket("memory:")
    with pytest.raises(StorageFailed) as caught:
        Overwrites(plain._store).probe()
    assert caught.value.code == "store_not_exclusive"


def test_unreachable_store_says_so() -> None:
    """Nobody listens at that port."""
    options = {
        "endpoint": "http://127.0.0.1:9",
        "region": "us-east-1",
        "access_key_id": "k",
        "secret_access_key": "s",
        "retry_config": {"max_retries": 0, "retry_timeout": timedelta(seconds=5)},
    }
    bucket = open_bucket("s3://b/p", options=options)
    for act in (lambda: bucket.get("x"), lambda: bucket.put_new("x", b"1"), lambda: list(bucket.list("x"))):
        with pytest.raises(StorageFailed) as caught:
            act()
        assert caught.value.code == "store_unreachable"


def test_a_directory_that_went_away_is_not_an_empty_one(tmp_path: Path) -> None:
    """An unmounted store must not look like one that has lost its objects."""
    bucket = local_bucket(tmp_path / "s")
    (tmp_path / "s").rename(tmp_path / "elsewhere")
    for act in (lambda: bucket.get("x"), lambda: bucket.put_new("x", b"1")):
        with pytest.raises(StorageFailed) as caught:
            act()
        assert caught.value.code == "store_unreachable"


@pytest.mark.parametrize("url", ["", "ftp://x/y", "file:relative", "s3://", "/plain/path"])
def test_other_addresses_are_refused(url: str) -> None:
    with pytest.raises(Invalid):
        open_bucket(url)


def test_a_killed_server_is_unreachable_and_what_it_had_confirmed_is_there_after() -> None:
    """An object whose `put_new` returned survives kill -9 of the server; while it is away nothing is called absent."""
    with seaweedfs() as server:
        bucket = server.bucket("k", retry_config={"max_retries": 0, "retry_timeout": timedelta(seconds=5)})
        bucket.put_new("kept", b"first")
        server.kill()
        for act in (lambda: bucket.get("kept"), lambda: bucket.size("none"), lambda: bucket.put_new("new", b"x")):
            with pytest.raises(StorageFailed) as caught:
                act()
            assert caught.value.code == "store_unreachable"
        server.start()
        assert bucket.get("kept") == b"first"
        with pytest.raises(Conflict):
            bucket.put_new("kept", b"second")


def test_a_wrong_key_is_refused(seaweedfs_server: SeaweedFSServer) -> None:  # noqa: F811
    """Neither an absent object nor a full disk: the operator must see that it is the credentials."""
    bucket = seaweedfs_server.bucket("denied", secret_access_key="wrong")
    with pytest.raises(StorageFailed) as read:
        bucket.get("x")
    with pytest.raises(StorageFailed) as written:
        bucket.put_new("x", b"1")
    assert (read.value.code, written.value.code) == ("store_denied", "store_denied")
    assert "keys" in read.value.hint


def test_keys_that_may_only_read_are_told_from_wrong_ones(seaweedfs_server: SeaweedFSServer) -> None:  # noqa: F811
    seaweedfs_server.bucket("reader").put_new("x", b"there")
    bucket = seaweedfs_server.bucket("reader", access_key_id=READER, secret_access_key=READER)
    assert bucket.get("x") == b"there"
    with pytest.raises(StorageFailed) as caught:
        bucket.put_new("y", b"1")
    assert caught.value.code == "store_read_only"


def test_azure_without_an_account_is_invalid(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("AZURE_")]:
        monkeypatch.delenv(name)
    with pytest.raises(Invalid):
        open_bucket("az://container/prefix")


@pytest.mark.parametrize(
    ("url", "options"),
    [
        ("gs://b/p", {"base_url": "http://127.0.0.1:9", "skip_signature": True}),
        ("az://b/p", {"endpoint": "http://127.0.0.1:9", "account_name": "a", "skip_signature": True}),
    ],
)
def test_other_clouds_say_that_they_are_unreachable(url: str, options: dict[str, object]) -> None:
    """Google and Azure go through the same mapping of errors; nobody listens at that port."""
    retries = {"retry_config": {"max_retries": 0, "retry_timeout": timedelta(seconds=5)}}
    bucket = open_bucket(url, options={**options, **retries})
    with pytest.raises(StorageFailed) as caught:
        bucket.put_new("x", b"1")
    assert caught.value.code == "store_unreachable"
