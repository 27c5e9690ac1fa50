"""Sharing work out to threads, with results in order and a bounded number under way."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from imager.errors import UsageError

Item = TypeVar("Item")
Result = TypeVar("Result")

MAX_THREADS = 64

Progress = Callable[[str, int, int], None]
"""Called with a phase, bytes done and bytes in all; 0 and 0 for a step that cannot be measured."""


def no_progress(phase: str, done: int, total: int) -> None:
    """The progress callback for callers who do not care."""


def thread_count(wanted: int | None) -> int:
    """How many threads to use: `wanted`, or one for each core that this process may use."""
    if wanted is None:
        return min(len(os.sched_getaffinity(0)), MAX_THREADS)
    if not 1 <= wanted <= MAX_THREADS:
        raise UsageError(f"between 1 and {MAX_THREADS} threads, not {wanted}")
    return wanted


def ordered_map(
    function: Callable[[Item], Result], items: Iterable[Item], threads: int
) -> Generator[Result, None, None]:
    """`function` of each item, computed in threads, yielded in the items' order.

    At most a few items per thread are under way, so memory does not depend on how many there are.
    The first exception ends it; work not yet begun is dropped. Who may leave it early closes it
    (`contextlib.closing`): otherwise its threads go on using files that are closed meanwhile.
    """
    with ThreadPoolExecutor(threads, thread_name_prefix="imager") as executor:
        under_way: deque[Future[Result]] = deque()
        try:
            for item in items:
                under_way.append(executor.submit(function, item))
                if len(under_way) >= 3 * threads:
                    yield under_way.popleft().result()
            while under_way:
                yield under_way.popleft().result()
        finally:
            for future in under_way:
                future.cancel()
