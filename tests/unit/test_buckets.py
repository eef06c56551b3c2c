"""Buckets that may be mounted: what the operator writes, what rclone is told, who may mount what."""

from __future__ import annotations

from pathlib import Path

import pytest

from dovecote.errors import Invalid, NotFound, Unsupported
from dovecote.host.storage.volumes.buckets import Buckets, Prefix, environ_of, mount_command, parse_prefixes
from dovecote.model.volumes import Mount

pytestmark = pytest.mark.anyio


def test_prefixes_are_read_as_they_are_written() -> None:
    assert parse_prefixes("") == {}
    assert parse_prefixes("data=s3://bucket/a/b/, all=s3://other.bucket") == {
        "data": Prefix("data", "bucket", "a/b"),
        "all": Prefix("all", "other.bucket", ""),
    }


@pytest.mark.parametrize(
    "text",
    ["data", "data=gs://bucket", "Data=s3://b-1", "a=s3://bucket,a=s3://bucket", "a=s3:///x", "../a=s3://bucket"],
)
def test_what_is_no_prefix_is_refused(text: str) -> None:
    with pytest.raises(Invalid):
        parse_prefixes(text)


def test_keys_are_on_no_command_line_and_nothing_else_of_ours_is_passed_on() -> None:
    environ = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "DOVECOTE_DATABASE_URL": "x", "PATH": "/"}
    given = environ_of(environ)
    assert given["AWS_SECRET_ACCESS_KEY"] == "secret"
    assert "DOVECOTE_DATABASE_URL" not in given
    assert given["RCLONE_S3_PROVIDER"] == "AWS"
    command = mount_command("rclone", Prefix("data", "bucket", "a"), Path("/run/x"))
    assert command[:4] == ["rclone", "mount", ":s3:bucket/a", "/run/x"]
    assert "--read-only" in command
    assert not any("secret" in word for word in command)


def test_an_endpoint_of_ones_own_is_used() -> None:
    given = environ_of({"AWS_ENDPOINT": "http://store:8333"})
    assert (given["RCLONE_S3_ENDPOINT"], given["RCLONE_S3_PROVIDER"]) == ("http://store:8333", "Other")


async def test_without_rclone_the_error_says_how_to_get_it(tmp_path: Path) -> None:
    buckets = Buckets(parse_prefixes("data=s3://bucket"), tmp_path / "b", program="no-such-program", environ={})
    with pytest.raises(Unsupported) as caught:
        await buckets.open(Mount("@data", "/data", read_only=True))
    assert (caught.value.code, bool(caught.value.hint)) == ("no_rclone", True)
    with pytest.raises(NotFound):
        await buckets.open(Mount("@other", "/data", read_only=True))
    await buckets.remove()
