"""Trees of images get what sandboxes need, and say what they are like inside."""

from __future__ import annotations

import pytest
from blake3 import blake3

from dovecote.errors import Invalid
from dovecote.host.storage.furnish import furnished, inside_of
from dovecote.host.storage.manifest import Entry, Kind
from dovecote.model.trees import Inside

PASSWD = b"root:x:0:0::/root:/bin/sh\nweb:x:33:33::/srv/web:/bin/sh\nlost:x:34:34::/nonexistent:/bin/sh\nbroken\n"


class Contents(dict[bytes, bytes]):
    def keep(self, content: bytes) -> bytes:
        digest = blake3(content).digest()
        self[digest] = content
        return digest


def tree(*entries: Entry) -> list[Entry]:
    return [Entry(b"", Kind.DIR, 0o755), *entries]


def with_accounts(contents: Contents, *more: Entry) -> list[Entry]:
    passwd = Entry(b"etc/passwd", Kind.FILE, 0o644, size=len(PASSWD), digest=contents.keep(PASSWD))
    homes = [Entry(path, Kind.DIR, 0o755) for path in (b"etc", b"root", b"srv", b"srv/web")]
    return tree(*homes, passwd, *more)


def inside(entries: list[Entry], contents: Contents, user: str = "", directory: str = "/") -> Inside:
    return inside_of(entries, contents.__getitem__, user=user, directory=directory, env={"A": "1"})


@pytest.mark.parametrize(
    ("user", "name", "home"),
    [
        ("", "root", "/root"),
        ("web", "web", "/srv/web"),
        ("web:0", "web:0", "/srv/web"),
        ("33", "33", "/srv/web"),
        ("4711:12", "4711:12", "/"),
        ("lost", "lost", "/"),  # its home is not there
    ],
)
def test_commands_run_as_the_images_user_in_its_home(user: str, name: str, home: str) -> None:
    contents = Contents()
    found = inside(with_accounts(contents), contents, user)
    assert (found.user, found.home, found.cwd, found.env) == (name, home, home, {"A": "1"})


def test_commands_start_in_the_images_directory() -> None:
    contents = Contents()
    assert inside(with_accounts(contents), contents, "web", "/app//x/../y").cwd == "/app/y"


@pytest.mark.parametrize("user", ["nobody-here", "a b", "web:", ":0", "web:0:1", "x" * 65])
def test_a_user_whom_the_image_does_not_have_is_refused(user: str) -> None:
    contents = Contents()
    with pytest.raises(Invalid) as refused:
        inside(with_accounts(contents), contents, user)
    assert refused.value.code == "bad_image"


def test_an_image_without_accounts_runs_as_number_zero() -> None:
    assert inside(tree(), Contents()) == Inside("0", "/", True, {"A": "1"})


def test_rights_are_taken_away_for_good_where_nothing_inside_needs_them() -> None:
    contents = Contents()
    plain = with_accounts(contents)
    rising = with_accounts(contents, Entry(b"su", Kind.FILE, 0o4755))
    assert [inside(each, contents, "web").has_sudo for each in (plain, rising)] == [False, True]
    assert inside(plain, contents, "root").has_sudo


def test_accounts_are_read_through_a_link_and_circles_end() -> None:
    contents = Contents()
    entries = with_accounts(contents)
    moved = [each._replace(path=b"etc/real") if each.path == b"etc/passwd" else each for each in entries]
    linked = [*moved, Entry(b"etc/passwd", Kind.SYMLINK, 0o777, target=b"real")]
    assert inside(linked, contents, "web").home == "/srv/web"
    circle = tree(Entry(b"etc", Kind.DIR), Entry(b"etc/passwd", Kind.SYMLINK, target=b"/etc/passwd"))
    assert inside(circle, contents).user == "0"


def test_what_every_sandbox_needs_is_there_whatever_the_image_brings() -> None:
    contents = Contents()
    hostile = tree(
        Entry(b"dev", Kind.SYMLINK, target=b"/etc"),
        Entry(b"etc", Kind.DIR, 0o700),
        Entry(b"etc/resolv.conf", Kind.SYMLINK, target=b"/run/x"),
        Entry(b"proc", Kind.DIR),
        Entry(b"proc/1", Kind.DIR),
        Entry(b"run", Kind.FILE),
    )
    found = {entry.path: entry for entry in furnished(hostile, contents.keep, directory="/app/deep")}
    kinds = {path: found[path].kind for path in (b"dev", b"proc", b"run", b"sys", b"tmp", b"app/deep")}
    assert set(kinds.values()) == {Kind.DIR}
    assert b"proc/1" not in found
    assert found[b"etc"].mode == 0o700
    assert contents[found[b"etc/resolv.conf"].digest].startswith(b"nameserver ")
    assert b"localhost" in contents[found[b"etc/hosts"].digest]
    assert list(found) == sorted(found, key=lambda path: path.replace(b"/", b"\0"))


@pytest.mark.parametrize("path", [b"etc", b"tmp", b"app"])
def test_a_file_in_the_place_of_a_directory_is_refused(path: bytes) -> None:
    with pytest.raises(Invalid) as refused:
        furnished(tree(Entry(path, Kind.FILE)), Contents().keep, directory="/app/x")
    assert refused.value.code == "bad_image"


def test_a_directory_behind_a_link_is_left_to_the_kernel() -> None:
    linked = tree(Entry(b"app", Kind.SYMLINK, target=b"srv"))
    assert b"app/x" not in {entry.path for entry in furnished(linked, Contents().keep, directory="/app/x")}
