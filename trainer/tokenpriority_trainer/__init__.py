"""Weighted supervised fine-tuning on TRL, with priorities from the scoring server.

config.py      the configuration file
command.py     `tokenpriority train`, `python -m tokenpriority_trainer`
run.py         a configuration, run
trainer.py     PrioritySFTTrainer: where weights enter TRL's loop
source.py      where weights come from
store.py       scores kept on this machine
weighting.py   how weights become a loss
local.py       frozen copies of models beside the student
loss.py        the loss itself
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tokenpriority_trainer.guard import Guard
    from tokenpriority_trainer.local import FrozenCopies
    from tokenpriority_trainer.source import ColumnSource, LocalSource, PrioritySource, ServerSource, StoredSource
    from tokenpriority_trainer.store import Store
    from tokenpriority_trainer.trainer import PrioritySFTTrainer
    from tokenpriority_trainer.weighting import Weighting

__all__ = [
    "ColumnSource",
    "FrozenCopies",
    "Guard",
    "LocalSource",
    "PrioritySFTTrainer",
    "PrioritySource",
    "ServerSource",
    "Store",
    "StoredSource",
    "Weighting",
]

_HOME = {
    "ColumnSource": "source",
    "FrozenCopies": "local",
    "Guard": "guard",
    "LocalSource": "source",
    "PrioritySFTTrainer": "trainer",
    "PrioritySource": "source",
    "ServerSource": "source",
    "Store": "store",
    "StoredSource": "source",
    "Weighting": "weighting",
}


def __getattr__(name: str) -> Any:
    """Import on first use: torch, transformers and TRL take seconds, which `tokenpriority --help` must not."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
