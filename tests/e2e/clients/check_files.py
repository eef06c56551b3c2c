"""Files and signed URLs, by E2B's Python SDK."""

from __future__ import annotations

import hashlib
import io
import os

import e2b
import httpx
import pytest
from e2b import FileType, InvalidArgumentException, Sandbox, SandboxException
from packaging.version import Version

IS_NEW = Version(__import__("importlib.metadata").metadata.version("e2b")) >= Version("2.50")
NOT_FOUND = getattr(e2b, "FileNotFoundException", e2b.NotFoundException)


def test_a_file_is_written_and_read_with_the_directories_above_it(sandbox: Sandbox) -> None:
    written = sandbox.files.write("new/below/grüße.txt", "grüße 漢\n")
    assert (written.name, written.path, written.type) == (
        "grüße.txt",
        "/home/user/new/below/grüße.txt",
        FileType.FILE,
    )
    assert sandbox.files.read("new/below/grüße.txt") == "grüße 漢\n"
    assert sandbox.files.read("/home/user/new/below/grüße.txt", format="bytes") == "grüße 漢\n".encode()
    assert sandbox.files.read("~/new/below/grüße.txt") == "grüße 漢\n"
    assert sandbox.commands.run("cat new/below/grüße.txt; stat -c %U:%G new/below").stdout == "grüße 漢\nuser:user\n"


def test_writing_again_replaces_it(sandbox: Sandbox) -> None:
    sandbox.files.write("again.txt", "longer than what follows")
    sandbox.files.write("again.txt", "short")
    assert sandbox.files.read("again.txt") == "short"


def test_nothing_at_all_is_content_too(sandbox: Sandbox) -> None:
    sandbox.files.write("empty", "")
    assert sandbox.files.read("empty") == ""
    assert sandbox.files.read("empty", format="bytes") == b""
    assert b"".join(sandbox.files.read("empty", format="stream")) == b""


def test_several_files_are_written_at_once(sandbox: Sandbox) -> None:
    names = ["many/a.txt", "/tmp/with a blank.txt", 'many/quoted".txt', "many/ümlaut.bin"]
    written = sandbox.files.write_files([{"path": name, "data": f"content of {name}"} for name in names])
    assert [each.path for each in written] == [
        "/home/user/many/a.txt",
        "/tmp/with a blank.txt",
        '/home/user/many/quoted".txt',
        "/home/user/many/ümlaut.bin",
    ]
    for name in names:
        assert sandbox.files.read(name) == f"content of {name}"
    assert sandbox.files.write_files([]) == []


@pytest.mark.parametrize("how", [{}, {"gzip": True}, {"use_octet_stream": True}, {"use_octet_stream": False}])
def test_a_larger_file_arrives_whole_whichever_way(sandbox: Sandbox, how: dict[str, bool]) -> None:
    content = os.urandom(5_000_000)
    sandbox.files.write("larger.bin", content, **how)
    assert sandbox.commands.run("sha256sum < larger.bin").stdout.split()[0] == hashlib.sha256(content).hexdigest()
    assert sandbox.files.read("larger.bin", format="bytes", gzip=how.get("gzip", False)) == content
    sandbox.files.write("larger.bin", io.BytesIO(content), **how)
    assert b"".join(sandbox.files.read("larger.bin", format="stream")) == content


def test_files_are_the_users_also_where_only_root_may_make_them(sandbox: Sandbox) -> None:
    sandbox.files.write("/etc/of-the-app/deep/conf", "x")
    assert sandbox.commands.run("stat -c %U /etc/of-the-app /etc/of-the-app/deep/conf").stdout == "user\nuser\n"
    sandbox.files.write("/root/mine", "y", user="root")
    assert sandbox.files.read("/root/mine") == "y"
    assert sandbox.files.get_info("/root/mine").owner == "root"
    assert "mine" in {each.name for each in sandbox.files.list("/root")}
    sandbox.files.remove("/root/mine")
    assert not sandbox.files.exists("/root/mine")


def test_a_file_of_root_is_written_relative_to_its_home(sandbox: Sandbox) -> None:
    assert sandbox.files.write("here", "x", user="root").path == "/root/here"
    assert sandbox.files.read("here", user="root") == "x"


def test_what_is_known_of_a_file(sandbox: Sandbox) -> None:
    sandbox.files.write("info/a.txt", "12345")
    sandbox.commands.run("chmod 640 info/a.txt && ln -s a.txt info/link && ln -s nowhere info/broken")
    info = sandbox.files.get_info("info/a.txt")
    assert (info.name, info.path, info.type, info.size) == ("a.txt", "/home/user/info/a.txt", FileType.FILE, 5)
    assert (info.mode, info.permissions, info.owner, info.group) == (0o640, "-rw-r-----", "user", "user")
    assert info.symlink_target is None
    assert info.modified_time.year >= 2026
    directory = sandbox.files.get_info("info")
    assert (directory.type, directory.mode, directory.permissions) == (FileType.DIR, 0o755, "drwxr-xr-x")
    link = sandbox.files.get_info("info/link")
    assert (link.type, link.symlink_target) == (FileType.SYMLINK, "/home/user/info/a.txt")
    assert sandbox.files.get_info("info/broken").type == FileType.SYMLINK
    assert sandbox.files.read("info/link") == "12345"


def test_a_directory_is_listed_to_a_depth(sandbox: Sandbox) -> None:
    sandbox.files.write("tree/a/b/c.txt", "x")
    sandbox.files.write("tree/z.txt", "x")
    top = "/home/user/tree"
    assert [each.path for each in sandbox.files.list("tree")] == [f"{top}/a", f"{top}/z.txt"]
    assert [each.path for each in sandbox.files.list(top, depth=2)] == [f"{top}/a", f"{top}/a/b", f"{top}/z.txt"]
    assert [each.name for each in sandbox.files.list(top, depth=3)] == ["a", "b", "c.txt", "z.txt"]
    assert sandbox.files.list("tree/a/b")[0].size == 1
    with pytest.raises(InvalidArgumentException):
        sandbox.files.list("tree", depth=0)


def test_directories_are_made_moved_and_removed(sandbox: Sandbox) -> None:
    assert sandbox.files.make_dir("made/of/three")
    assert not sandbox.files.make_dir("made/of/three")
    sandbox.files.write("made/of/three/x", "x")
    moved = sandbox.files.rename("made/of", "elsewhere/of")
    assert (moved.path, moved.type) == ("/home/user/elsewhere/of", FileType.DIR)
    assert sandbox.files.exists("elsewhere/of/three/x")
    assert not sandbox.files.exists("made/of")
    sandbox.files.remove("elsewhere")
    assert not sandbox.files.exists("elsewhere")
    sandbox.files.write("plain", "")
    assert not sandbox.files.exists("plain/below")
    sandbox.files.remove("elsewhere")


def test_a_move_replaces_a_file(sandbox: Sandbox) -> None:
    sandbox.files.write("from", "new")
    sandbox.files.write("to", "old")
    assert sandbox.files.rename("from", "to").path == "/home/user/to"
    assert sandbox.files.read("to") == "new"


def test_what_is_not_there_or_is_something_else_says_so(sandbox: Sandbox) -> None:
    sandbox.files.write("odd/file", "x")
    for missing in (
        lambda: sandbox.files.read("odd/none"),
        lambda: sandbox.files.list("odd/none"),
        lambda: sandbox.files.get_info("odd/none"),
        lambda: sandbox.files.rename("odd/none", "odd/other"),
    ):
        with pytest.raises(NOT_FOUND):
            missing()
    for wrong in (
        lambda: sandbox.files.read("odd"),
        lambda: sandbox.files.write("odd", "x"),
        lambda: sandbox.files.list("odd/file"),
        lambda: sandbox.files.make_dir("odd/file"),
        lambda: sandbox.files.write("odd/file/below", "x"),
    ):
        with pytest.raises(InvalidArgumentException):
            wrong()
    with pytest.raises(e2b.AuthenticationException):
        sandbox.files.read("odd/file", user="nobody-of-that-name")


def test_a_path_cannot_leave_the_sandbox(sandbox: Sandbox) -> None:
    assert sandbox.files.read("../../../../../../etc/hostname") == sandbox.commands.run("cat /etc/hostname").stdout
    with pytest.raises(SandboxException):
        sandbox.files.read("with\0nul")


def test_commands_and_files_see_the_same_tmp(sandbox: Sandbox) -> None:
    sandbox.commands.run("echo made by a command > /tmp/by-command")
    assert sandbox.files.read("/tmp/by-command") == "made by a command\n"


def test_files_that_the_kernel_makes_up_are_read_to_their_end(sandbox: Sandbox) -> None:
    assert "processor" in sandbox.files.read("/proc/cpuinfo")


# -- signed URLs


def test_a_signed_url_gives_one_file_to_who_has_it(sandbox: Sandbox) -> None:
    sandbox.files.write("signed.txt", "for you")
    for url in (
        sandbox.download_url("signed.txt"),
        sandbox.download_url("/home/user/signed.txt", user="root"),
        sandbox.download_url("signed.txt", use_signature_expiration=60),
    ):
        answer = httpx.get(url)
        assert (answer.status_code, answer.text) == (200, "for you")
        assert answer.headers["content-disposition"].startswith("attachment")
        assert httpx.get(url, headers={"range": "bytes=4-"}).text == "you"
        assert httpx.get(url.replace("signed.txt", "other.txt")).status_code == 401
        assert httpx.post(url, files={"file": ("f", b"x")}).status_code == 401
    assert httpx.get(sandbox.download_url("none.txt")).status_code == 404
    assert httpx.get(sandbox.download_url("signed.txt", use_signature_expiration=-10)).status_code == 401


def test_a_signed_url_takes_one_file_from_who_has_it(sandbox: Sandbox) -> None:
    url = sandbox.upload_url("taken.txt", use_signature_expiration=60)
    answer = httpx.post(url, files={"file": ("any name", b"from a browser")})
    assert (answer.status_code, answer.json()[0]["path"]) == (200, "/home/user/taken.txt")
    assert sandbox.files.read("taken.txt") == "from a browser"
    assert httpx.post(url, content=b"plain", headers={"content-type": "application/octet-stream"}).status_code == 200
    assert sandbox.files.read("taken.txt") == "plain"
    assert httpx.get(url).status_code == 401


def test_the_signature_is_the_only_right_that_a_url_has(sandbox: Sandbox) -> None:
    sandbox.files.write("signed.txt", "for you")
    url = sandbox.download_url("signed.txt")
    assert httpx.get(url.partition("&signature")[0]).status_code in (401, 404)
    assert httpx.get(url[:-1] + ("A" if url[-1] != "A" else "B")).status_code == 401


# -- a sandbox's end


def test_a_sandbox_that_has_ended_is_not_running() -> None:
    sandbox = Sandbox.create(timeout=300)
    assert sandbox.is_running()
    assert sandbox.kill()
    assert not sandbox.is_running()
    gone = getattr(e2b, "SandboxNotRunningException", e2b.TimeoutException)
    with pytest.raises(gone):
        sandbox.commands.run("true")
    with pytest.raises(gone):
        sandbox.files.read("/etc/hostname")


def test_a_command_that_runs_when_its_sandbox_is_killed_says_so() -> None:
    sandbox = Sandbox.create(timeout=300)
    handle = sandbox.commands.run("sleep 600", background=True)
    sandbox.kill()
    with pytest.raises(SandboxException):
        handle.wait()


def test_a_sandbox_that_is_paused_is_not_running_until_it_is_connected_to() -> None:
    sandbox = Sandbox.create(timeout=300)
    sandbox.files.write("kept", "yes")
    sandbox.pause() if hasattr(sandbox, "pause") else sandbox.beta_pause()
    assert not sandbox.is_running()
    with pytest.raises(SandboxException):
        sandbox.files.read("kept")
    again = Sandbox.connect(sandbox.sandbox_id)
    assert again.files.read("kept") == "yes"
    assert again.is_running()
    again.kill()


def test_a_sandbox_without_a_token_is_open_to_who_knows_its_name() -> None:
    sandbox = Sandbox.create(timeout=300, secure=False)
    sandbox.files.write("a", "x")
    assert sandbox.files.read("a") == "x"
    sandbox.kill()


def test_another_sandboxes_token_opens_nothing(sandbox: Sandbox) -> None:
    other = Sandbox.create(timeout=300)
    headers = {"E2b-Sandbox-Id": sandbox.sandbox_id, "E2b-Sandbox-Port": "49983"}
    stolen = {**headers, "X-Access-Token": str(other._envd_access_token)}
    assert httpx.get(f"{sandbox.envd_api_url}/files?path=/etc/hostname", headers=stolen).status_code == 401
    assert httpx.get(f"{sandbox.envd_api_url}/files?path=/etc/hostname", headers=headers).status_code == 401
    other.kill()
