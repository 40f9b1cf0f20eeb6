"""Documents sent as text to a reference of another tokenizer, and its scores brought back to the student's tokens.

Knows what of a document is sent and how the answer is checked. The text behind tokens is `surfaces.py`, the special
tokens are `specials.py`, the arithmetic is `tokenpriority.projection`. Knows nothing of batches' tensors or of losses.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from tokenpriority import Client, Scores
from tokenpriority.projection import project
from tokenpriority.spans import Surface
from tokenpriority_trainer.documents import Document
from tokenpriority_trainer.errors import WeightError
from tokenpriority_trainer.specials import ask_specials
from tokenpriority_trainer.surfaces import Surfaces

UNJUDGED = 1.0
"""Weight of a trained token of which the reference says nothing: that of plain fine-tuning. With 0 a student whose
end-of-sequence token the reference has not would never learn to end."""


@dataclass(frozen=True, slots=True)
class Question:
    """What the server is asked about one document."""

    document: Document
    surface: Surface
    """The document's text and the characters of its T tokens."""
    start: int | None
    """Where in the text the first trained token begins; None if none has text, and there is nothing to ask."""

    @property
    def sequence(self) -> dict[str, Any]:
        """The document as the server takes it; what stands before the first trained token is context alone.

        After it all is scored, so a method that decides over a whole sequence also sees untrained tokens further on:
        which of its own tokens those are, only the server can tell.
        """
        text = self.surface.text
        return {"prompt": text[: self.start], "completion": text[self.start :]} if self.start else {"text": text}


class Projector:
    """Asks about documents in text and answers in the student's tokens.

    Special tokens that the reference has under the same text are part of the text; the others are left out of it.
    Raises ConfigError if the tokenizer is not a fast one, the client's errors if the server cannot say how it
    tokenises the special ones.
    """

    def __init__(self, client: Client, model: str | None, tokenizer: PreTrainedTokenizerBase) -> None:
        self._surfaces = Surfaces(tokenizer)
        self._specials = ask_specials(client, model, tokenizer)

    def question(self, document: Document) -> Question:
        """What to ask about a document."""
        surface = self._surfaces.of(document.token_ids, self._specials.written(document.token_ids))
        assert surface.offsets is not None
        starts, ends = surface.offsets[:, 0], surface.offsets[:, 1]
        judged = document.trained & (ends > starts)
        return Question(document, surface, int(starts[judged].min()) if judged.any() else None)


def projected(questions: list[Question], answers: list[Scores]) -> list[Scores]:
    """The scores of each document by the student's tokens, from the answers to those that were asked.

    Raises WeightError if there are fewer or more answers than questions, or one is about another text.
    """
    asked = sum(question.start is not None for question in questions)
    if len(answers) != asked:
        raise WeightError(f"{asked} documents were sent but scores of {len(answers)} came back")
    left = iter(answers)
    return [_projected(question, left) for question in questions]


def _projected(question: Question, left: Iterator[Scores]) -> Scores:
    document = question.document
    if question.start is None:
        nothing = np.full(len(document.token_ids), np.nan, np.float32)
        weights = np.where(document.trained, np.float32(UNJUDGED), np.float32(0))
        return Scores(id=0, token_ids=document.token_ids, logprobs=nothing, priorities=weights)
    scores, text = next(left), question.surface.text
    if scores.text != text or scores.offsets is None or scores.offsets.max() > len(text):
        raise WeightError(f"{document}: the server scored another text than was sent")
    try:
        logprobs, priorities = project(
            scores.offsets,
            question.surface.offsets,
            logprobs=scores.logprobs,
            priorities=scores.priorities,
            mask=document.trained,
            unscored=UNJUDGED,
        )
    except ValueError as error:
        raise WeightError(f"{document}: the server's offsets cannot be used: {error}") from None
    return Scores(
        id=scores.id,
        token_ids=document.token_ids,
        logprobs=logprobs,
        priorities=priorities,
        cached=scores.cached,
    )
