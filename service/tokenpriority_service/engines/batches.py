"""Which sequences share a forward.

Knows lengths and the token budget. Knows nothing of ids, models or queues.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence


def plan_batches(lengths: Sequence[int], max_tokens: int, bounds: Sequence[int] = ()) -> list[list[int]]:
    """Indices of `lengths` in batches, longest first; each index is in exactly one batch.

    A batch of b sequences, the longest of length L, holds b * L <= `max_tokens` padded tokens, or one sequence alone.
    No sequence is padded by more than a third of its length: short ones are cheaper in a forward of their own.
    Sequences up to one of the ascending `bounds` never share a batch with longer ones.
    """
    batches: list[list[int]] = []
    longest = 0
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        length = lengths[index]
        fits = bool(batches) and (len(batches[-1]) + 1) * longest <= max_tokens
        if not fits or 4 * length < 3 * longest or bisect_left(bounds, length) < bisect_left(bounds, longest):
            batches.append([])
            longest = length
        batches[-1].append(index)
    return batches
