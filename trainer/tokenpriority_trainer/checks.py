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
from tokenpriority_trainer.local import FrozenCopies
from tokenpriority_trainer.source import ColumnSource, LocalSource, PrioritySource
from tokenpriority_trainer.weighting import Weighting


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


def check_evidence(weighting: Weighting, priorities: PrioritySource, local: FrozenCopies) -> None:
    """Raises ConfigError if a live method reads a frozen model that is not there, or more of it than a server gives."""
    names = " and ".join(repr(method.method.name) for _, method in weighting.live)
    needed = [role for role in weighting.roles if role in ("reference", "base") and role not in local.roles]
    if "base" in needed:
        raise ConfigError(f"{names} reads a second frozen model: set priorities.local.base (FrozenCopies)")
    if "reference" not in needed:
        return
    copy = "set priorities.local.reference (FrozenCopies)"
    if weighting.reads_distribution("reference"):
        raise ConfigError(f"{names} reads the reference's whole distribution, which no server sends: {copy}")
    more = [name for name in weighting.reads("reference") if name != "logprob"]
    if more:
        raise ConfigError(f"{names} reads the reference's {', '.join(more)} in the forward pass: {copy}")
    if isinstance(priorities, ColumnSource | LocalSource):
        raise ConfigError(f"{names} reads the reference: set priorities.url (ServerSource), or {copy}")


def check_setting(trainer: Any) -> None:
    """Raises ConfigError for what only a constructed SFTTrainer knows: images, parallelism that shards a batch, and
    settings under which gradients cannot be rescaled or a snapshot cannot be taken."""
    if trainer._is_vision_dataset:
        raise ConfigError("the train dataset has images: only text is supported")
    parallelism = trainer.accelerator.parallelism_config
    for name in ("tp_size", "cp_size", "sp_size"):
        size = getattr(parallelism, name, 1)
        if size > 1:
            raise ConfigError(f"parallelism_config.{name}: must be 1, got {size}: weights are not sharded")
    if trainer.weighting.deferred and trainer.aux_loss_enabled:
        raise ConfigError("denominator: 'kept' with a live method would scale the routers' loss too; choose another")
    sharded = [kind for kind in ("deepspeed", "fsdp") if getattr(trainer, f"is_{kind}_enabled")]
    if "deepspeed" in sharded and trainer.weighting.deferred:
        raise ConfigError("denominator: 'kept' with a live method must rescale gradients, which DeepSpeed keeps")
    if sharded and "old" in trainer.weighting.roles:
        raise ConfigError(f"a method that reads the student's snapshot cannot run sharded by {sharded[0]}")
