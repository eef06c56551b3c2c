"""Templates of Dovecotefiles: built in real instances, remembered step by step, and interrupted."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from dovecote.sdk import Dovecote, DovecoteError, Printed, Template
from tests import images
from tests.e2e.installation import Installation, running
from tests.e2e.test_templates import base_layer
from tests.images import skopeo, write_layout

pytestmark = pytest.mark.e2e

SHOP = """
FROM {image}
RUN echo built-by-$(id -un) > /made && echo step-one
USER web
WORKDIR /srv/web/shop
COPY site ./
ENV COLOUR=green
RUN echo step-two; id -un; pwd; echo $COLOUR > colour
START /bin/busybox httpd -f -p 8080 PORT 8080
READY test -f colour && test -f /made
"""


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with images.registry(tmp_path_factory.mktemp("registry")) as address:
        yield address


@pytest.fixture(scope="module")
def image(registry: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    layout = write_layout(tmp_path_factory.mktemp("image") / "layout", base_layer(), Env=["PATH=/bin"])
    skopeo("--dest-tls-verify=false", f"oci:{layout}", f"docker://{registry}/box:1")
    return f"{registry}/box:1"


@pytest.fixture(scope="module")
def house(registry: str) -> Iterator[Installation]:
    with running(registries=registry, tick=0.2, start_timeout=20) as there:
        yield there


@pytest.fixture
def dovecote(house: Installation) -> Iterator[Dovecote]:
    with house.client() as client:
        yield client


def write(directory: Path, recipe: str, **files: str) -> Path:
    (directory / "site").mkdir(parents=True, exist_ok=True)
    (directory / "Dovecotefile").write_text(recipe)
    for name, text in files.items():
        (directory / "site" / name.replace("_", ".")).write_text(text)
    return directory


def build(dovecote: Dovecote, directory: Path, name: str) -> tuple[Template, str]:
    """The template, and what its commands printed."""
    *events, last = dovecote.templates.build(directory, name=name)
    assert isinstance(last, Template)
    return last, "".join(event.text for event in events if isinstance(event, Printed))


def test_from_an_image_and_files_to_a_served_port(
    house: Installation, dovecote: Dovecote, image: str, tmp_path: Path
) -> None:
    directory = write(tmp_path, SHOP.format(image=image), index_html="open\n")
    done = house.command("template", "build", str(directory), "--name", "shop")
    assert done.returncode == 0, done.stderr
    assert "step-one\n" in done.stderr
    assert "step-two\nweb\n/srv/web/shop\n" in done.stderr
    template = dovecote.templates.get("shop")
    assert (template.user, template.directory, template.env["COLOUR"]) == ("web", "/srv/web/shop", "green")
    function = dovecote.functions.create("shop", template="shop")
    headers = {"x-dovecote-key": house.api_key, "x-dovecote-session": "visitor"}
    with dovecote.http_for(function.address) as web:
        assert web.get("/index.html", headers=headers).text == "open\n"
        assert web.get("/colour", headers=headers).text == "green\n"
    with dovecote.sessions.create(function="shop") as session:
        told = session.run("cat /made; ls -ln index.html; ls -ldn . /made", check=True).stdout
    assert told.startswith("built-by-root\n")
    assert told.count(" 1001     1001 ") == 2


def test_what_was_made_is_not_made_again_and_what_changed_is(dovecote: Dovecote, image: str, tmp_path: Path) -> None:
    recipe = SHOP.format(image=image) + "# other\n"
    first, told = build(dovecote, write(tmp_path, recipe, index_html="one\n"), "cached")
    assert "step-two" in told
    again, told = build(dovecote, write(tmp_path, recipe, index_html="one\n"), "cached")
    assert (again.digest, told) == (first.digest, "from the cache\n" * 3)
    changed, told = build(dovecote, write(tmp_path, recipe, index_html="two\n"), "cached")
    assert changed.digest != first.digest
    assert "step-one" not in told
    assert "step-two" in told


@pytest.mark.parametrize(
    ("line", "code"),
    [
        ("RUN echo last words; false", "build_failed"),
        ('RUN ["/no/such"]', "command_not_found"),
        ("READY echo last words; false", "not_ready"),
        ("COPY nothing /x", "no_such_source"),
        ("COPY site/index.html /srv", "is_directory"),
        ("USER stranger", "bad_image"),
        ("WORKDIR /etc/passwd/x", "bad_image"),
    ],
)
def test_a_step_that_fails_says_why_and_the_template_stays_what_it_was(
    dovecote: Dovecote, image: str, tmp_path: Path, line: str, code: str
) -> None:
    write(tmp_path, f"FROM {image}\n", index_html="x")
    good, _ = build(dovecote, tmp_path, "steady")
    write(tmp_path, f"FROM steady\n{line}\n")
    with pytest.raises(DovecoteError) as failed:
        build(dovecote, tmp_path, "steady")
    assert failed.value.code == code
    if "last words" in line:
        assert "last words" in failed.value.hint
    there = dovecote.templates.get("steady")
    assert (there.state, there.error_code, there.usable, there.digest) == ("failed", code, True, good.digest)


def test_the_base_is_built_upon_with_its_user_and_sudo(dovecote: Dovecote, tmp_path: Path) -> None:
    recipe = "FROM base\nRUN sudo touch /etc/by-root && touch mine\nWORKDIR work\nCOPY site/index.html .\n"
    template, _ = build(dovecote, write(tmp_path, recipe, index_html="x"), "upon-base")
    assert (template.user, template.directory) == ("user", "/home/user/work")
    dovecote.functions.create("upon-base", template="upon-base")
    with dovecote.sessions.create(function="upon-base") as session:
        told = session.run("stat -c %U /etc/by-root ../mine index.html . && sudo id -un", check=True).stdout
    assert told.split() == ["root", "user", "user", "user", "root"]


def test_killing_the_server_in_a_step_leaves_nothing_and_a_repeat_goes_on(
    house: Installation, image: str, tmp_path: Path
) -> None:
    slow = "echo second && cat /site/wait && sleep $(cat /site/wait)"
    recipe = f"FROM {image}\nCOPY site /site\nRUN echo first\nRUN {slow}\n"
    write(tmp_path, recipe, wait="600")
    with house.client() as client:
        for event in client.templates.build(tmp_path, name="killed"):
            if event == Printed("second\n600") or event == Printed("600"):
                break
        house.kill()
    house.start()
    with house.client() as client:
        killed = client.templates.get("killed")
        assert (killed.state, killed.error_code) == ("failed", "interrupted")
        assert not _claimed_by_builds(house)
        again, told = build(client, write(tmp_path, recipe.replace("sleep $(cat /site/wait)", "true")), "killed")
        assert again.usable
        assert told == "from the cache\nfrom the cache\nsecond\n600"


def _claimed_by_builds(house: Installation) -> list[str]:
    records = (house.settings.run_dir / "instances").glob("*/instance.json")
    return [record.parent.name for record in records if '"owner":"tpl_' in record.read_text()]
