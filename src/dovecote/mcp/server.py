"""The MCP server: all tools, and what an error looks like to a client."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from typing import Any

from mcp.server.mcpserver import Context, MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from mcp_types import CallToolResult, InputRequiredResult, TextContent, ToolAnnotations
from pydantic import ValidationError

from dovecote import __version__
from dovecote.mcp.arguments import ClientOf
from dovecote.mcp.code import CodeTools
from dovecote.mcp.commands import CommandTools
from dovecote.mcp.files import FileTools
from dovecote.mcp.ports import PortTools
from dovecote.mcp.sandboxes import SandboxTools
from dovecote.sdk import DovecoteError

INSTRUCTIONS = (
    "Sandboxes are Linux machines of your own. create_sandbox answers an id; give it to every other tool as `sandbox`. "
    "Relative paths and commands start in the home, /home/user. Servers go through start_server or run in the "
    "background and listen on 0.0.0.0; expose_port gives their address. A sandbox rests when it is not used and wakes "
    "by itself; delete it when it is not needed any more."
)

LOOKS = ToolAnnotations(read_only_hint=True, open_world_hint=False)
ADDS = ToolAnnotations(read_only_hint=False, destructive_hint=False, open_world_hint=False)
CHANGES = ToolAnnotations(read_only_hint=False, destructive_hint=True, open_world_hint=False)
RUNS = ToolAnnotations(read_only_hint=False, destructive_hint=True, open_world_hint=True)

log = logging.getLogger("dovecote.mcp")


class ToolServer(MCPServer[Any]):
    """Answers each failure as JSON with code, message and hint, in one shape, for a model to read and act on."""

    async def call_tool(
        self, name: str, arguments: dict[str, Any], context: Context[Any, Any] | None = None
    ) -> CallToolResult | InputRequiredResult:
        try:
            return await super().call_tool(name, arguments, context)
        except ToolError as error:
            return _failed(name, error.__cause__ or error)


def build_server(client_of: ClientOf) -> ToolServer:
    """All tools. `client_of` gives the public client of whoever makes a call."""
    server = ToolServer(
        "dovecote",
        title="Dovecote",
        description="Sandboxes that wake in a moment, sleep for nothing and keep their files.",
        instructions=INSTRUCTIONS,
        version=__version__,
        log_level="WARNING",
        subscriptions=False,
    )
    for tool, kind in _tools(client_of):
        server.add_tool(tool, annotations=kind)
    return server


def _tools(client_of: ClientOf) -> list[tuple[Callable[..., Any], ToolAnnotations]]:
    sandboxes, commands = SandboxTools(client_of), CommandTools(client_of)
    code, files, ports = CodeTools(client_of), FileTools(client_of), PortTools(client_of)
    return [
        (sandboxes.create_sandbox, ADDS),
        (sandboxes.list_sandboxes, LOOKS),
        (sandboxes.get_sandbox, LOOKS),
        (sandboxes.snapshot_sandbox, ADDS),
        (sandboxes.fork_sandbox, ADDS),
        (sandboxes.pause_sandbox, ADDS),
        (sandboxes.set_timeout, ADDS),
        (sandboxes.delete_sandbox, CHANGES),
        (commands.run_command, RUNS),
        (commands.command_output, LOOKS),
        (commands.list_commands, LOOKS),
        (commands.write_stdin, RUNS),
        (commands.stop_command, CHANGES),
        (code.run_code, RUNS),
        (code.create_context, ADDS),
        (code.restart_context, CHANGES),
        (files.read_file, LOOKS),
        (files.write_file, CHANGES),
        (files.list_files, LOOKS),
        (files.stat_file, LOOKS),
        (files.remove_file, CHANGES),
        (ports.list_ports, LOOKS),
        (ports.expose_port, LOOKS),
        (ports.start_server, RUNS),
        (ports.publish_app, RUNS),
    ]


def _failed(name: str, cause: BaseException) -> CallToolResult:
    code, message, hint = _told(name, cause)
    text = json.dumps({"error": {"code": code, "message": message, "hint": hint}}, ensure_ascii=False)
    return CallToolResult(content=[TextContent(type="text", text=text)], is_error=True)


def _told(name: str, cause: BaseException) -> tuple[str, str, str]:
    if isinstance(cause, DovecoteError):
        return cause.code, cause.message, cause.hint
    if isinstance(cause, ValidationError):
        first, *others = cause.errors(include_url=False, include_context=False, include_input=False)
        place = ".".join(str(part) for part in first["loc"])
        more = f"; {len(others)} more are wrong" if others else ""
        return "invalid", f"{place}: {first['msg']}{more}", f"the input schema of {name} says what it takes"
    if isinstance(cause, ToolError):
        return "no_such_tool", f"no tool {name[:100]!r}", "tools/list says which there are"
    log.error("tool %s failed", name, exc_info=cause)
    return "internal", "something went wrong on our side", "the log of the server has it"
