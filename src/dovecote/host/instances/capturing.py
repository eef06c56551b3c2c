"""Makes one whole tree of what an instance sees now. Nobody's log knows of it: for builds, whose files nobody keeps."""

from __future__ import annotations

import asyncio
from contextlib import AbstractAsyncContextManager, AsyncExitStack

from dovecote.host.instances.instance import Instance
from dovecote.host.instances.preparing import Parts
from dovecote.host.instances.saving import SNAPSHOT
from dovecote.model.ids import random_text


async def capture(parts: Parts, instance: Instance, still: AbstractAsyncContextManager[object]) -> str:
    """Digest of the tree. `still` is around the moment that it is of. Raises StorageFailed."""
    assert instance.claim is not None
    workspace, snapshot = instance.claim.workspace, SNAPSHOT + random_text(12)
    async with AsyncExitStack() as undo:
        undo.push_async_callback(parts.disks.delete, snapshot)
        await parts.disks.write_out(instance.disk)
        async with still:
            path = await parts.disks.snapshot(instance.disk, snapshot)
        async with parts.roots.merged(workspace, path / "upper", id_base=instance.id_base) as merged:
            saved = await asyncio.to_thread(
                parts.trees.save_delta,
                path / "upper",
                merged,
                id_base=instance.id_base,
                template=workspace.template,
                previous=workspace.tree,
            )
    return await parts.images.flatten(saved.digest)
