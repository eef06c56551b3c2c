"""The helper behind `Entrance`: one thread, an empty environment, one fork for each namespace where others run.

A root is swapped without a fork, which costs more than all else of it: nobody but our own guest runs there yet.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import gc
import json
import os
import select
import signal
import socket
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dovecote.host.storage import mounts

MAX_MESSAGE = 16384
MAX_CHILDREN = 64
DETACH_TRIES = 8
KEPT = ("proc", "dev", "sys")  # mounts of the stub root that move on to the new one; nothing else is attached there


@dataclass
class Child:
    number: int
    pid: int
    pidfd: int
    result: int  # the reading end of its pipe
    deadline: float
    timed_out: bool = False


def serve(control: socket.socket) -> None:
    """Until the other side closes. Never blocks on a child."""
    home = os.open("/proc/self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
    children: dict[int, Child] = {}
    poll = select.poll()
    poll.register(control, select.POLLIN)
    while True:
        if len(children) >= MAX_CHILDREN:
            with contextlib.suppress(KeyError):
                poll.unregister(control)
        else:
            poll.register(control, select.POLLIN)
        for descriptor, _ in poll.poll(_milliseconds(children)):
            if descriptor == control.fileno():
                message, descriptors, _, _ = socket.recv_fds(control, MAX_MESSAGE, 2)
                if not message:
                    return
                try:
                    child = _begin(control, json.loads(message), descriptors, home)
                finally:
                    for each in descriptors:
                        os.close(each)
                if child is not None:
                    children[child.pidfd] = child
                    poll.register(child.pidfd, select.POLLIN)
            else:
                poll.unregister(descriptor)
                _finish(control, children.pop(descriptor))
        for child in children.values():
            if time.monotonic() > child.deadline and not child.timed_out:
                child.timed_out = True
                os.kill(child.pid, signal.SIGKILL)


def _milliseconds(children: dict[int, Child]) -> float | None:
    if not children:
        return None
    return max(1.0, (min(child.deadline for child in children.values()) - time.monotonic()) * 1000 + 1)


def _begin(control: socket.socket, request: dict[str, Any], descriptors: list[int], home: int) -> Child | None:
    """None where it is done already."""
    if request["act"] == "swap_root":
        target, root = descriptors
        reply = _swap(request, target, root, home)
        control.sendall(json.dumps({"number": request["number"], **reply}).encode())
        return None
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        _act(request, descriptors, writing)
    os.close(writing)
    deadline = time.monotonic() + request["timeout"]
    return Child(request["number"], pid, os.pidfd_open(pid), reading, deadline)


def _swap(request: dict[str, Any], target: int, root: int, home: int) -> dict[str, Any]:
    """The reply. Nothing is done in the other namespace but the system calls of the swap."""
    step, failed = Step(), None
    try:
        swap_root(step, target, root, request["id_base"], request["run_bytes"])
    except Exception as error:
        failed = error
    try:
        mounts.enter_mounts(home)
    except OSError:
        os._exit(1)  # whoever waits hears of it: nothing more may be done from in there
    return _told(failed, step) if failed else {}


def _told(error: BaseException, step: Step) -> dict[str, Any]:
    number = getattr(error, "errno", None) or errno.EINVAL
    note = f"{step.name} ({error})" if not isinstance(error, OSError) else step.name
    return {"errno": number, "step": note[:1000]}


def _finish(control: socket.socket, child: Child) -> None:
    _, status = os.waitpid(child.pid, 0)
    text = os.read(child.result, MAX_MESSAGE)
    os.close(child.result)
    os.close(child.pidfd)
    reply: dict[str, Any] = {"number": child.number}
    if child.timed_out:
        reply["timeout"] = True
    elif text:
        reply |= json.loads(text)
    elif status:
        reply |= {"errno": errno.EIO, "step": f"ended with status {status}"}
    control.sendall(json.dumps(reply).encode())


def _act(request: dict[str, Any], descriptors: list[int], writing: int) -> None:
    """In the child; does not return."""
    code = 1
    step = Step()
    try:
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: nobody would end it after the helper's death
        if request["act"] == "detach":
            detach(step, descriptors[0], request["mount_id"], lazy=request["lazy"])
        else:
            target, mount = descriptors
            attach(step, target, mount, request["path"], request["owner"])
        code = 0
    except BaseException as error:
        os.write(writing, json.dumps(_told(error, step)).encode())
    finally:
        os._exit(code)


class Step:
    """Where an act is, for the error that names it."""

    name = "start"


def swap_root(step: Step, target: int, root: int, id_base: int, run_bytes: int) -> None:
    with contextlib.ExitStack() as opened:

        def kept(descriptor: int) -> int:
            opened.callback(os.close, descriptor)
            return descriptor

        # Made here, where ids are the host's.
        run = kept(mounts.tmpfs(max_bytes=run_bytes, owner=id_base))
        step.name = "setns"
        mounts.enter_mounts(target)
        step.name = "attach at /new"
        mounts.move_mount(root, "/new")
        for name in KEPT:
            step.name = f"bring /{name}"
            place = kept(_own_directory(root, name, id_base))
            mounts.move_mount(kept(mounts.open_tree(f"/{name}", recursive=True)), place)
        step.name = "mount /run"
        mounts.move_mount(run, kept(_own_directory(root, "run", id_base)))
    step.name = "pivot_root"
    os.fchdir(root)
    mounts.pivot_into_current_directory()


def attach(step: Step, target: int, mount: int, path: str, owner: int | None) -> None:
    step.name = f"{path[:200]} is not a place for a mount"
    parts = _parts(path)
    step.name = "setns"
    mounts.enter_mounts(target)
    step.name = f"open {path[:200]}"
    place = _walk("/", parts, owner)
    step.name = f"attach at {path[:200]}"
    mounts.move_mount(mount, place)


def place(mount: int, root: Path, path: str, *, owner: int) -> None:
    """Attaches a detached mount in a root that is mounted on the host, as `attach` does in one that runs.

    Raises StorageFailed where the path is a trick.
    """
    with mounts.reported(f"attaching at {path[:200]}"):
        parts = _parts(path)
        descriptor = _walk(root, parts, owner)
        try:
            mounts.move_mount(mount, descriptor)
        finally:
            os.close(descriptor)


def _parts(path: str) -> tuple[str, ...]:
    parts = Path(path).parts[1:]
    if not path.startswith("/") or not parts or ".." in parts or parts[0] in (*KEPT, "run"):
        raise OSError(errno.EINVAL, "not a place for a mount")
    return parts


def _walk(root: str | Path, parts: tuple[str, ...], owner: int | None) -> int:
    """The directory there; missing ones are made when an owner is named."""
    descriptor = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    for part in parts:
        inner = _own_directory(descriptor, part, owner)
        os.close(descriptor)
        descriptor = inner
    return descriptor


def detach(step: Step, target: int, mount_id: int, *, lazy: bool) -> None:
    """Unmounts by the mount's own id, wherever its directory was moved to meanwhile. Nothing there is fine."""
    ours = os.open("/proc/self", os.O_PATH | os.O_DIRECTORY)  # that of the host: inside, this process has no number
    step.name = "setns"
    mounts.enter_mounts(target)
    step.name = "unmount"
    for _ in range(DETACH_TRIES):
        with os.fdopen(os.open("mountinfo", os.O_RDONLY, dir_fd=ours), "rb") as table:
            point = mounts.point_of(table.read(), mount_id)
        if point is None:
            return
        mounts.unmount_here(point, lazy=lazy)
    raise OSError(errno.EBUSY, "it moves about")


def _own_directory(parent: int, name: str, owner: int | None) -> int:
    """A directory directly below another; made when missing and an owner is named. Files inside may be hostile."""
    resolve = mounts.BENEATH | mounts.NO_SYMLINKS | mounts.NO_MAGICLINKS
    try:
        return mounts.open_beneath(parent, name, resolve=resolve)
    except FileNotFoundError:
        if owner is None:
            raise
        os.mkdir(name, 0o755, dir_fd=parent)
        made = mounts.open_beneath(parent, name, resolve=resolve, flags=os.O_RDONLY | os.O_DIRECTORY)
        os.fchown(made, owner, owner)
        return made


if __name__ == "__main__":
    gc.freeze()  # the forks share what is there
    with socket.socket(fileno=int(sys.argv[1])) as control:
        serve(control)
