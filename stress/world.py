"""The machine under stress: a server, its store, its gateway and its instances, each of which can be killed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from tests.e2e.installation import Installation, free_network, place, until
from tests.s3 import SeaweedFSServer, seaweedfs

from dovecote.sdk import Dovecote

SETTINGS = {"quiet_after": 3, "tick": 0.2, "start_timeout": 30, "pool_size": 1}


class World:
    """`own` is the host that sessions are asked for at. Its store is SeaweedFS, or a directory when there is none."""

    def __init__(self, own: Installation, store: SeaweedFSServer | None, spare: Installation) -> None:
        self.own = own
        self.spare = spare
        self.store = store
        self.client: Dovecote = own.client()

    def client_of(self, host: Installation) -> Dovecote:
        return host.client(api_key=self.own.api_key)

    # -- who runs

    def pids(self, host: Installation) -> list[int]:
        """First processes of all instances that a host has recorded, prepared ones too."""
        found = []
        for record in (host.settings.run_dir / "instances").glob("*/instance.json"):
            with suppress(OSError, ValueError, KeyError):
                found.append(int(json.loads(record.read_bytes())["pid"]))
        return [pid for pid in found if pid > 0]

    def envoy_pid(self) -> int:
        run = str(self.own.settings.run_dir).encode()
        for process in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                words = (process / "cmdline").read_bytes().split(b"\0")
                if words[0].endswith(b"envoy") and any(run in word for word in words):
                    return int(process.name)
        raise AssertionError("no Envoy runs")

    # -- what goes away, and comes back

    def lose_host(self, *, with_cache: bool, server_first: bool) -> float:
        """Its server and all instances die, its disks are gone, another machine of that name starts. When they died."""
        own = self.own
        pids = self.pids(own)
        if server_first:
            own.kill()
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if not server_first:
            own.kill()
        at = time.monotonic()
        own.down()  # as a reboot: no mount, no namespace, no process
        data = own.settings.data_dir
        (data / "pool.btrfs").unlink()
        if with_cache:
            shutil.rmtree(data / "trees")
        own.start()
        return at

    def break_store(self) -> None:
        if self.store is not None:
            self.store.kill()
        else:
            objects = str(self.own.settings.data_dir / "objects")
            # A bind mount of its own takes no writes: root is not stopped by permissions.
            subprocess.run(["mount", "--bind", objects, objects], check=True, timeout=10)
            subprocess.run(["mount", "-o", "remount,bind,ro", objects], check=True, timeout=10)

    def mend_store(self) -> None:
        if self.store is not None:
            self.store.start()
        else:
            objects = str(self.own.settings.data_dir / "objects")
            subprocess.run(["umount", "--lazy", objects], check=True, timeout=10)

    def is_orphaned(self, owner: str) -> bool:
        """Whether this host keeps files of the session that are nobody's any more."""
        for path in (self.own.settings.run_dir / "pool" / ".records").iterdir():
            with suppress(OSError, ValueError):
                record = json.loads(path.read_bytes())
                if record["owner"] == owner and record["orphan"]:
                    return True
        return False

    @contextmanager
    def second_host(self) -> Iterator[Dovecote]:
        """Another server over the same records and the same store, with nothing else in common."""
        self.spare.start()
        try:
            with self.client_of(self.spare) as client:
                yield client
        finally:
            self.spare.down()
            shutil.rmtree(self.spare.settings.data_dir)


@contextmanager
def world(*, s3: bool) -> Iterator[World]:
    """Directories, networks, processes of its own; all of it is gone afterwards."""
    with ExitStack() as held:
        directory = held.enter_context(place())
        store = held.enter_context(seaweedfs()) if s3 else None
        objects = f"file://{directory}/data/objects"
        if store is not None:
            objects = "s3://dovecote-stress/bucket"
            held.enter_context(_environment(store))
        own = Installation(directory, network=held.enter_context(free_network()), objects_url=objects, **SETTINGS)
        records = f"sqlite:///{own.settings.data_dir}/dovecote.sqlite"
        spare = Installation(
            directory / "spare",
            network=held.enter_context(free_network()),
            objects_url=objects,
            database_url=records,
            **SETTINGS,
        )
        spare.directory.mkdir(mode=0o711)
        held.callback(own.down)
        own.start()
        there = World(own, store, spare)
        held.callback(there.client.close)
        yield there


@contextmanager
def _environment(store: SeaweedFSServer) -> Iterator[None]:
    """How servers find the store, as a user would tell them."""
    told = {f"AWS_{name.upper()}": str(value) for name, value in store.options.items()}
    before = {name: os.environ.get(name) for name in told}
    os.environ.update(told)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def comes_true(claim: Callable[[], bool], what: str, *, within: float) -> bool:
    try:
        until(claim, what, within=within)
    except AssertionError:
        return False
    return True
