"""A bundle says what a box may do, and nothing of it depends on who asks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from dovecote.errors import Invalid, Unsupported
from dovecote.host.runtime import Box, ensure_stub
from dovecote.host.runtime.bundle import render_config
from dovecote.host.runtime.seccomp import ALLOWED, DENIED, ENOSYS, EPERM, NAMESPACE_FLAGS, names, profile

BOX = Box(
    id="ins_a",
    directory=Path("/run/d/ins_a"),
    rootfs=Path("/run/d/stub"),
    id_base=200_000,
    netns=Path("/run/netns/a"),
    cgroup="ins_a",
    listener=5,
    argv=("/guest",),
    hostname="niche",
    open_files=100,
)

NEVER = {"CAP_SYS_ADMIN", "CAP_SYS_PTRACE", "CAP_NET_ADMIN", "CAP_NET_RAW", "CAP_MKNOD", "CAP_SYS_RESOURCE"}


@pytest.mark.parametrize("allow_setuid", [False, True])
def test_setuid_changes_only_no_new_privileges(allow_setuid: bool) -> None:
    config = render_config(replace(BOX, allow_setuid=allow_setuid))
    assert config["process"]["noNewPrivileges"] is not allow_setuid
    config["process"]["noNewPrivileges"] = True
    assert config == render_config(BOX)


def test_dangerous_capabilities_are_in_no_set_and_none_is_inherited() -> None:
    sets = render_config(BOX)["process"]["capabilities"]
    assert set(sets) == {"bounding", "effective", "permitted"}
    assert not NEVER & {name for kind in sets.values() for name in kind}


def test_every_namespace_is_new_but_the_network() -> None:
    kinds = {item["type"]: item.get("path") for item in render_config(BOX)["linux"]["namespaces"]}
    assert kinds.pop("network") == "/run/netns/a"
    assert kinds == dict.fromkeys(["user", "pid", "ipc", "uts", "mount", "cgroup"])
    alone = render_config(replace(BOX, netns=None))["linux"]["namespaces"]
    assert {"type": "network"} in alone


def test_ids_are_mapped_to_the_range_of_the_box() -> None:
    linux = render_config(BOX)["linux"]
    assert linux["uidMappings"] == linux["gidMappings"] == [{"containerID": 0, "hostID": 200_000, "size": 65536}]


def test_root_is_read_only_and_only_parts_of_the_host_are_bound() -> None:
    config = render_config(BOX)
    assert config["root"] == {"path": "/run/d/stub", "readonly": True}
    bound = [mount for mount in config["mounts"] if mount["type"] == "bind"]
    assert all(mount["source"].startswith(("/sys/devices/system/cpu", "/sys/kernel/mm")) for mount in bound)
    assert all({"ro", "nosuid", "nodev", "noexec"} <= set(mount["options"]) for mount in bound)
    assert not [mount for mount in config["mounts"] if mount["type"] in ("cgroup", "cgroup2", "sysfs")]


def test_cgroup_is_named_only_for_a_runtime_that_enters_it() -> None:
    assert "cgroupsPath" not in render_config(BOX)["linux"]
    assert render_config(BOX, "/p/ins_a")["linux"]["cgroupsPath"] == "/p/ins_a"


@pytest.mark.parametrize("name", ["", "../x", "a/b", "-x", ".", "a" * 65])
def test_name_that_could_leave_its_directory_is_refused(name: str) -> None:
    with pytest.raises(Invalid):
        replace(BOX, id=name)


def test_ids_of_the_host_are_refused() -> None:
    with pytest.raises(Invalid):
        replace(BOX, id_base=0)


def test_stub_keeps_its_program_from_being_read(tmp_path: Path) -> None:
    program = tmp_path / "program"
    program.write_bytes(b"x")
    for _ in range(2):
        stub = ensure_stub(tmp_path / "stub", program)
        assert sorted(path.name for path in stub.iterdir()) == ["dev", "guest", "new", "proc", "sys"]
        assert (stub / "guest").stat().st_mode & 0o777 == 0o711
        assert stub.stat().st_mode & 0o777 == 0o755


def test_no_call_is_both_allowed_and_denied() -> None:
    assert not names(ALLOWED) & names(DENIED)
    assert not {"clone", "clone3", "socket", "personality"} & (names(ALLOWED) | names(DENIED))


def test_escapes_are_denied_by_name() -> None:
    wanted = """mount umount2 pivot_root move_mount open_tree fsopen unshare setns keyctl add_key request_key bpf
        perf_event_open userfaultfd io_uring_setup io_uring_enter kexec_load init_module open_by_handle_at"""
    assert set(wanted.split()) <= names(DENIED)


def test_clone_is_allowed_only_without_namespaces() -> None:
    rules = [rule for rule in profile("x86_64")["syscalls"] if rule["names"] == ["clone"]]

    def outcome(flags: int) -> str:
        matching = [r for r in rules if flags & r["args"][0]["value"] == r["args"][0]["valueTwo"]]
        return matching[0]["action"] if matching else "default"

    assert outcome(0x3D0F00) == "SCMP_ACT_ALLOW"  # what a thread library asks for
    assert {outcome(0x11 | flag) for flag in NAMESPACE_FLAGS.values()} == {"SCMP_ACT_ERRNO"}


def test_denied_calls_say_not_permitted_and_unknown_ones_say_absent() -> None:
    section = profile("aarch64")
    assert section["defaultErrnoRet"] == ENOSYS
    assert {rule["errnoRet"] for rule in section["syscalls"] if "mount" in rule["names"]} == {EPERM}
    assert section["architectures"] == ["SCMP_ARCH_AARCH64"]


def test_machine_without_a_profile_is_refused() -> None:
    with pytest.raises(Unsupported):
        profile("mips")
