"""Log-probs and priorities carried from one tokenizer's tokens to another's, through the characters they share.

Knows two lists of offsets into one text, and numpy. Knows nothing of tokenizers, models or methods.

Each side's tokens are first laid end to end along the text, so that every character belongs to exactly one place of
one token on either side:

- Several tokens inside one character, as when a byte-level vocabulary splits its UTF-8 bytes, hold equal parts of it,
  in their order.
- Characters between two tokens, such as spaces that a tokenizer leaves out, belong to the token after them. The first
  and the last given token reach as far as the wanted ones do.

What two tokens share is then the length of an intersection. A given token's log-prob is split over the wanted tokens
in proportion to it, so no part is lost or counted twice; a wanted token's priority is the mean of those it overlaps,
weighted by it.

Tokens of no characters (start = end: the special tokens that a tokenizer adds) have no share of the text. They are
matched with such tokens of the other side at the same place (before the text, after it, between the same
characters), in their order.

Shapes: n given tokens, m wanted tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

Integers = np.ndarray[Any, np.dtype[np.int64]]
Bools = np.ndarray[Any, np.dtype[np.bool_]]
Floats = np.ndarray[Any, np.dtype[np.floating[Any]]]

UNIT = 2**32
"""Parts of a character that positions are counted in: integers, so that equal positions are equal exactly."""

LIMIT = 2**22
"""Most characters of a text: memory grows with them, about 56 bytes each."""


def project(
    given: Any,
    wanted: Any,
    *,
    logprobs: Floats,
    priorities: Floats,
    mask: Bools | None = None,
    unscored: float = 0.0,
) -> tuple[Floats, Floats]:
    """Log-probs (m,) and priorities (m,) of the wanted tokens, from those (n,) of the given ones.

    `given` [n, 2] and `wanted` [m, 2] are characters [start, end) of one text, in the order of the text. `logprobs` is
    NaN where a given token was not scored (index 0, which nothing predicts): it then counts for nothing, and a wanted
    token takes the mean of the others it overlaps. One that overlaps no scored token, or is of no characters and
    without a counterpart, gets log-prob NaN and priority `unscored`. Where `mask` (m,) is False the priority is 0.

    Within the wanted tokens' text the log-probs add up to the same total, to the rounding of the inputs' dtypes,
    which the results keep (sums are float64). Each priority lies between the least and the greatest it is the mean of;
    where a token is the same on both sides both numbers are, bit by bit.

    Raises ValueError naming the argument if a shape or dtype is wrong, offsets are negative, beyond LIMIT, end before
    they start or start before the token before them, or the priority of a scored token is not finite.
    """
    first, second = _checked(given, "given"), _checked(wanted, "wanted")
    _check_values(len(first), len(second), logprobs, priorities, mask)
    second_line = _Line.of(second)
    first_line = _Line.of(first, reach=second_line)
    scored = ~np.isnan(logprobs)
    sums, means = np.full(len(second), np.nan), np.full(len(second), float(unscored))
    for one, other in _counterparts(first_line, second_line):
        if scored[one]:
            sums[other], means[other] = logprobs[one], priorities[one]
    if len(first_line.tokens) and len(second_line.tokens):
        shared = _Shared.of(first_line, second_line, scored)
        known = shared.wanted[shared.known]
        sums[known] = shared.sums(logprobs)
        means[known] = shared.means(priorities)
    if mask is not None:
        means[~mask] = 0.0
    return sums.astype(logprobs.dtype), means.astype(priorities.dtype)


@dataclass(frozen=True, slots=True)
class _Line:
    """One side's tokens laid end to end: token `tokens[i]` holds [edges[i], edges[i + 1]), in UNITs of a character."""

    tokens: Integers
    """Indices of the tokens that have characters."""
    edges: Integers
    empty: Integers
    """Indices of those that have none."""
    places: Integers
    """Where on the line each of them stands."""

    @classmethod
    def of(cls, offsets: Integers, reach: _Line | None = None) -> _Line:
        """The line of these offsets, at least as long as `reach`."""
        filled = offsets[:, 1] > offsets[:, 0]
        tokens, empty = np.flatnonzero(filled), np.flatnonzero(~filled)
        edges = np.zeros(1, np.int64)
        if len(tokens):
            starts, ends = offsets[tokens, 0], offsets[tokens, 1]
            starts[1:] = np.minimum(starts[1:], np.maximum.accumulate(ends)[:-1])
            ends[-1] = ends.max()
            if reach is not None and len(reach.tokens):
                starts[0] = min(starts[0], reach.edges[0] // UNIT)
                ends[-1] = max(ends[-1], reach.edges[-1] // UNIT)
            edges = starts[0] * UNIT + np.concatenate([edges, np.cumsum(_lengths(starts, ends))])
        return cls(tokens, edges, empty, edges[np.cumsum(filled)[empty]])


def _lengths(starts: Integers, ends: Integers) -> Integers:
    """What each token holds of its characters, (n,) in UNITs; every character between the ends is in some token."""
    counts = ends - starts
    begins = np.cumsum(counts) - counts
    character = np.arange(counts.sum()) - np.repeat(begins - starts, counts) - starts[0]  # of every token in turn
    holders = np.bincount(character)
    order = np.argsort(character, kind="stable")
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order)) - np.repeat(np.cumsum(holders) - holders, holders)
    held = holders[character]
    lengths: Integers = np.add.reduceat((rank + 1) * UNIT // held - rank * UNIT // held, begins)
    return lengths


@dataclass(frozen=True, slots=True)
class _Shared:
    """The pieces into which the edges of both sides cut the text of the wanted tokens, in order."""

    given: Integers
    """The given token of each piece."""
    part: Floats
    """The piece as a part of that token; 0 if it was not scored."""
    weight: Floats
    """The piece as a part of what its wanted token shares with scored ones; 0 if it shares nothing with any."""
    begins: Integers
    """The first piece of each wanted token that has characters."""
    wanted: Integers
    """These tokens."""
    known: Bools
    """Which of them overlap a scored token."""

    @classmethod
    def of(cls, first: _Line, second: _Line, scored: Bools) -> _Shared:
        inner = first.edges[(first.edges > second.edges[0]) & (first.edges < second.edges[-1])]
        cuts = np.union1d(second.edges, inner)
        begins = np.searchsorted(cuts, second.edges[:-1])
        own = np.searchsorted(first.edges, cuts[:-1], side="right") - 1
        given = first.tokens[own]
        length = np.diff(cuts) * scored[given]
        total = np.add.reduceat(length, begins)
        each = np.repeat(total, np.diff(np.append(begins, len(length))))
        return cls(
            given=given,
            part=length / np.diff(first.edges)[own],
            weight=length / np.maximum(each, 1),
            begins=begins,
            wanted=second.tokens,
            known=total > 0,
        )

    def sums(self, logprobs: Floats) -> Floats:
        """Sum of the parts of the given log-probs, for the known tokens."""
        values = np.where(self.part > 0, logprobs[self.given], 0).astype(np.float64)
        sums: Floats = np.add.reduceat(values * self.part, self.begins)[self.known]
        return sums

    def means(self, priorities: Floats) -> Floats:
        """Weighted mean of the given priorities, for the known tokens; rounding never takes it past the extremes."""
        counts = self.weight > 0
        values = np.where(counts, priorities[self.given], 0).astype(np.float64)
        least = np.minimum.reduceat(np.where(counts, values, np.inf), self.begins)
        greatest = np.maximum.reduceat(np.where(counts, values, -np.inf), self.begins)
        means = np.add.reduceat(values * self.weight, self.begins)
        clipped: Floats = np.clip(means[self.known], least[self.known], greatest[self.known])
        return clipped


def _counterparts(first: _Line, second: _Line) -> list[tuple[int, int]]:
    """Pairs (given, wanted) of tokens of no characters: the first at a place with the first, and so on."""

    def numbered(line: _Line) -> dict[tuple[int, int], int]:
        seen: dict[int, int] = {}
        found = {}
        for place, token in zip(line.places.tolist(), line.empty.tolist(), strict=True):
            seen[place] = seen.get(place, -1) + 1
            found[place, seen[place]] = token
        return found

    given = numbered(first)
    return [(given[key], token) for key, token in numbered(second).items() if key in given]


def _checked(offsets: Any, name: str) -> Integers:
    array = np.asarray(offsets)
    if array.ndim != 2 or array.shape[1] != 2 or (array.size and array.dtype.kind not in "iu"):
        raise ValueError(f"{name}: offsets are integers [tokens, 2], got {array.dtype} of shape {array.shape}")
    pairs: Integers = array.astype(np.int64)
    starts, ends = pairs[:, 0], pairs[:, 1]
    wrong = (starts < 0) | (ends < starts) | (ends > LIMIT)
    if wrong.any():
        token = int(np.argmax(wrong))
        raise ValueError(
            f"{name}: token {token}: offsets are 0 <= start <= end <= {LIMIT} characters, got {pairs[token].tolist()}"
        )
    filled = np.flatnonzero(ends > starts)
    back = np.diff(starts[filled]) < 0
    if back.any():
        token = int(filled[1:][np.argmax(back)])
        raise ValueError(f"{name}: token {token} starts before the one before it: {pairs[token].tolist()}")
    return pairs


def _check_values(n: int, m: int, logprobs: Floats, priorities: Floats, mask: Bools | None) -> None:
    for name, array, length in (("logprobs", logprobs, n), ("priorities", priorities, n), ("mask", mask, m)):
        if array is not None and array.shape != (length,):
            raise ValueError(f"{name}: must be of shape {(length,)}, got {array.shape}")
    for name, array in (("logprobs", logprobs), ("priorities", priorities)):
        if array.dtype.kind != "f":
            raise ValueError(f"{name}: must be floating-point numbers, got {array.dtype}")
    bad = ~np.isnan(logprobs) & ~np.isfinite(priorities)
    if bad.any():
        token = int(np.argmax(bad))
        raise ValueError(f"priorities: that of the scored token {token} is {priorities[token]}")
