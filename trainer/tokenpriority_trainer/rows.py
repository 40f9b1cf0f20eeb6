"""A batch's documents as rows of their own, for methods that decide over a sequence or a micro-batch.

Knows where each document's tokens stand in a padded, packed or flattened batch, and moves values there and back with
one gather each. Knows nothing of what the values mean.

Shapes: R rows, C columns of the batch; S documents that train something, T tokens of the longest; V vocabulary. Values
of tokens stand on the token's own position, as in `tokenpriority.evidence`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tokenpriority_trainer.documents import Document

ROWS = "rows"
"""Key of the batch under which the places of its documents stand."""


def layout(documents: Sequence[Document], shape: tuple[int, int]) -> Tensor:
    """Places in the flattened batch of each document's tokens: int64 (S, T), -1 behind a document's end.

    Documents that train nothing are left out; without any the result is (1, 1) of -1, so that every method has a row.
    """
    wanted = [document for document in documents if document.trained.any()]
    longest = max((len(document.token_ids) for document in wanted), default=1)
    places = np.full((max(1, len(wanted)), longest), -1, np.int64)
    for row, document in zip(places, wanted, strict=False):
        first = document.row * shape[1] + document.start
        row[: len(document.token_ids)] = np.arange(first, first + len(document.token_ids))
    return torch.from_numpy(places)


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """Documents of one batch on its device."""

    places: Tensor
    """int64 (S, T), from `layout`."""
    shape: tuple[int, int]
    """(R, C)."""

    @property
    def inside(self) -> Tensor:
        """Boolean (S, T): False behind a document's end."""
        return self.places >= 0

    def of(self, values: Tensor) -> Tensor:
        """(R, C) or (R, C, ...) -> (S, T) or (S, T, ...); what stands behind a document's end is of no document."""
        return values.flatten(0, 1)[self.places.clamp(min=0)]

    def predicting(self, values: Tensor) -> Tensor:
        """(R, C, V) of the positions that predict -> (S, T, V) on the tokens predicted; index 0 has nothing of its own,
        and holds some other position's."""
        return values.flatten(0, 1)[(self.places - 1).clamp(min=0)]

    def back(self, values: Tensor) -> Tensor:
        """(S, T) -> (R, C), 0 where no document of a row stands; with gradient."""
        flat = values.new_zeros(self.shape[0] * self.shape[1])
        return flat.index_put((self.places[self.inside],), values[self.inside]).view(self.shape)
