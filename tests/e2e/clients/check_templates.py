"""Templates, built by the Python client and used."""

from __future__ import annotations

from pathlib import Path
from uuid import uuid4

import pytest
from e2b import BuildException, Sandbox, Template, wait_for_port


def test_a_template_is_built_tagged_and_used(tmp_path: Path) -> None:
    (tmp_path / "app" / "deep").mkdir(parents=True)
    (tmp_path / "app" / "deep" / "one.txt").write_text("one")
    (tmp_path / "serve.py").write_text(
        "import http.server\nhttp.server.test(http.server.SimpleHTTPRequestHandler, port=8123, bind='0.0.0.0')\n"
    )
    name = f"Check_{uuid4()}"
    template = (
        Template(file_context_path=tmp_path)
        .from_template("base")
        .set_envs({"COLOUR": "it's red"})
        .run_cmd("echo $COLOUR > /tmp/colour")
        .run_cmd("echo root > /root/only", user="root")
        .copy("app", "/home/user/app")
        .copy("*.py", "/home/user/", mode=0o755)
        .set_workdir("/home/user/app")
        .set_start_cmd("python3 /home/user/serve.py", wait_for_port(8123))
    )
    said: list[str] = []
    made = Template.build(
        template, f"{name}:v1", tags=["stable"], cpu_count=2, on_build_logs=lambda line: said.append(line.message)
    )
    assert any("COLOUR" in line for line in said)
    assert Template.exists(name)
    assert not Template.exists(f"{name}-not")
    Template.assign_tags(f"{name}:v1", "latest")
    tags = {each.tag: each.build_id for each in Template.get_tags(name)}
    assert tags == dict.fromkeys(["v1", "stable", "latest"], made.build_id)
    Template.remove_tags(name, "latest")
    with Sandbox.create(f"{name}:stable", timeout=60) as sandbox:
        script = "pwd; echo $COLOUR; cat deep/one.txt /tmp/colour; stat -c %U ."
        lines = sandbox.commands.run(f"{script}; curl -sf localhost:8123 -o /dev/null && echo up").stdout.split("\n")
        assert lines == ["/home/user/app", "it's red", "oneit's red", "user", "up", ""]
        assert sandbox.get_info().cpu_count == 2
        with pytest.raises(Exception, match="denied"):
            sandbox.commands.run("cat /root/only")


def test_a_step_that_fails_is_named() -> None:
    with pytest.raises(BuildException, match=r"exit 3.*last words"):
        Template.build(Template().from_template("base").run_cmd("echo last words; exit 3"), f"check-{uuid4()}")
