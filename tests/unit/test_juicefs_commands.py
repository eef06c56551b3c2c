"""The lines that run JuiceFS, and what is on none of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from dovecote.errors import Unsupported
from dovecote.host.storage.volumes.juicefs_commands import (
    Place,
    find_place,
    format_command,
    mount_command,
    quota_command,
)
from dovecote.host.storage.volumes.relay import as_root

HERE = Path("/var/lib/dovecote/juicefs")
KEYS = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_REGION": "eu-west-1"}


def find(objects_url: str = "", meta_url: str = "", **environ: str) -> Place:
    return find_place("ab12cd", objects_url=objects_url, meta_url=meta_url, directory=HERE, environ=environ)


def test_by_default_all_of_it_is_in_the_data_directory() -> None:
    place = find()
    assert (place.meta_url, place.bucket) == (f"sqlite3://{HERE}/meta.db", f"{HERE}/contents/")
    line = " ".join(format_command("juicefs", place))
    assert line == (
        f"juicefs format --quiet --storage file --bucket {HERE}/contents/ --trash-days 0 "
        f"sqlite3://{HERE}/meta.db dovecote-ab12cd"
    )


def test_it_shares_the_bucket_of_saved_files() -> None:
    assert find("file:///srv/objects").bucket == "/srv/objects/juicefs/"
    assert find("s3://bucket/prefix", **KEYS).bucket == "https://s3.eu-west-1.amazonaws.com/bucket"
    assert find("s3://b", AWS_ENDPOINT_URL="http://127.0.0.1:1/", **KEYS).bucket == "http://127.0.0.1:1/b"


def test_no_secret_is_on_a_line_or_shown() -> None:
    place = find("s3://bucket", "postgres://user:p%40ss@db:5432/jfs?sslmode=disable", **KEYS)
    lines = [
        *format_command("juicefs", place),
        *mount_command("juicefs", place, Path("/at"), Path("/cache")),
        *quota_command("juicefs", place, "vol_a", 1 << 20),
        repr(place),
        place.identity,
    ]
    assert not any("p@ss" in text or "p%40ss" in text or "secret" in text.replace("secrets", "") for text in lines)
    assert place.meta_url == "postgres://user:@db:5432/jfs?sslmode=disable"
    environ = place.environ({"PATH": "/bin", "DOVECOTE_MODEL_API_KEY": "other"})
    assert environ == {"PATH": "/bin", "META_PASSWORD": "p@ss", "ACCESS_KEY": "key", "SECRET_KEY": "secret"}


def test_another_place_or_other_keys_are_another_mount() -> None:
    identities = {find().identity, find("file:///x").identity, find("s3://b", **KEYS).identity}
    identities.add(find("s3://b", **{**KEYS, "AWS_SECRET_ACCESS_KEY": "new"}).identity)
    assert len(identities) == 4


def test_hosts_with_one_database_share_one_whatever_each_is_called() -> None:
    def name(installation: str, url: str) -> str:
        return find_place(installation, objects_url="s3://b", meta_url=url, directory=HERE, environ=KEYS).name

    one = name("aaaaaa", "postgresql://u:one@db/jfs")
    assert one == name("bbbbbb", "postgres://u:another@db/jfs")
    assert one != name("aaaaaa", "postgres://u:one@db/other")
    assert name("aaaaaa", "") == "dovecote-aaaaaa"


def test_a_bucket_that_was_not_tried_is_refused() -> None:
    with pytest.raises(Unsupported, match="gs://"):
        find("gs://bucket")


def test_limits_are_told_to_the_kibibyte() -> None:
    line = " ".join(quota_command("juicefs", find(), "vol_a", 5 << 20))
    assert line == f"juicefs quota set --quiet --strict --path /vol_a --capacity 5120K sqlite3://{HERE}/meta.db"


def test_a_request_without_a_user_is_roots_and_one_with_a_user_is_his() -> None:
    def request(uid: int, gid: int) -> bytearray:
        made = bytearray(48)
        made[24:32] = uid.to_bytes(4, "little") + gid.to_bytes(4, "little")
        return made

    assert as_root(request(0xFFFFFFFF, 0xFFFFFFFF)) == request(0, 0)
    assert as_root(request(1000, 1001)) == request(1000, 1001)
    assert as_root(request(0xFFFFFFFF, 1)) == request(0xFFFFFFFF, 1)
