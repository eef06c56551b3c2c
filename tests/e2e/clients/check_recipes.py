"""Every step of a recipe that the Python client has, and every way to wait for what it starts."""

from __future__ import annotations

import time
from pathlib import Path
from uuid import uuid4

import pytest
from e2b import BuildException, Sandbox, Template, wait_for_file, wait_for_process, wait_for_timeout, wait_for_url


def built(template: Template, name: str, **options: object) -> str:
    Template.build(template, name, **options)
    return name


def test_every_step_of_a_recipe_does_what_it_says(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).write_text(name)
    (tmp_path / "link").symlink_to("one")
    template = (
        Template(file_context_path=tmp_path)
        .from_template("base")
        .set_user("root")
        .run_cmd(["mkdir -p /srv/made", "chown user:user /srv/made"])
        .run_cmd("pwd > /tmp/home", user="user")
        .copy_items([{"src": "one", "dest": "/srv/made/"}, {"src": "two", "dest": "/srv/made/", "user": "user"}])
        .copy("link", "/srv/followed", resolve_symlinks=True)
        .make_symlink("/srv/made/one", "/srv/link", force=True)
        .make_dir("/srv/deep/er", mode=0o711)
        .rename("/srv/made/one", "/srv/made/three")
        .remove("/srv/made/two")
        .set_user("user")
        .set_workdir("/srv/made")
        .skip_cache()
        .run_cmd("pwd > /tmp/where && whoami >> /tmp/where")
        .set_start_cmd("sleep 1 && touch /tmp/ready && sleep 600", wait_for_file("/tmp/ready"))
    )
    name = built(template, f"check-{uuid4()}", cpu_count=1, memory_mb=512, skip_cache=True)
    with Sandbox.create(name, timeout=60) as sandbox:
        script = "ls /srv/made /srv; readlink /srv/link; cat /tmp/home /tmp/where /srv/followed"
        script += "; stat -c '%a %U' /srv/deep/er; ls /tmp/ready"
        assert sandbox.commands.run(script).stdout.split() == [
            *("/srv:", "deep", "followed", "link", "made", "/srv/made:", "three", "/srv/made/one"),
            *("/home/user", "/srv/made", "user", "one711", "root", "/tmp/ready"),
        ]
    assert Template.alias_exists(name)


def test_a_build_goes_on_in_the_background_and_is_asked_about() -> None:
    name = f"check-{uuid4()}"
    info = Template.build_in_background(Template().from_template("base").run_cmd(f"echo {name} | rev; sleep 2"), name)
    seen, offset, deadline = [], 0, time.monotonic() + 120
    while True:
        status = Template.get_build_status(info, logs_offset=offset)
        offset += len(status.log_entries)
        seen += [entry.message for entry in status.log_entries]
        if status.status.value not in ("building", "waiting"):
            break
        assert time.monotonic() < deadline
        time.sleep(0.2)
    assert status.status.value == "ready"
    assert seen.count(name[::-1]) == 1


def test_a_dockerfile_is_a_recipe_too(tmp_path: Path) -> None:
    (tmp_path / "app.txt").write_text("app")
    content = (
        "FROM {image}\nENV A=1 B='two words'\nWORKDIR /srv\nCOPY app.txt .\nRUN echo $A $B > /srv/env\nUSER user\n"
    )
    parsed = Template(file_context_path=tmp_path).from_dockerfile(content.format(image="debian:12"))
    assert "COPY app.txt" in Template.to_dockerfile(parsed)
    assert '"fromImage": "debian:12"' in Template.to_json(parsed) or "debian:12" in Template.to_json(parsed)


@pytest.mark.parametrize(
    ("command", "ready"),
    [
        ("python3 -m http.server 8124 --bind 0.0.0.0", wait_for_url("http://localhost:8124/")),
        ("sleep 600", wait_for_process("sleep")),
        ("sleep 600", wait_for_timeout(1000)),
        ("sleep 600", "true"),
    ],
)
def test_a_server_is_waited_for_in_every_way(command: str, ready: object) -> None:
    name = built(Template().from_template("base").set_start_cmd(command, ready), f"check-{uuid4()}")
    with Sandbox.create(name, timeout=60) as sandbox:
        assert sandbox.commands.run(f"pgrep -f '{command.split()[0]}'").stdout.strip()


def test_a_name_that_is_not_there_is_said_to_be_none() -> None:
    name = f"check-{uuid4()}"
    assert not Template.alias_exists(name)
    with pytest.raises(Exception, match=r"404|not found"):
        Template.get_tags(name)
    with pytest.raises(Exception, match=r"404|not found"):
        Template.assign_tags(f"{name}:v1", "v2")
    with pytest.raises(BuildException):
        Template.build(Template().from_template(name), f"check-{uuid4()}")
