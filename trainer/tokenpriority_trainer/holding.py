"""How much of the training data a store holds, exactly: every document, as training will ask for it.

Knows the prepared dataset, the collator, and the shares of the processes. Knows nothing of servers.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from datasets import Dataset

from tokenpriority_trainer.errors import ConfigError
from tokenpriority_trainer.source import Batch, sequences
from tokenpriority_trainer.store import Store

if TYPE_CHECKING:
    from tokenpriority_trainer.trainer import PrioritySFTTrainer

ROWS = 16
"""Rows of the dataset that are collated at once."""


@dataclass(frozen=True, slots=True)
class Holding:
    """Documents that train something, and their tokens, over all processes; equal documents count each."""

    documents: int
    tokens: int
    missing_documents: int
    """Of those, how many the store does not hold."""
    missing_tokens: int

    @classmethod
    def of(cls, trainer: PrioritySFTTrainer, store: Store) -> Holding:
        """What a store holds of a trainer's data. Every process must call. Raises as `shares` and `Store.find`."""
        counts = torch.zeros(4, dtype=torch.int64)
        for batch in shares(trainer):
            sent = sequences(batch)
            for each, found in zip(sent, store.find(sent), strict=True):
                size = len(each["token_ids"])
                counts += torch.tensor([1, size, found is None, size * (found is None)])
        return cls(*trainer.accelerator.reduce(counts.to(trainer.accelerator.device)).tolist())


def shares(trainer: PrioritySFTTrainer) -> Iterator[Batch]:
    """This process's share of the training data in batches, in the dataset's order; draws no random number.

    Raises ConfigError for a streamed dataset.
    """
    if not isinstance(trainer.train_dataset, Dataset):
        raise ConfigError("the train dataset is streamed: what a store holds of it cannot be known beforehand")
    rows = trainer._remove_unused_columns(trainer.train_dataset, "training")
    own = range(trainer.args.process_index, len(rows), trainer.args.world_size)
    for start in range(0, len(own), ROWS):
        yield trainer.data_collator([rows[number] for number in own[start : start + ROWS]])


def check_held(trainer: PrioritySFTTrainer, store: Store) -> None:
    """Raises ConfigError, in every process alike, if the store lacks any document of the training data."""
    held = Holding.of(trainer, store)
    if held.missing_documents:
        raise ConfigError(
            f"priorities.store: {store.path} lacks {held.missing_documents} of {held.documents} documents of the train "
            f"dataset ({held.missing_tokens:,} of {held.tokens:,} tokens); with the server on, --fetch brings them"
        )
