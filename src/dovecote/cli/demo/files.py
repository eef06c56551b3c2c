"""The chapter of the files: saved as they change, mounted by request, limited, rewound, restored beside a reinstall."""

from __future__ import annotations

from contextlib import suppress

from dovecote.cli.demo.chapters import USER, Stage, count_files
from dovecote.cli.demo.story import check, until
from dovecote.sdk import AsyncDovecote, Mount, NotFound

VOLUME = "dovecote-demo"
LIMIT = 32 << 20  # bytes
SHARED = "/home/user/shared"
SAVED_WITHIN = 30.0  # seconds: 15 in a burst, and a machine that does other things


async def files(stage: Stage) -> None:
    stage.story.chapter("Its files: saved as they change, mounted by request, limited, rewound")
    await _save(stage)
    await _share(stage)
    await _rewind(stage)
    await _restore(stage)


async def clear(client: AsyncDovecote) -> None:
    with suppress(NotFound):
        await client.volumes.delete(VOLUME, force=True)


async def _save(stage: Stage) -> None:
    session = stage.session
    with stage.story.step("a file is written; nobody asks for it to be saved") as step:
        await session.files.write("ledger.txt", "nothing is lost")
        lag = await until(
            session.lag,
            lambda lag: lag.state == "saved" and lag.behind_seconds == 0,
            within=SAVED_WITHIN,
            what="the file being saved",
        )
        step.outcome = f"in the store; recovery point {lag.recovery_point_seconds or 0:.0f} s"
    stage.story.keep("written file: durable in the object store", step.seconds)


async def _share(stage: Stage) -> None:
    client, session, story = stage.client, stage.session, stage.story
    await client.volumes.create(VOLUME, max_bytes=LIMIT)
    with story.step(f"a volume with a limit of {LIMIT >> 20} MB is mounted while the session runs") as step:
        await session.mounts.add(Mount(VOLUME, SHARED, path=f"{USER}/{session.id}"))
        await session.files.write(f"{SHARED}/letter.txt", "for whoever comes next")
    story.keep("volume mounted into the running session", step.seconds)
    with story.step(f"{2 * LIMIT >> 20} MB are written to it: the limit holds, at once") as step:
        done = await session.run(f"dd if=/dev/zero of={SHARED}/flood bs=1M count={2 * LIMIT >> 20} status=none")
        check(not done.is_ok, "the volume took twice its limit")
        step.outcome = done.stderr.strip().rpartition(": ")[2]
    with story.step("and only there: the sandbox's own disk still takes writes") as step:
        await session.run(f"rm -f {SHARED}/flood && dd if=/dev/zero of=own bs=1M count=8 status=none", check=True)
        await session.files.remove("own")


async def _rewind(stage: Stage) -> None:
    session, story = stage.session, stage.story
    snapshot = await session.snapshot("before the accident")
    await session.run(f"rm -rf {stage.cwd}/node_modules {stage.cwd}/package.json ledger.txt", check=True)
    with story.step("somebody deletes the project's dependencies and more") as step:
        changes = await session.changes(snapshot.id)
        step.outcome = f"{len(changes):,} files and directories differ from the snapshot"
    with story.step("rewound, and its server answers again") as step:
        await session.rewind(snapshot.id)
        await session.wake()
    story.keep(f"rewound {stage.files} deleted files, server answers", step.seconds)
    with story.step("everything is there") as step:
        found = await count_files(session, stage.cwd)
        check(found == stage.files, f"node_modules had {stage.files} files, now it has {found}")
        check(await session.files.read_text("ledger.txt") == "nothing is lost", "ledger.txt is another one")
        shared = await session.files.read_text(f"{SHARED}/letter.txt")
        check(shared == "for whoever comes next", "the volume was rewound too, or is gone")
        step.outcome = f"{found} files; the volume is as it was left"


async def _restore(stage: Stage) -> None:
    session, story = stage.session, stage.story
    first = "require('express'); console.log('ready')"
    with story.step("beside it, the same dependencies are installed again") as step:
        line = f"mkdir /tmp/again && cd /tmp/again && cp {stage.cwd}/package*.json . && npm ci --no-audit --no-fund"
        await session.run(f'{line} && node -e "{first}"', timeout=600, check=True)
    again = step.seconds
    await session.run("rm -rf /tmp/again", check=True)
    start = (await session.refresh()).start
    assert start is not None
    await session.clear_start()  # the command alone is measured, not the server's start
    await session.park()
    with story.step("the parked project runs the same command") as step:
        done = await session.run(["node", "-e", first], cwd=stage.cwd, check=True)
        check(done.stdout.strip() == "ready", f"the project answered {done.stdout!r}")
    story.keep("parked project: first command finished", step.seconds, f"{again:.1f} s to install and run it again")
    await session.set_start(start.command, start.port, start.cwd, start.env)
    await session.wake()
