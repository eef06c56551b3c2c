"""How the hooks of functions and apps went lately, in whichever instance: also where no session is left to tell."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from dovecote.control.sessions.hooks import Inside, run_hook
from dovecote.control.sessions.metrics import HOOKS
from dovecote.model.past import HookRun

MOST_FUNCTIONS = 10_000  # that runs are remembered of; whose hooks ran longest ago is forgotten first


class HookRuns:
    """Of each hook of a function the last success and the last failure, since this server began."""

    def __init__(self) -> None:
        self._last: OrderedDict[str, dict[tuple[str, bool], HookRun]] = OrderedDict()  # by function

    async def run(self, inside: Inside, name: str) -> HookRun | None:
        """As `run_hook`, and remembered."""
        run = await run_hook(inside, name)
        if run is None:
            return None
        HOOKS.labels(run.hook, "ok" if run.is_ok else "failed").inc()
        self._last.setdefault(inside.revision.function_id, {})[run.hook, run.is_ok] = run
        self._last.move_to_end(inside.revision.function_id)
        while len(self._last) > MOST_FUNCTIONS:
            self._last.popitem(last=False)
        return run

    def of(self, function_id: str) -> Sequence[HookRun]:
        """Oldest first."""
        return sorted(self._last.get(function_id, {}).values(), key=lambda run: run.at)
