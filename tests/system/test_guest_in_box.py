"""The guest as the real runtimes start it: capabilities, seccomp, masked paths, cgroup."""

from __future__ import annotations

from pathlib import Path

import pytest

from dovecote.errors import NotFound
from dovecote.host.guest import Command, Guest
from dovecote.host.runtime import ensure_stub
from tests.contract.runtime_rig import Rig, missing, until
from tests.system.guest_rig import static_program

pytestmark = [pytest.mark.system, pytest.mark.anyio]


@pytest.mark.parametrize("level", ["crun", "runc"])
async def test_it_works_in_a_stub_root_with_nothing_but_itself(level: str) -> None:
    if why := missing(level):
        pytest.skip(why)
    rig = Rig(level)
    try:
        ensure_stub(rig.stub, static_program())
        box, pid = await rig.running(argv=("/guest", "3"))
        guest = Guest(box.directory / "sock")
        assert (await guest.hello(timeout=10)).running == 0
        with pytest.raises(NotFound) as error:
            await guest.run(Command(("sh", "-c", "true"), user="0"))
        assert error.value.code == "command_not_found"
        # The only program there is the guest, which ends with 64 when its descriptor is no listener: not inherited.
        assert (await guest.run(Command(("/guest", "3"), user="0"))).exit_code == 64
        assert (await guest.stat("/guest", user="1000")).mode == 0o711
        assert {entry.path for entry in (await guest.list_dir("/", user="0")).entries} >= {"guest", "new", "proc"}
        assert await guest.ports() == []
        await guest.sync()
        terminal = await guest.run(Command(("/guest", "3"), user="0", pty=(24, 80)))
        assert terminal.exit_code == 64
        await guest.shutdown(1)
        assert await until(lambda: not Path(f"/proc/{pid}").exists())
    finally:
        await rig.close()
