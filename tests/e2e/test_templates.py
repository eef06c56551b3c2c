"""Templates from the outside: images from a registry and from archives, down to a served port, and what is refused."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from dovecote.sdk import Conflict, Dovecote, DovecoteError, NotFound, Start, Template
from tests import images
from tests.e2e.installation import Installation, running, until
from tests.images import skopeo, write_layout
from tests.unit.test_layers import file, folder, link, tar

pytestmark = pytest.mark.e2e

BUSYBOX = Path("/bin/busybox")
PASSWD = b"root:x:0:0::/root:/bin/sh\nweb:x:1001:1001::/srv/web:/bin/sh\n"
APPLETS = ("sh", "id", "pwd", "env", "cat", "ls", "sleep", "touch", "test", "mkdir", "chmod", "cp")


def program() -> bytes:
    if not BUSYBOX.exists():
        pytest.skip("install busybox-static")
    return BUSYBOX.read_bytes()


def base_layer() -> bytes:
    """A system with a shell, and no bash."""
    links = [link(f"bin/{name}", "busybox") for name in APPLETS]
    return tar(
        folder("bin"),
        file("bin/busybox", program(), mode=0o755),
        *links,
        file("etc/passwd", PASSWD),
        file("etc/group", b"root:x:0:\nweb:x:1001:\n"),
        folder("srv/web", uid=1001, gid=1001),
    )


def site_layer(text: bytes) -> bytes:
    return tar(folder("app", uid=1001, gid=1001), file("app/index.html", text, uid=1001, gid=1001))


SERVE = ["/bin/busybox", "httpd", "-f", "-p", "8080", "-h", "/app"]


@dataclass
class Silent:
    """Takes connections and says nothing: a registry that hangs."""

    listener: socket.socket
    seen: int = 0

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.listener.getsockname()[1]}"


@pytest.fixture(scope="module")
def silent() -> Iterator[Silent]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(16)
        there, held = Silent(listener), []

        def accept() -> None:
            while True:
                try:
                    held.append(listener.accept())
                except OSError:
                    return
                there.seen += 1

        threading.Thread(target=accept, daemon=True).start()
        yield there
        listener.shutdown(socket.SHUT_RDWR)
        for connection, _ in held:
            connection.close()


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with images.registry(tmp_path_factory.mktemp("registry")) as address:
        yield address


@pytest.fixture(scope="module")
def house(registry: str, silent: Silent) -> Iterator[Installation]:
    with running(registries=f"{registry},{silent.address}", tick=0.2, start_timeout=20) as there:
        yield there


@pytest.fixture
def dovecote(house: Installation) -> Iterator[Dovecote]:
    with house.client() as client:
        yield client


@pytest.fixture(scope="module")
def site(registry: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A reference to an image in the registry: a web server with a user, a directory and variables of its own."""
    layout = write_layout(
        tmp_path_factory.mktemp("site") / "layout",
        base_layer(),
        site_layer(b"hello from an image\n"),
        User="web",
        WorkingDir="/app",
        Env=["PATH=/bin", "COLOUR=blue"],
        Entrypoint=SERVE[:2],
        Cmd=SERVE[2:],
        ExposedPorts={"8080/tcp": {}},
    )
    skopeo("--dest-tls-verify=false", f"oci:{layout}", f"docker://{registry}/some/site:1")
    return f"{registry}/some/site:1"


def made(events: Iterator[object]) -> Template:
    *_, last = events
    assert isinstance(last, Template)
    return last


def test_from_a_reference_to_a_served_port(house: Installation, dovecote: Dovecote, site: str) -> None:
    """By the command line; the function that names the template has its start, its user, directory and variables."""
    done = house.command("template", "import", site, "--name", "site")
    assert (done.returncode, done.stdout.split(":")[0]) == (0, "site is ready"), done.stderr
    assert "layer 2 of 2" in done.stderr
    template = dovecote.templates.get("site")
    assert (template.user, template.directory, template.env["COLOUR"]) == ("web", "/app", "blue")
    assert template.start is not None
    assert (template.start.argv, template.start.port) == (SERVE, 8080)
    function = dovecote.functions.create("site", template="site")
    with dovecote.http_for(function.address) as web:
        headers = {"x-dovecote-key": house.api_key, "x-dovecote-session": "visitor"}
        answer = web.get("/index.html", headers=headers)
    assert (answer.status_code, answer.text) == (200, "hello from an image\n")
    (session,) = [each for each in dovecote.sessions.list() if each.view.key == "visitor"]
    facts = session.run("id -un; pwd; echo $COLOUR $HOME; cat /etc/resolv.conf /etc/hosts", check=True).stdout
    assert facts.startswith("web\n/app\nblue /srv/web\nnameserver ")
    assert "127.0.0.1 localhost" in facts
    session.files.write("note", b"kept")  # beside where commands start
    session.park()
    assert session.run("cat note /app/note", check=True).stdout == "keptkept"
    session.delete()


def test_an_image_without_shell_or_accounts_serves_from_an_archive(
    house: Installation, dovecote: Dovecote, tmp_path: Path
) -> None:
    only = tar(file("busybox", program(), mode=0o755), file("www/index.html", b"no shell\n"))
    command = ["/busybox", "httpd", "-f", "-p", "80", "-h", "/www"]
    layout = write_layout(tmp_path / "layout", only, Cmd=command)
    archive = tmp_path / "image.tar"
    skopeo(f"oci:{layout}", f"docker-archive:{archive}:bare:1")
    assert made(dovecote.templates.upload(archive, name="bare", port=80)).user == "0"
    function = dovecote.functions.create("bare", template="bare")
    with dovecote.http_for(function.address) as web:
        headers = {"x-dovecote-key": house.api_key, "x-dovecote-session": "bare"}
        assert web.get("/index.html", headers=headers).text == "no shell\n"
    with dovecote.sessions.create(function="bare") as session:
        assert session.run(["/busybox", "id", "-u"], check=True).stdout == "0\n"
        assert session.files.read("/www/index.html") == b"no shell\n"
        with pytest.raises(DovecoteError) as missing:
            session.run("true")
        assert missing.value.code == "command_not_found"


def test_an_oci_archive_is_the_same_template(dovecote: Dovecote, site: str, tmp_path: Path) -> None:
    archive = tmp_path / "image.tar"
    skopeo("--src-tls-verify=false", f"docker://{site}", f"oci-archive:{archive}")
    one = made(dovecote.templates.upload(archive, name="archived"))
    other = made(dovecote.templates.pull(site, name="pulled"))
    assert (one.digest, one.start, one.user) == (other.digest, other.start, other.user)
    assert (one.source, other.source) == ("archive", site)


@pytest.mark.parametrize(
    ("reference", "code"),
    [
        ("oci:/etc", "malformed_reference"),
        ("dir:/etc", "malformed_reference"),
        ("docker-archive:/etc/passwd", "malformed_reference"),
        ("127.0.0.1:1/x/y:1", "registry_refused"),
        ("localhost:8080/x:1", "registry_refused"),
        ("169.254.169.254/x:1", "registry_refused"),
        ("10.0.0.1:5000/x:1", "registry_refused"),
        ("[::1]:5000/x:1", "registry_refused"),
        ("[::ffff:127.0.0.1]:5000/x:1", "malformed_reference"),
    ],
)
def test_what_lies_on_the_server_or_in_its_network_cannot_be_named(
    dovecote: Dovecote, reference: str, code: str
) -> None:
    with pytest.raises(DovecoteError) as refused:
        made(dovecote.templates.pull(reference, name="refused"))
    assert refused.value.code == code
    assert dovecote.templates.get("refused").error_code == code


def test_a_template_is_seen_by_its_tenant_only_and_outlives_its_name_in_functions(
    house: Installation, dovecote: Dovecote, site: str, registry: str, tmp_path: Path
) -> None:
    made(dovecote.templates.pull(site, name="mine"))
    secret = house.command("tenant", "create", "stranger").stdout.split()[-1]
    with house.client(secret) as stranger:
        assert [each.name for each in stranger.templates.list()] == ["base", "code"]
        for act in (stranger.templates.get, stranger.templates.delete):
            with pytest.raises(NotFound):
                act("mine")
        with pytest.raises(NotFound):
            stranger.functions.create("f", template="mine")
    dovecote.functions.create("early", template="mine")
    other = write_layout(tmp_path / "layout", base_layer(), site_layer(b"another\n"))
    skopeo("--dest-tls-verify=false", f"oci:{other}", f"docker://{registry}/some/other:1")
    made(dovecote.templates.pull(f"{registry}/some/other:1", name="mine"))
    dovecote.functions.create("late", template="mine")
    dovecote.templates.delete("mine")
    for name, text in (("early", "hello from an image\n"), ("late", "another\n")):
        with dovecote.sessions.create(function=name) as session:
            assert session.run(["/bin/cat", "/app/index.html"], check=True).stdout == text
    with pytest.raises(NotFound):
        dovecote.functions.create("after", template="mine")


def test_killing_the_server_while_it_fetches_leaves_a_failed_template_that_can_be_made_again(
    house: Installation, site: str, silent: Silent
) -> None:
    with house.client() as client:
        before = silent.seen
        events = client.templates.pull(f"{silent.address}/a/b:1", name="slow")
        next(events)
        until(lambda: silent.seen > before, "the registry is asked")
        with pytest.raises(Conflict) as busy:
            next(client.templates.pull(site, name="slow"))
        assert busy.value.code == "building"
        with pytest.raises(Conflict) as early:
            client.functions.create("early-bird", template="slow")
        assert early.value.code == "template_not_ready"
        house.kill()
    house.start()
    with house.client() as client:
        slow = client.templates.get("slow")
        assert (slow.state, slow.error_code, slow.usable) == ("failed", "interrupted", False)
        assert made(client.templates.pull(site, name="slow")).usable
        assert not _processes("skopeo", silent.address)


def test_removing_a_template_ends_making_it(dovecote: Dovecote, silent: Silent) -> None:
    before = silent.seen
    events = dovecote.templates.pull(f"{silent.address}/a/b:1", name="unwanted")
    next(events)
    until(lambda: silent.seen > before, "the registry is asked")
    dovecote.templates.delete("unwanted")
    until(lambda: not _processes("skopeo", silent.address), "skopeo is gone")
    with pytest.raises(NotFound):
        dovecote.templates.get("unwanted")


def test_garbage_is_no_archive(dovecote: Dovecote, house: Installation, tmp_path: Path) -> None:
    garbage = tmp_path / "garbage.tar"
    escape = tar(file("oci-layout"), file("../../escape"))
    for content in (
        b"",
        b"x" * 5000,
        tar(file("hello")),
        escape,
        tar(file("oci-layout"), link("index.json", "/etc/shadow")),
    ):
        garbage.write_bytes(content)
        with pytest.raises(DovecoteError) as refused:
            made(dovecote.templates.upload(garbage, name="garbage"))
        assert refused.value.code == "bad_archive"
    assert not list((house.settings.cache_dir / "images").glob("image-*.tar"))


def test_a_start_without_a_shell_can_be_given(dovecote: Dovecote, house: Installation, site: str) -> None:
    made(dovecote.templates.pull(site, name="plain"))
    start = Start("serve", 9000, argv=["/bin/busybox", "httpd", "-f", "-p", "9000"])
    function = dovecote.functions.create("plain", template="plain", start=start)
    with dovecote.http_for(function.address) as web:
        headers = {"x-dovecote-key": house.api_key, "x-dovecote-session": "plain"}
        assert web.get("/index.html", headers=headers).status_code == httpx.codes.OK  # from the image's directory


def _processes(*words: str) -> list[str]:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if all(word in line for word in words):
            found.append(line)
    return found
