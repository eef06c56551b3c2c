"""Commands of the runtimes, as lines; and what is read back from them."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path

import pytest

from dovecote.errors import Unsupported
from dovecote.host.runtime import calls, find_runtime, oci
from dovecote.host.runtime.cgroups_v2 import CgroupsV2
from tests.unit.test_runtime_bundle import BOX

CRUN, RUNC = oci.FLAVORS["crun"], oci.FLAVORS["runc"]
STATE = Path("/run/d/crun")


def test_run_is_detached_and_keeps_the_listener() -> None:
    assert shlex.join(oci.run_command(CRUN, "/bin/crun", STATE, BOX)) == (
        "/bin/crun --root /run/d/crun --cgroup-manager=disabled --log /run/d/ins_a/runtime.log --log-format json "
        "run --detach --preserve-fds 1 --pid-file /run/d/ins_a/pid --bundle /run/d/ins_a ins_a"
    )


def test_other_commands_name_the_box() -> None:
    lines = [
        shlex.join(command)
        for command in (
            oci.kill_command(RUNC, "runc", STATE, "a", 9),
            oci.delete_command(RUNC, "runc", STATE, "a"),
            oci.state_command(RUNC, "runc", STATE, "a"),
            oci.list_command(RUNC, "runc", STATE),
        )
    ]
    assert lines == [
        "runc --root /run/d/crun kill a 9",
        "runc --root /run/d/crun delete --force a",
        "runc --root /run/d/crun state a",
        "runc --root /run/d/crun list --format json",
    ]


def test_launch_hides_and_joins_what_it_is_told() -> None:
    command = oci.launch_command([Path("/c/unified")], [Path("/c/a/tasks"), Path("/c/b/tasks")], ["crun", "run"])
    assert command[:5] == ["unshare", "--mount", "--", "/bin/sh", "-c"]
    assert shlex.join(command[6:]) == "launch 1 /c/unified 2 /c/a/tasks /c/b/tasks crun run"
    assert oci.launch_command([], [], ["crun"])[0] == "/bin/sh"


def test_only_a_v2_hierarchy_with_controllers_is_hidden_from_crun(tmp_path: Path) -> None:
    for name, controllers in (("empty", "\n"), ("full", "hugetlb\n")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "cgroup.controllers").write_text(controllers)
    foreign = [tmp_path / "empty", tmp_path / "full", tmp_path / "cpuset"]
    assert oci.hidden_mounts(CRUN, foreign) == [tmp_path / "full"]
    assert oci.hidden_mounts(RUNC, foreign) == foreign


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"level":"info","msg":"one"}\n{"level":"error","msg":"two"}\n', "two"),
        ('{"msg":"one"}\nnot json\n', "one"),
        ("launch: cannot create\n", "launch: cannot create"),
        ("x" * 5000, "x" * calls.WORDS),
        ("", ""),
    ],
)
def test_last_words_are_the_message_and_bounded(tmp_path: Path, text: str, words: str) -> None:
    log = tmp_path / "log"
    log.write_text(text)
    assert calls.last_words(log) == words
    assert calls.last_words(tmp_path / "absent") == ""


def test_unknown_level_and_missing_tool_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cgroups = CgroupsV2(tmp_path, "p")
    with pytest.raises(Unsupported) as unknown:
        find_runtime("strong", tmp_path, cgroups)
    assert unknown.value.code == "no_level"
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(Unsupported) as missing:
        find_runtime("crun", tmp_path, cgroups)
    assert (missing.value.code, missing.value.hint) == ("missing_tool", "apt-get install crun")


def test_listener_may_be_a_number_or_a_socket() -> None:
    assert replace(BOX, listener=7).listener_fd == 7
