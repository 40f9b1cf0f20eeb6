"""The sequences of a trainer's batch, where the caller does not say which they are.

Knows the two forms of a batch that leave no doubt: a list of sequences, and a mapping with padded `input_ids`. Guesses
nothing: any other batch needs `sequences`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from tokenpriority.sequences import SequenceLike

PACKED = ("position_ids", "seq_lengths", "cu_seq_lens_q")
"""Columns by which a collator says that a row may hold several sequences."""


def batch_sequences(batch: Any) -> list[SequenceLike]:
    """The sequences to score of a batch, in order.

    A list or tuple of sequences is taken as it is. Of a mapping the rows of `input_ids` (2-D array, tensor on the CPU,
    or list of rows) are taken; where it has `attention_mask`, of the same shape, 0 or 1, a row's masked positions
    before and after its tokens are cut off, so that its scores begin with its first unmasked token.

    Raises TypeError for any other batch and for one that may be packed (PACKED), ValueError if the mask does not fit
    its row or has a hole in it: tokens that do not follow each other must not be scored as if they did.
    """
    if isinstance(batch, list | tuple) and all(map(_is_sequence, batch)):
        return list(batch)
    if not isinstance(batch, Mapping) or "input_ids" not in batch:
        raise _unknown(f"a batch that is a {type(batch).__name__}")
    packed = [name for name in PACKED if name in batch]
    if packed:
        raise _unknown(f"a batch with {packed[0]!r}, which may be packed")
    rows = _rows(batch["input_ids"], "input_ids")
    if "attention_mask" not in batch:
        return rows
    masks = _rows(batch["attention_mask"], "attention_mask")
    if len(masks) != len(rows):
        raise ValueError(f"attention_mask: {len(rows)} rows are expected, as in input_ids, got {len(masks)}")
    return [_unpadded(row, mask, number) for number, (row, mask) in enumerate(zip(rows, masks, strict=True))]


def _is_sequence(value: Any) -> bool:
    return isinstance(value, str | Mapping | list | tuple) or getattr(value, "ndim", None) == 1


def _rows(value: Iterable[Any], name: str) -> list[Any]:
    """The rows of a 2-D array or of a list of rows, each a 1-D array. Raises TypeError if it is neither."""
    try:
        rows = [np.asarray(row) for row in value]
    except (TypeError, ValueError) as error:  # no rows at all, or a tensor of a device
        raise _unknown(f"{name} that is a {type(value).__name__} ({error})") from None
    for row in rows:
        if row.ndim != 1:
            raise _unknown(f"{name} whose rows have the shape {row.shape}")
    return rows


def _unpadded(row: np.ndarray[Any, Any], mask: np.ndarray[Any, Any], number: int) -> np.ndarray[Any, Any]:
    if mask.shape != row.shape:
        raise ValueError(f"attention_mask: row {number}: {len(row)} values are expected, got {len(mask)}")
    if not np.isin(mask, (0, 1)).all():
        raise ValueError(f"attention_mask: row {number}: values must be 0 or 1, got {mask.tolist()}")
    kept = np.flatnonzero(mask)
    if not kept.size:
        raise ValueError(f"attention_mask: row {number}: every position is masked")
    start, end = int(kept[0]), int(kept[-1]) + 1
    if end - start != kept.size:
        raise ValueError(f"attention_mask: row {number}: has a masked position between two that are not")
    return row[start:end]


def _unknown(what: str) -> TypeError:
    return TypeError(
        f"sequences: cannot be told from {what}; a batch is a list of sequences or a mapping with 2-D input_ids, "
        "else pass sequences=lambda batch: ..."
    )
