"""What the machine or a plain tool does: bare containers, the same Envoy with fixed endpoints."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dovecote.gateway.bootstrap import Front, Sockets, bootstrap
from dovecote.gateway.envoy import envoy_path


def crun_spec(root: Path) -> dict[str, Any]:
    """A plain container with the namespaces that ours has, and nothing else."""
    return {
        "ociVersion": "1.0.0",
        "process": {
            "terminal": False,
            "user": {"uid": 0, "gid": 0},
            "args": ["/bin/true"],
            "env": ["PATH=/usr/local/bin:/usr/bin:/bin"],
            "cwd": "/",
        },
        "root": {"path": str(root), "readonly": True},
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"]},
        ],
        "linux": {
            "uidMappings": [{"containerID": 0, "hostID": 1 << 20, "size": 65536}],
            "gidMappings": [{"containerID": 0, "hostID": 1 << 20, "size": 65536}],
            "namespaces": [{"type": kind} for kind in ("pid", "network", "ipc", "uts", "mount", "user")],
        },
    }


class Crun:
    """crun by hand over the base template's directory, seen through a path that container root may pass."""

    def __init__(self, directory: Path, template: Path) -> None:
        self.directory = directory
        self.root = directory / "root"
        self.root.mkdir(parents=True)
        subprocess.run(["mount", "--bind", str(template), str(self.root)], check=True, timeout=10)

    def close(self) -> None:
        subprocess.run(["umount", str(self.root)], check=True, timeout=10)

    def _command(self, *words: str) -> list[str]:
        # The controllers of a hybrid machine that crun stumbles over are not ours to mount: it gets no cgroup.
        hide = 'umount -l /sys/fs/cgroup/unified 2>/dev/null; exec "$@"'
        return [
            "unshare", "-m", "sh", "-c", hide, "sh",
            "crun", "--cgroup-manager=disabled", "--root", str(self.directory / "state"), *words,
        ]  # fmt: skip

    def run(self, name: str) -> float:
        """Milliseconds of `crun run` of a program that ends at once."""
        bundle = self._bundle(name, ["/bin/true"])
        began = time.perf_counter()
        subprocess.run(self._command("run", "-b", str(bundle), name), check=True, timeout=30, capture_output=True)
        return (time.perf_counter() - began) * 1e3

    @contextmanager
    def kept(self, name: str) -> Iterator[None]:
        """A container that waits, for `exec`."""
        bundle = self._bundle(name, ["/bin/sleep", "1000"])
        command = self._command("run", "-d", "-b", str(bundle), name)
        subprocess.run(
            command,
            check=True,
            timeout=30,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            yield
        finally:
            subprocess.run(self._command("delete", "-f", name), check=True, timeout=30, capture_output=True)

    def exec(self, name: str) -> float:
        """Milliseconds of `crun exec true`."""
        began = time.perf_counter()
        subprocess.run(self._command("exec", name, "/bin/true"), check=True, timeout=30, capture_output=True)
        return (time.perf_counter() - began) * 1e3

    def _bundle(self, name: str, argv: list[str]) -> Path:
        """One for each container: several may start at once."""
        bundle = self.directory / "bundles" / name
        bundle.mkdir(parents=True, exist_ok=True)
        spec = crun_spec(self.root)
        spec["process"]["args"] = argv
        (bundle / "config.json").write_text(json.dumps(spec))
        return bundle


@contextmanager
def static_envoy(directory: Path, endpoints: list[str], port: int, concurrency: int) -> Iterator[None]:
    """The gateway's own configuration, filters included, with a fixed list of endpoints in place of its sessions."""
    directory.mkdir(parents=True)
    front = Front(bind="127.0.0.1", port=port, domain="localhost", route_ttl=10, start_timeout=60, secret="bench")
    names = ("api.sock", "python.sock", "wake.sock", "admin.sock", "certificate", "x/clusters.json", "streams")
    sockets = Sockets(*(directory / name for name in names))
    sockets.clusters.parent.mkdir()
    sockets.clusters.write_text(json.dumps({"resources": []}))
    config = bootstrap(front, sockets)
    clusters = config["static_resources"]["clusters"]
    fixed = {
        "name": "sessions",
        "type": "STATIC",
        "connect_timeout": "0.25s",
        "load_assignment": {
            "cluster_name": "sessions",
            "endpoints": [{"lb_endpoints": [_endpoint(address) for address in endpoints]}],
        },
    }
    config["static_resources"]["clusters"] = [
        fixed if cluster["name"] == "sessions" else cluster for cluster in clusters
    ]
    path = directory / "envoy.json"
    path.write_text(json.dumps(config))
    command = [
        str(envoy_path()), "-c", str(path), "--concurrency", str(concurrency), "--disable-hot-restart", "-l", "error",
    ]  # fmt: skip
    with (directory / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        _wait_for(port)
        yield
    finally:
        process.terminate()
        process.wait(10)
        shutil.rmtree(directory, ignore_errors=True)


def _endpoint(address: str) -> dict[str, Any]:
    host, _, port = address.rpartition(":")
    return {"endpoint": {"address": {"socket_address": {"address": host, "port_value": int(port)}}}}


def _wait_for(port: int) -> None:
    import socket

    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    raise TimeoutError(f"nothing listens on {port}")
