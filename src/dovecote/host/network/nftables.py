"""libnftables by ctypes: rules in nft's own language, listings as JSON."""

from __future__ import annotations

import ctypes
import json
import threading
from typing import Any

from dovecote.errors import Failed, Unsupported

LIBRARY = "libnftables.so.1"
_OUTPUT_JSON = 1 << 4


def load_library() -> ctypes.CDLL:
    """Raises Unsupported with a hint where the library is not installed."""
    try:
        library = ctypes.CDLL(LIBRARY)
    except OSError as error:
        raise Unsupported(
            f"{LIBRARY} cannot be loaded",
            code="missing_tool",
            hint="install nftables (Debian: apt-get install nftables)",
        ) from error
    library.nft_ctx_new.restype = ctypes.c_void_p
    library.nft_ctx_new.argtypes = [ctypes.c_uint32]
    library.nft_ctx_free.argtypes = [ctypes.c_void_p]
    library.nft_ctx_buffer_output.argtypes = [ctypes.c_void_p]
    library.nft_ctx_buffer_error.argtypes = [ctypes.c_void_p]
    library.nft_ctx_output_set_flags.argtypes = [ctypes.c_void_p, ctypes.c_uint]
    library.nft_run_cmd_from_buffer.argtypes = [ctypes.c_void_p, ctypes.c_char_p]
    for name in ("nft_ctx_get_output_buffer", "nft_ctx_get_error_buffer"):
        getattr(library, name).restype = ctypes.c_char_p
        getattr(library, name).argtypes = [ctypes.c_void_p]
    return library


class Rules:
    """The nftables of the network namespace of the thread that makes this; may be used from any thread."""

    def __init__(self) -> None:
        self._library = load_library()
        self._lock = threading.Lock()
        self._context = self._library.nft_ctx_new(0)
        self._library.nft_ctx_buffer_output(self._context)
        self._library.nft_ctx_buffer_error(self._context)
        self._library.nft_ctx_output_set_flags(self._context, _OUTPUT_JSON)

    def close(self) -> None:
        with self._lock:
            if self._context:
                self._library.nft_ctx_free(self._context)
                self._context = None

    def run(self, commands: str) -> list[dict[str, Any]]:
        """All commands or none. Returns what was listed. Raises Failed with what nft says."""
        with self._lock:
            failed = self._library.nft_run_cmd_from_buffer(self._context, commands.encode())
            output = self._library.nft_ctx_get_output_buffer(self._context)
            said = self._library.nft_ctx_get_error_buffer(self._context)
        if failed:
            raise Failed(f"nftables refused: {said.decode(errors='replace').strip()[:500]}", code="network_failed")
        return list(json.loads(output)["nftables"]) if output else []
