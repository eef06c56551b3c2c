"""Blocking work on many things at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

A = TypeVar("A")
B = TypeVar("B")

WORKERS = 2  # for what a processor does
ASKERS = 4  # for what mostly waits for the store


def in_threads(call: Callable[[A], B], items: Sequence[A], workers: int = WORKERS) -> list[B]:
    """Results in order. The first error stops what has not begun."""
    if len(items) < 2:
        return [call(item) for item in items]
    with ThreadPoolExecutor(workers, thread_name_prefix="storage") as pool:
        futures = [pool.submit(call, item) for item in items]
        try:
            return [future.result() for future in futures]
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
