"""Decisions, names and command lines of mounts, disks and templates; nothing here needs root."""

from __future__ import annotations

import errno
import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dovecote.errors import Invalid, StorageFailed, Unsupported
from dovecote.host.storage import mounts, pool, template_base, templates

GIB = 1 << 30


@pytest.mark.parametrize(
    ("number", "kind", "code"),
    [
        (errno.ENOSYS, Unsupported, "kernel_feature"),
        (errno.ENODEV, Unsupported, "kernel_feature"),
        (errno.EDQUOT, StorageFailed, "disk_full"),
        (errno.ENOSPC, StorageFailed, "disk_full"),
        (errno.EPERM, StorageFailed, "mount_failed"),
    ],
)
def test_an_error_of_the_kernel_is_named(number: int, kind: type[Exception], code: str) -> None:
    error = mounts.failure("mounting x", number)
    assert isinstance(error, kind)
    assert error.code == code
    assert errno.errorcode[number] in error.message


def test_mount_points_are_listed_deepest_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the kernel's octal escapes undone, and without neighbours whose names begin alike."""
    lines = ["/a", "/a/b", "/a/b/c\\040d", "/ab"]
    table = "".join(f"1 2 0:1 / {point} rw - tmpfs source{n} rw\n" for n, point in enumerate(lines))
    monkeypatch.setattr(Path, "read_bytes", lambda path: table.encode())
    assert mounts.mounted_below(Path("/a")) == [Path("/a/b/c d"), Path("/a/b")]
    assert mounts.source_of(Path("/a/b")) == "source1"
    assert mounts.source_of(Path("/a/c")) is None


@pytest.mark.parametrize(("release", "can"), [("6.14.9", False), ("6.15", True), ("7.0-rc1", True), ("5.99", False)])
def test_old_kernels_need_attached_layers(release: str, can: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.uname", lambda: type("Uname", (), {"release": release}))
    assert mounts.can_stack_detached() is can


def test_the_pool_is_as_big_as_asked_where_there_is_room() -> None:
    assert pool.pool_bytes(64 * GIB, 100 * GIB) == 64 * GIB
    assert pool.pool_bytes(64 * GIB, 10 * GIB) == 10 * GIB
    with pytest.raises(StorageFailed) as caught:
        pool.pool_bytes(64 * GIB, 1 << 20)
    assert caught.value.code == "disk_full"


def test_the_format_command() -> None:
    command = " ".join(pool.format_command(Path("/data/pool")))
    assert command == "mkfs.btrfs --quiet --metadata single --label dovecote-pool /data/pool"


@given(st.text(max_size=200))
def test_a_disk_name_is_one_plain_file_name(name: str) -> None:
    try:
        pool._check_name(name)
    except Invalid:
        return
    assert Path("/pool", name).parent == Path("/pool")
    assert Path("/pool", name).name == name
    assert not name.startswith(".")


def test_the_bootstrap_command() -> None:
    command = templates.bootstrap_command(Path("/r"), Path("/c"), Path("/sources"))
    assert command[:4] == ["mmdebstrap", "--mode=root", "--variant=minbase", "--format=directory"]
    assert command[-3:] == [template_base.SUITE, "/r", "/sources"]
    assert "--customize-hook=sync-in /c /usr/local/share/ca-certificates" in command
    assert templates.bootstrap_command(Path("/r"), Path("/c"), None)[-1] == "/r"


def test_another_recipe_or_authority_is_another_template(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = templates.recipe_digest({})
    assert templates.recipe_digest({}) == plain
    assert templates.recipe_digest({"a.crt": b"one"}) != plain
    assert templates.recipe_digest({"a.crt": b"one"}) != templates.recipe_digest({"a.crt": b"two"})
    monkeypatch.setattr(template_base, "PACKAGES", ("bash",))
    assert templates.recipe_digest({}) != plain


@pytest.mark.parametrize(
    ("text", "used"),
    [
        ("deb http://mirror.test/debian bookworm main\n", True),
        ("Types: deb\nURIs: https://mirror.test/debian\nSuites: bookworm\n", True),
        ("deb http://user:secret@mirror.test/debian bookworm main\n", False),
        ("deb cdrom:/disc bookworm main\n", False),
        ("# deb http://mirror.test/debian bookworm main\n", False),
    ],
)
def test_the_hosts_mirror_is_used_unless_it_has_a_password(
    text: str, used: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "sources"
    path.write_text(text)
    monkeypatch.setattr(templates, "HOST_SOURCES", (path,))
    release = {"ID": "debian", "VERSION_CODENAME": template_base.SUITE}
    monkeypatch.setattr("platform.freedesktop_os_release", lambda: release)
    assert templates.host_mirror() == (path if used else None)
    monkeypatch.setitem(release, "ID", "ubuntu")
    assert templates.host_mirror() is None


def test_the_docs_name_everything_in_the_template() -> None:
    text = Path("docs/reference/base-template.md").read_text()
    for name in (*template_base.PACKAGES, *template_base.ENV):
        assert f"`{name}`" in text, name


def test_an_act_that_does_not_end_is_killed() -> None:
    """And the helper goes on with the next one."""
    hanging = (
        "import socket, sys, time\nfrom dovecote.host.storage import inside\n"
        "inside.attach = lambda *_: time.sleep(600)\n"
        "inside.swap_root = lambda *_: None\n"
        "inside.serve(socket.socket(fileno=int(sys.argv[1])))\n"
    )
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.settimeout(30)
    with subprocess.Popen([sys.executable, "-c", hanging, str(theirs.fileno())], pass_fds=[theirs.fileno()]) as helper:
        theirs.close()
        try:
            for number, act in enumerate(("attach", "swap_root")):
                request = {"act": act, "path": "/x", "owner": None, "id_base": 0, "run_bytes": 0}
                message = json.dumps({**request, "number": number, "timeout": 0.2})
                socket.send_fds(ours, [message.encode()], [0, 0])
            replies = [json.loads(ours.recv(4096)) for _ in range(2)]
            assert replies == [{"number": 1}, {"number": 0, "timeout": True}]
            ours.close()
            assert helper.wait(30) == 0
        finally:
            helper.kill()
