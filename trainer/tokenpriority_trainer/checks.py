"""Settings under which TRL would run but weights would be ignored, doubled or counted wrongly: refused, by name.

Knows which of TRL's and accelerate's options touch the loss or the batch. Changes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trl import SFTConfig
from trl.data_utils import get_dataset_column_names

from tokenpriority_trainer.alignment import SPANS
from tokenpriority_trainer.collator import PRIORITIES
from tokenpriority_trainer.errors import ConfigError
from tokenpriority_trainer.source import ColumnSource, PrioritySource


def check_arguments(args: SFTConfig, dataset: Any, priorities: PrioritySource, rest: Mapping[str, Any]) -> None:
    """Raises ConfigError for arguments of the trainer that do not go together with weights or with each other."""
    for name in ("data_collator", "compute_loss_func"):
        if rest.get(name) is not None:
            raise ConfigError(f"{name}: the trainer's own carries the weights, so it cannot be replaced")
    if args.loss_type != "nll":
        raise ConfigError(f"loss_type: must be 'nll', got {args.loss_type!r}; choose the loss by the priority method")
    if args.label_smoothing_factor:
        raise ConfigError(f"label_smoothing_factor: must be 0, got {args.label_smoothing_factor}")
    if args.world_size > 1 and not args.average_tokens_across_devices:
        raise ConfigError("average_tokens_across_devices: must be true, since denominators count the global batch")
    columns = get_dataset_column_names(dataset)
    _check_columns(set(columns), args, isinstance(priorities, ColumnSource), rest.get("formatting_func") is not None)


def _check_columns(columns: set[str], args: SFTConfig, from_column: bool, formatted: bool) -> None:
    if from_column != (PRIORITIES in columns):
        has = "has" if PRIORITIES in columns else "has no"
        wants = "reads it" if from_column else "does not read it; drop the column, or use ColumnSource (no url)"
        raise ConfigError(f"the train dataset {has} column {PRIORITIES!r}, but the source of priorities {wants}")
    if formatted and not columns.isdisjoint({SPANS, PRIORITIES}):
        raise ConfigError("formatting_func: changes the text that spans and priorities stand on; apply it beforehand")
    if SPANS in columns and (args.dataset_kwargs or {}).get("skip_prepare_dataset"):
        raise ConfigError(f"dataset_kwargs.skip_prepare_dataset: column {SPANS!r} would never be aligned to tokens")


def check_setting(trainer: Any) -> None:
    """Raises ConfigError for what only a constructed SFTTrainer knows: images, parallelism that shards a batch."""
    if trainer._is_vision_dataset:
        raise ConfigError("the train dataset has images: only text is supported")
    parallelism = trainer.accelerator.parallelism_config
    for name in ("tp_size", "cp_size", "sp_size"):
        size = getattr(parallelism, name, 1)
        if size > 1:
            raise ConfigError(f"parallelism_config.{name}: must be 1, got {size}: weights are not sharded")
