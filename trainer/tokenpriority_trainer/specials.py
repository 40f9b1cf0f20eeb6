"""Which of the student's special tokens the reference has too, under the same text.

Knows how to ask a server, once, how it tokenises them. Knows nothing of documents or weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from tokenpriority import Client, InvalidSequence, Scores, SequenceErrors
from tokenpriority_trainer.surfaces import Bools, Ids


@dataclass(frozen=True, slots=True)
class Specials:
    """The student's special tokens against the reference's tokenizer."""

    ids: frozenset[int]
    """All of the student's."""
    known: Mapping[int, int]
    """Those whose text is one token to the reference, and that token."""
    before: tuple[int, ...] = ()
    """The reference's tokens that its tokenizer puts before every text."""
    after: tuple[int, ...] = ()
    """Those it puts after every text."""

    def written(self, token_ids: Ids) -> Bools:
        """Which tokens' text the reference is given, (T,): all but special tokens that it does not know.

        Those at the ends that its tokenizer adds by itself are left to it.
        """
        tokens = token_ids.tolist()
        theirs = [self.known.get(token, -1) for token in tokens]
        written = np.array([token not in self.ids or token in self.known for token in tokens], np.bool_)
        before, after = len(self.before), len(self.after)
        if before and tuple(theirs[:before]) == self.before:
            written[:before] = False
        if after and tuple(theirs[-after:]) == self.after:
            written[-after:] = False
        return written


def ask_specials(client: Client, model: str | None, tokenizer: PreTrainedTokenizerBase) -> Specials:
    """The student's special tokens as the server's `model` sees them. Raises the client's errors."""
    added = tokenizer.added_tokens_decoder
    texts = {number: token.content for number, token in added.items() if token.special}
    texts |= {number: str(tokenizer.convert_ids_to_tokens(number)) for number in tokenizer.all_special_ids}
    ids = frozenset(texts)
    answers = {
        number: scores
        for number, scores in zip(texts, _answers(client, model, list(texts.values())), strict=True)
        if scores is not None
    }
    if not answers:
        return Specials(ids, {})
    known = {number: found for number, scores in answers.items() if (found := _single(scores)) is not None}
    return Specials(ids, known, *_ends(next(iter(answers.values()))))


def _answers(client: Client, model: str | None, texts: list[str]) -> list[Scores | None]:
    """How the server tokenises each text; None for one it refuses, as it does where no token comes of it."""
    try:
        return [*client.score(texts, model=model, offsets=True)]
    except SequenceErrors as error:
        if not all(isinstance(failure, InvalidSequence) for failure in error.failures.values()):
            raise
        return error.results


def _single(scores: Scores) -> int | None:
    """The one token that stands for the whole text; None if there are more or it leaves part of the text out."""
    filled = _filled(scores)
    if filled.sum() != 1 or np.diff(_offsets(scores)[filled]).item() != len(scores.text or ""):
        return None
    return int(scores.token_ids[filled][0])


def _ends(scores: Scores) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The tokens of no characters before and after the text."""
    filled = np.flatnonzero(_filled(scores))
    first, last = (int(filled[0]), int(filled[-1])) if len(filled) else (0, len(scores.token_ids) - 1)
    return tuple(scores.token_ids[:first].tolist()), tuple(scores.token_ids[last + 1 :].tolist())


def _filled(scores: Scores) -> Bools:
    offsets = _offsets(scores)
    filled: Bools = offsets[:, 1] > offsets[:, 0]
    return filled


def _offsets(scores: Scores) -> np.ndarray[Any, np.dtype[np.int64]]:
    assert scores.offsets is not None  # the client promises them where they were asked for
    return scores.offsets.astype(np.int64)
