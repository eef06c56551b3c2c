"""`dovecote function deploy --image`, from a registry to an answer: the first time, again, over it, and in vain."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from dovecote.sdk import Dovecote, NotFound
from tests import images
from tests.e2e.installation import Installation, running
from tests.e2e.test_templates import SERVE, base_layer, site_layer
from tests.images import skopeo, write_layout

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with images.registry(tmp_path_factory.mktemp("registry")) as address:
        yield address


@pytest.fixture(scope="module")
def house(registry: str) -> Iterator[Installation]:
    with running(registries=registry, tick=0.2, start_timeout=20) as there:
        yield there


@pytest.fixture
def dovecote(house: Installation) -> Iterator[Dovecote]:
    with house.client() as client:
        yield client
        for function in client.functions.list():
            if function.name != "sandbox":
                client.functions.delete(function.name)


class Pushed:
    """A tag in the registry, and the image that it names by now: a web server with a page of that text."""

    def __init__(self, registry: str, directory: Path) -> None:
        self.reference = f"{registry}/team/shop:latest"
        self._directory = directory

    def push(self, text: str, **more: object) -> str:
        layout = write_layout(
            self._directory / text,
            base_layer(),
            site_layer(f"{text}\n".encode()),
            User="web",
            WorkingDir="/app",
            Env=["PATH=/bin"],
            **{"Entrypoint": SERVE[:2], "Cmd": SERVE[2:], "ExposedPorts": {"8080/tcp": {}}, **more},
        )
        skopeo("--dest-tls-verify=false", f"oci:{layout}", f"docker://{self.reference}")
        return self.reference


@pytest.fixture
def shop(registry: str, tmp_path: Path) -> Pushed:
    return Pushed(registry, tmp_path)


def deploy(house: Installation, *words: str) -> str:
    done = house.command("function", "deploy", *words)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def page(dovecote: Dovecote, session: str, path: str = "/index.html") -> str:
    answer = dovecote.functions.call("shop", path, session=session)
    assert answer.status_code == 200, answer.text
    return answer.text.strip()


def test_an_image_says_what_runs_and_where_it_listens(house: Installation, dovecote: Dovecote, shop: Pushed) -> None:
    told = deploy(house, "--image", shop.push("first"), "--name", "shop")
    assert f"http://shop.fn.localhost:{house.port}" in told
    assert page(dovecote, "ann") == "first"
    function = dovecote.functions.get("shop")
    assert function.revision.start is not None
    assert (function.revision.start.argv, function.revision.start.port) == (SERVE, 8080)
    (session,) = dovecote.sessions.list(function="shop")
    assert session.run("id -un; pwd", check=True).stdout == "web\n/app\n"  # and deploying left no session of its own


def test_a_tag_that_moved_is_the_next_revision_and_the_first_one_comes_back(
    house: Installation, dovecote: Dovecote, shop: Pushed
) -> None:
    deploy(house, "--image", shop.push("first"), "--name", "shop")
    assert page(dovecote, "ann") == "first"
    first = dovecote.functions.get("shop").revision.number
    deploy(house, "--image", shop.push("second"), "--name", "shop")
    second = dovecote.functions.get("shop").revision.number
    assert second > first
    assert (page(dovecote, "ann"), page(dovecote, "bob")) == ("first", "second")  # who is there keeps what it has
    deploy(house, "--image", shop.reference, "--name", "shop")
    assert dovecote.functions.get("shop").revision.number == second  # the same image is no other revision
    dovecote.functions.rollback("shop", first)
    assert page(dovecote, "cid") == "first"


def test_files_lie_over_the_image(house: Installation, dovecote: Dovecote, shop: Pushed, tmp_path: Path) -> None:
    site = tmp_path / "site"
    site.mkdir()
    (site / "own.html").write_text("of my own\n")
    words = ["--image", shop.push("first"), "--name", "shop", "--port", "8080"]
    deploy(house, str(site), *words, "--start", "exec /bin/busybox httpd -f -p 8080 -h .")
    session = dovecote.sessions.create(function="shop", key="ann")
    where = session.run("pwd", check=True).stdout.strip()
    assert page(dovecote, "ann", "/own.html") == "of my own"
    assert session.files.read(f"{where}/own.html") == b"of my own\n"
    assert session.files.read("/app/index.html") == b"first\n"


@pytest.mark.parametrize(
    ("reference", "code"),
    [("{registry}/team/nothing:1", "image_unreachable"), ("127.0.0.1:1/team/shop:1", "registry_refused")],
)
def test_an_image_that_cannot_be_had_leaves_no_function(
    house: Installation, dovecote: Dovecote, registry: str, reference: str, code: str
) -> None:
    done = house.command("function", "deploy", "--image", reference.format(registry=registry), "--name", "shop")
    assert done.returncode == 1
    assert code in done.stderr
    with pytest.raises(NotFound):
        dovecote.functions.get("shop")


def test_a_server_of_an_image_that_does_not_last_is_told_with_its_last_words(
    house: Installation, dovecote: Dovecote, shop: Pushed
) -> None:
    broken = shop.push("broken", Entrypoint=["/bin/busybox", "sh", "-c", "echo no-luck; exit 3"], Cmd=[])
    done = house.command("function", "deploy", "--image", broken, "--name", "shop")
    assert done.returncode == 1
    assert "start_failed" in done.stderr
    assert "no-luck" in done.stderr
