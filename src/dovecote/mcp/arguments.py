"""Arguments that several tools take, as clients see them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, TypeAlias

from mcp.server.mcpserver import Context
from pydantic import Field

from dovecote.sdk import AsyncDovecote

Call: TypeAlias = Context[Any, Any]

# The public client of whoever calls. Asked once a call; raises DovecoteError.
ClientOf: TypeAlias = Callable[[Call], AsyncDovecote]

SNAPSHOT = "^snp_[a-z0-9]{1,64}$"

SandboxId = Annotated[
    str, Field(pattern=r"^ses_[a-z0-9]{1,64}$", description="The sandbox's id, as create_sandbox answered it.")
]
Number = Annotated[int, Field(ge=1, lt=1 << 31, description="The command's number, as run_command answered it.")]
Path = Annotated[
    str, Field(min_length=1, max_length=4096, description="A path in the sandbox. Relative ones start in the home.")
]
User = Annotated[str | None, Field(description="Act as: user or root. The template's own user if left out.")]
MostOutput = Annotated[int, Field(ge=100, le=1 << 20, description="Characters of output in the answer.")]
PortNumber = Annotated[int, Field(ge=1, le=65535)]
