"""How much of a set of sequences the server has stored.

Knows the answer of POST /v1/coverage and its sums. Knows nothing of what is stored or how it is asked.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Self

from tokenpriority.errors import ContractBroken
from tokenpriority.exchange import Call, Question, check_answer, failure_of
from tokenpriority.schema import CoverageItem, CoverageResponse
from tokenpriority.scores import ScoreFailure
from tokenpriority.sequences import Item


@dataclass(frozen=True, slots=True)
class Covered:
    """How much of one sequence is stored, under every model the call reads."""

    id: str | int
    """The caller's id, else the sequence's number in the call, from 0."""
    tokens: int
    stored_tokens: int
    """Leading tokens that need no engine; all of `tokens` if the sequence is stored whole."""


@dataclass(frozen=True, slots=True)
class Coverage:
    """How much of a set is stored. Equal sequences count each; sums are over those that can be scored."""

    items: tuple[Covered | ScoreFailure, ...]
    """One per sequence, in order: what is stored of it, or why it cannot be scored."""
    stored_sequences: int
    """Sequences stored whole: those that `cached_only` answers."""
    failed_sequences: int
    tokens: int
    stored_tokens: int

    @property
    def complete(self) -> bool:
        """Whether every sequence is stored whole, so that the same call with `cached_only` answers them all."""
        return self.stored_sequences == len(self.items)

    @classmethod
    def of(cls, items: Iterable[Covered | ScoreFailure]) -> Self:
        """The coverage of these sequences together."""
        every = tuple(items)
        covered = [item for item in every if isinstance(item, Covered)]
        return cls(
            items=every,
            stored_sequences=sum(item.stored_tokens == item.tokens for item in covered),
            failed_sequences=len(every) - len(covered),
            tokens=sum(item.tokens for item in covered),
            stored_tokens=sum(item.stored_tokens for item in covered),
        )


def read_coverage(response: CoverageResponse, items: Sequence[Item], call: Call) -> list[Covered | ScoreFailure]:
    """What is stored of each item, in order, every promise checked. Raises ContractBroken."""
    check_answer(response, items, call)
    results = [_covered(result, item) for result, item in zip(response.results, items, strict=True)]
    sums = Coverage.of(results)
    asked = (len(items) - sums.failed_sequences, sums.stored_sequences, sums.tokens, sums.stored_tokens)
    answered = (response.sequences, response.stored_sequences, response.tokens, response.stored_tokens)
    if asked != answered:
        raise ContractBroken(f"sums of the coverage: {asked} over the results, the server answered {answered}")
    return results


COVERAGE = Question("/v1/coverage", CoverageResponse, read_coverage)


def _covered(result: CoverageItem, item: Item) -> Covered | ScoreFailure:
    if failure := failure_of(result, item):
        return failure
    tokens, stored = result.tokens, result.stored_tokens
    if not isinstance(tokens, int) or not isinstance(stored, int) or not 0 <= stored <= tokens:
        raise ContractBroken(f"sequence {item.id!r}: {stored} of {tokens} tokens cannot be stored")
    if item.token_ids is not None and tokens != len(item.token_ids):
        raise ContractBroken(f"sequence {item.id!r}: {len(item.token_ids)} tokens were sent, the server says {tokens}")
    return Covered(item.id, tokens, stored)
