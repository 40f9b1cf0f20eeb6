"""The optimiser steps of an epoch: how many there are, and whether one is of what is left after the whole ones.

Knows how Trainer counts them. Knows nothing of schedules or weights.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokenpriority_trainer.trainer import PrioritySFTTrainer


def epoch_steps(trainer: PrioritySFTTrainer) -> int | None:
    """Optimiser steps per epoch of a trainer in training, None if the length of its data is not known.

    Every epoch has as many, whatever `max_steps`, so that a step's place in its epoch is the step modulo this.
    """
    try:
        batches = len(trainer.callback_handler.train_dataloader)
    except TypeError:
        return None
    accumulation: int = trainer.args.gradient_accumulation_steps
    return max(1, -(-batches // accumulation))


def is_remainder(trainer: PrioritySFTTrainer, examples: int) -> bool:
    """Whether a global batch of so many examples is what an epoch has left after its whole ones; never where it is not
    known that there are any."""
    whole = trainer.get_total_train_batch_size(trainer.args)
    if trainer.accelerator.split_batches:  # the batch size is that of all processes
        whole //= trainer.accelerator.num_processes
    return bool(examples < whole and (epoch_steps(trainer) or 1) > 1)
