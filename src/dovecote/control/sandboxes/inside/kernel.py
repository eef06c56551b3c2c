"""Runs one Jupyter kernel for Dovecote: requests on stdin, events on descriptor 3, a JSON object a line each way."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import json
import os
import queue
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import deque
from pathlib import Path
from typing import Any

import zmq
import zmq.asyncio
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import AsyncKernelManager

sys.path.insert(0, str(Path(__file__).parent))
from dovecote_surroundings import SURROUNDINGS
from dovecote_wire import Output, Wire

START_WITHIN = 60.0  # seconds
YIELD_WITHIN = 5.0  # seconds that an interrupted kernel has before it is killed
IDLE_WITHIN = 2.0  # seconds after its reply in which a kernel says that it is idle
LOOK_EVERY = 0.5  # seconds
MOST_WAITING = 64  # executions
MOST_REQUEST = 8 << 20  # bytes of a line
MOST_PENDING = 8 << 20  # bytes on their way to a slow reader before the next execution begins
ADJUSTMENT = 500  # the kernel is the first to go when memory runs out, so that somebody is left to say so
PR_SET_PDEATHSIG = 1
# Leaves no name behind.
SETUP = (
    "(lambda path: (path.insert(0, {directory!r}), __import__('dovecote_rich'), path.remove({directory!r})))"
    "(__import__('sys').path)"
)


class Kernel:
    """One process of a kernel at a time, with a client connected to it."""

    def __init__(self, spec: str, setup: str | None) -> None:
        self._spec = spec
        self._setup = setup
        self._context = zmq.asyncio.Context()
        self._context.setsockopt(zmq.RCVHWM, 0)
        place = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
        self._directory = tempfile.mkdtemp(prefix="dovecote-", dir=place)
        self._generation = 0
        self._manager: Any = None
        self.client: Any = None

    async def start(self) -> None:
        self._generation += 1
        self._manager = AsyncKernelManager(
            kernel_name=self._spec,
            transport="ipc",
            ip=f"{self._directory}/{self._generation}",
            context=self._context,
            connection_file=f"{self._directory}/{self._generation}.json",
        )
        # Python's kernel captures both descriptors and repeats what it captured; what another one misses is not lost.
        past = subprocess.DEVNULL if self._setup else 2
        await self._manager.start_kernel(cwd=os.getcwd(), stdout=past, stderr=past, preexec_fn=_tied(os.getpid()))
        with contextlib.suppress(Exception):
            Path(f"/proc/{self._manager.provisioner.pid}/oom_score_adj").write_text(str(ADJUSTMENT))
        self.client = self._manager.client()
        self.client.start_channels()
        await self.client.wait_for_ready(timeout=START_WITHIN)
        if self._setup:
            await self.quietly(self._setup)

    async def quietly(self, code: str) -> None:
        """Runs code of ours that leaves no trace in the history."""
        request = self.client.execute(code, silent=True, store_history=False, allow_stdin=False)
        while True:
            reply = await self.client.get_shell_msg(timeout=START_WITHIN)
            if reply["parent_header"].get("msg_id") == request:
                return

    async def is_alive(self) -> bool:
        return bool(await self._manager.is_alive())

    async def interrupt(self) -> None:
        with contextlib.suppress(Exception):
            await self._manager.interrupt_kernel()

    async def stop(self) -> str:
        """Kills it; answers how it had ended by itself, if it had."""
        code = getattr(getattr(self._manager.provisioner, "process", None), "returncode", None)
        if self.client is not None:
            self.client.stop_channels()
        with contextlib.suppress(Exception):
            os.killpg(self._manager.provisioner.pid, signal.SIGKILL)
        with contextlib.suppress(Exception):
            await self._manager.shutdown_kernel(now=True)
        if code is None or code >= 0:
            return "it ended" if code is None else f"it ended with exit code {code}"
        why = ", as when memory runs out" if code == -signal.SIGKILL else ""
        return f"it was ended by signal {-code}{why}"

    async def restart(self) -> None:
        await self.stop()
        await self.start()

    def remove(self) -> None:
        shutil.rmtree(self._directory, ignore_errors=True)


class Bridge:
    """Executions one after the other; interrupts at any time."""

    def __init__(self, wire: Wire, kernel: Kernel, language: str) -> None:
        self._wire = wire
        self._kernel = kernel
        self._language = language
        self._waiting: deque[dict[str, Any]] = deque()
        self._came = asyncio.Event()
        self._current = ""
        self._stopping = ""  # why the current execution is to end

    def take(self, request: dict[str, Any]) -> None:
        kind, name = request.get("op"), str(request.get("id"))
        if kind == "execute":
            if len(self._waiting) >= MOST_WAITING:
                self._wire.send(type="refused", id=name)
                return
            self._wire.send(type="queued", id=name)
            self._waiting.append(request)
            self._came.set()
        elif kind == "interrupt":
            only = request.get("execution")
            if only is None or only == self._current:
                self._stop("interrupted")
            elif any(each["id"] == only for each in self._waiting):
                self._waiting = deque(each for each in self._waiting if each["id"] != only)
                self._wire.send(type="done", id=only, status="interrupted", count=None, dropped=0)
            self._wire.send(type="answer", id=name)
        elif kind == "follow":
            there = [self._current, *(each["id"] for each in self._waiting)]
            self._wire.send(type="answer", id=name, is_there=request.get("execution") in there)

    def _stop(self, why: str) -> None:
        if self._current and not self._stopping:
            self._stopping = why

    async def run(self) -> None:
        while True:
            await self._came.wait()
            if self._waiting:
                await self._wire.drained(MOST_PENDING)
                await self._execute(self._waiting.popleft())
            else:
                self._came.clear()

    async def _execute(self, request: dict[str, Any]) -> None:
        self._current, self._stopping = request["id"], ""
        output = Output(self._wire, request["id"], int(request["max_output"]))
        self._wire.send(type="began", id=request["id"])
        env = request.get("env") or {}
        surroundings = SURROUNDINGS.get(self._language)
        if env and surroundings is None:
            output.error("Unsupported", "variables of one execution go with Python, Bash and JavaScript only", [])
            status, count = "error", None
        else:
            enter, leave = surroundings(env) if env and surroundings else ("", "")
            if enter:
                await self._kernel.quietly(enter)
            try:
                status, count = await self._watch(request["code"], float(request["timeout"]), output)
            except Exception as error:
                output.error("KernelFailed", f"the kernel's client failed: {error!r}", [])
                status, count = "died", None
                await self._kernel.restart()
            if leave and status != "died":
                await self._kernel.quietly(leave)
        self._current = ""
        self._wire.send(type="done", id=request["id"], status=status, count=count, dropped=output.dropped)

    async def _watch(self, code: str, timeout: float, output: Output) -> tuple[str, int | None]:
        client, loop = self._kernel.client, asyncio.get_running_loop()
        parent = client.execute(code, allow_stdin=False, stop_on_error=False)
        told = _Told(output, parent)
        pumps = [asyncio.ensure_future(told.pump(get)) for get in (client.get_iopub_msg, client.get_shell_msg)]
        deadline, killed_at = loop.time() + timeout, float("inf")
        try:
            while not told.is_over(loop.time()):
                with contextlib.suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(told.heard.wait(), min(LOOK_EVERY, max(0.01, deadline - loop.time())))
                told.heard.clear()
                if not self._stopping and loop.time() >= deadline:
                    self._stopping = "timed_out"
                if self._stopping and killed_at == float("inf"):
                    killed_at, deadline = loop.time() + YIELD_WITHIN, float("inf")
                    await self._kernel.interrupt()
                if loop.time() >= killed_at:
                    await self._kernel.restart()
                    output.error("KernelKilled", "the kernel did not heed the interrupt and was started again", [])
                    return self._stopping, told.count
                if not told.has_reply and not await self._kernel.is_alive():
                    why = await self._kernel.stop()
                    output.error("KernelDied", f"the kernel died: {why}; it was started again, without its state", [])
                    await self._kernel.start()
                    return "died", told.count
        finally:
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)
        return self._stopping or told.status, told.count


class _Told:
    """What a kernel has said about one execution so far."""

    def __init__(self, output: Output, parent: str) -> None:
        self._output = output
        self._parent = parent
        self.heard = asyncio.Event()
        self.has_reply = False
        self.is_idle = False
        self.status = "ok"
        self.count: int | None = None
        self._replied_at = 0.0

    def is_over(self, now: float) -> bool:
        # A kernel that says very much may lose messages, the one about being idle among them.
        return self.has_reply and (self.is_idle or now - self._replied_at > IDLE_WITHIN)

    async def pump(self, get: Any) -> None:
        while True:
            try:
                message = await get(timeout=LOOK_EVERY)
            except queue.Empty:
                continue
            if message["parent_header"].get("msg_id") == self._parent:
                self._hear(message["msg_type"], message["content"])

    def _hear(self, kind: str, content: dict[str, Any]) -> None:
        if kind == "stream":
            self._output.stream("stderr" if content["name"] == "stderr" else "stdout", content["text"])
        elif kind in ("execute_result", "display_data", "update_display_data"):
            self._output.result(content["data"], is_main=kind == "execute_result")
        elif kind == "error":
            self.status = "error"
            self._output.error(content["ename"], content["evalue"], content["traceback"])
        elif kind == "execute_reply":
            self.has_reply = True
            self._replied_at = asyncio.get_running_loop().time()
            self.count = content.get("execution_count")
            if content.get("status") != "ok":
                self.status = "error"
        elif kind == "status" and content["execution_state"] == "idle":
            self.is_idle = True
        else:
            return
        if kind in ("execute_reply", "status"):
            self.heard.set()


def _tied(parent: int) -> Any:
    """Run in the kernel's process before its program: it ends when we do."""
    prctl = ctypes.CDLL(None).prctl

    def tie() -> None:
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)

    return tie


def _spec_for(language: str) -> str | None:
    specs = KernelSpecManager().get_all_specs()
    named = [name for name, found in specs.items() if found["spec"].get("language", "").lower() == language]
    if language == "python" and "python3" in named:
        return "python3"
    return language if language in specs else min(named, default=None)


async def _requests() -> asyncio.StreamReader:
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(limit=MOST_REQUEST)
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    return reader


async def _converse(reader: asyncio.StreamReader, bridge: Bridge) -> None:
    """Until stdin ends."""
    running = asyncio.ensure_future(bridge.run())
    try:
        while True:
            reading = asyncio.ensure_future(reader.readline())
            await asyncio.wait([reading, running], return_when=asyncio.FIRST_COMPLETED)
            if running.done():
                running.result()
            line = reading.result()
            if not line:
                return
            bridge.take(json.loads(line))
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def _serve(language: str) -> int:
    wire = Wire(3)
    spec = _spec_for(language)
    if spec is None:
        wire.send(type="failed", code="no_kernel", message=f"no Jupyter kernel for {language} is installed")
        await wire.drained()
        return 1
    is_python = language == "python"
    kernel = Kernel(spec, SETUP.format(directory=str(Path(__file__).parent)) if is_python else None)
    try:
        reader = await _requests()
        await kernel.start()
        wire.send(type="ready", kernel=spec)
        await _converse(reader, Bridge(wire, kernel, language))
        return 0
    except Exception as error:
        wire.send(type="failed", code="kernel_failed", message=f"the kernel does not start: {error!r}"[:2000])
        await wire.drained()
        return 1
    finally:
        await kernel.stop()
        kernel.remove()


def _main() -> int:
    loop = asyncio.new_event_loop()
    task = loop.create_task(_serve(sys.argv[1]))
    loop.add_signal_handler(signal.SIGTERM, task.cancel)
    try:
        return loop.run_until_complete(task)
    except asyncio.CancelledError:
        return 0


if __name__ == "__main__":
    sys.exit(_main())
