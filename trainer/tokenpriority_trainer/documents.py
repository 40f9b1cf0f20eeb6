"""The documents inside a collated batch.

Knows how TRL lays documents out: one per row behind a padding mask, or several per row told apart by positions that
start again at 0. Knows nothing of where weights come from or what they do. Runs on the CPU, in the collator.

Shapes: R rows, C columns of the batch; T tokens of one document.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from tokenpriority_trainer.errors import WeightError

IGNORED = -100
"""The label of a token that is not trained on."""

Floats = np.ndarray[Any, np.dtype[np.float32]]
Bools = np.ndarray[Any, np.dtype[np.bool_]]


@dataclass(frozen=True, slots=True, eq=False)
class Document:
    """Tokens [start, end) of a row, as one sequence of their own."""

    row: int
    start: int
    end: int
    token_ids: np.ndarray[Any, np.dtype[np.uint32]]
    """(T,)"""
    trained: Bools
    """(T,), True where the token's label is trained on; False at index 0, which nothing predicts."""

    def __str__(self) -> str:
        return f"the document at row {self.row}, tokens {self.start} to {self.end} of the batch"


def documents(batch: Mapping[str, Any]) -> list[Document]:
    """The documents of a collated batch, by row and then by position; they tile its unmasked tokens exactly.

    Reads `input_ids`, `labels` and `attention_mask` or `position_ids`, tensors of shape (R, C) on the CPU. Without a
    mask every token counts, so padding after flattened documents comes out as documents of one token, which train
    nothing. Raises WeightError if a row's mask has a hole, a document's first token is trained on from the document
    before it, or a token outside every document is trained on.
    """
    ids, labels = batch["input_ids"].numpy(), batch["labels"].numpy()
    inside, starts, ends = _edges(batch)
    trained = labels != IGNORED
    trained[:, 0] = False
    if (trained & ~inside).any():
        row, column = np.argwhere(trained & ~inside)[0]
        raise WeightError(f"row {row}, token {column} has a label but attention_mask 0; no document covers it")
    if (trained & starts).any():
        row, column = np.argwhere(trained & starts)[0]
        raise WeightError(f"row {row}, token {column} begins a document but has a label; nothing there predicts it")
    spans = zip(np.argwhere(starts).tolist(), np.argwhere(ends)[:, 1].tolist(), strict=True)
    return [
        Document(row, start, last + 1, ids[row, start : last + 1].astype(np.uint32), trained[row, start : last + 1])
        for (row, start), last in spans
    ]


def place(
    documents: Sequence[Document], values: Sequence[Floats], shape: tuple[int, int], *, what: str = "weight"
) -> Floats:
    """Per-document values put back where the documents stand: (R, C) float32, exactly 0 on every untrained token.

    `values` holds one array (T,) per document; `what` they are is said in errors. Raises WeightError, naming the
    document, if there are fewer or more arrays than documents, an array has another length, or a trained token's value
    is NaN or infinite.
    """
    if len(values) != len(documents):
        raise WeightError(f"{len(documents)} documents in the batch but {what}s for {len(values)}")
    out = np.zeros(shape, np.float32)
    for document, value in zip(documents, values, strict=True):
        length = document.end - document.start
        if value.shape != (length,):
            raise WeightError(f"{document}: {length} tokens but {what}s of shape {value.shape}")
        bad = document.trained & ~np.isfinite(value)
        if bad.any():
            token = int(np.argmax(bad))
            raise WeightError(f"{document}: the {what} of its token {token} is {value[token]}")
        out[document.row, document.start : document.end] = np.where(document.trained, value, 0)
    return out


def _edges(batch: Mapping[str, Any]) -> tuple[Bools, Bools, Bools]:
    """Where tokens count, where documents begin and where their last tokens stand, each (R, C) boolean."""
    if "attention_mask" not in batch and "position_ids" not in batch:
        raise WeightError("the batch has neither attention_mask nor position_ids: its documents cannot be told apart")
    shape = tuple(batch["input_ids"].shape)
    inside = batch.get("attention_mask", torch.ones(shape)).numpy() != 0
    edge = np.zeros((shape[0], 1), np.bool_)
    starts = inside & ~np.hstack([edge, inside[:, :-1]])
    if "position_ids" in batch:
        starts |= inside & (batch["position_ids"].numpy() == 0)
    elif (starts.sum(axis=1) > 1).any():
        row = int(np.argmax(starts.sum(axis=1) > 1))
        raise WeightError(f"row {row}: attention_mask has a hole and there are no position_ids to explain it")
    ends = inside & (~np.hstack([inside[:, 1:], edge]) | np.hstack([starts[:, 1:], edge]))
    return inside, starts, ends
