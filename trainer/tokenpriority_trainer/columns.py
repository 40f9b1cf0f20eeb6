"""The per-token columns of a dataset, kept in step with TRL's tokens through truncation and packing.

Knows the columns `spans` and `priorities`, and the order of TRL's preparation: tokenise, truncate, drop, shuffle, pack.
Knows nothing of how text becomes tokens (TRL does that) or of how spans are aligned (`alignment.py`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from datasets import Dataset
from trl import SFTConfig, pack_dataset
from trl.data_utils import get_dataset_column_names
from trl.trainer.utils import global_then_local_main_first

from tokenpriority_trainer.alignment import SPAN_TOKENS, SPANS, SpanAligner
from tokenpriority_trainer.collator import COMPLETION, FILL, PRIORITIES
from tokenpriority_trainer.documents import IGNORED
from tokenpriority_trainer.errors import ConfigError, DataError
from tokenpriority_trainer.truncation import kept, warn_of_losses

Rows = Any
"""A `datasets.Dataset` or `IterableDataset`; the library publishes no types."""


def has_columns(dataset: Rows) -> bool:
    """Whether the dataset carries anything of ours that TRL would drop."""
    return not {SPANS, *FILL}.isdisjoint(get_dataset_column_names(dataset))


def prepare(
    dataset: Rows, tokenise: Callable[[Rows], Rows], aligner: SpanAligner, args: SFTConfig, *, packing: bool
) -> Rows:
    """A dataset of input_ids, labels and our columns, as TRL would have prepared it without them.

    `tokenise` is TRL's own preparation without truncation, shuffling or packing. Raises DataError, naming the example,
    if spans cannot be placed, TRL made other tokens of an example than its spans were aligned to, or `priorities` is
    not as long as the tokens or not finite where they are trained on. What is lost on the way is said in a warning.
    """
    if SPANS in get_dataset_column_names(dataset):
        with global_then_local_main_first():  # the others read what the first has cached; TRL does the same
            dataset = dataset.map(aligner, with_indices=True, **_options(dataset, args, "Aligning spans"))
    dataset = tokenise(dataset)
    with global_then_local_main_first():
        name = {"name": aligner.dataset_name}
        dataset = dataset.map(_check, with_indices=True, fn_kwargs=name, **_options(dataset, args, "Checking columns"))
        present = get_dataset_column_names(dataset)
        dataset = dataset.select_columns(
            [name for name in ("input_ids", "labels", COMPLETION, *FILL) if name in present]
        )
        options = _options(dataset, args, "Counting lost labels")
        warn_of_losses(dataset, args, aligner.dataset_name, options, packing=packing)
        return _shuffled(_pack(dataset, args) if packing else _cut(dataset, args), args)


def _pack(dataset: Rows, args: SFTConfig) -> Rows:
    if args.max_length is None:
        raise ConfigError("max_length: must be set when packing is on, since it is the length of a packed row")
    return pack_dataset(
        _shuffled(dataset, args), args.max_length, args.packing_strategy, _options(dataset, args, "Packing")
    )


def _cut(dataset: Rows, args: SFTConfig) -> Rows:
    """Rows cut to `max_length`, those without a trained token left out, as TRL does."""
    if args.max_length is None:
        return dataset
    keep = {"keep": kept(args, packing=False)}
    dataset = dataset.map(_truncate, fn_kwargs=keep, **_options(dataset, args, "Truncating"))
    return dataset.filter(_is_trained, **_options(dataset, args, "Dropping fully masked examples"))


def _check(example: Mapping[str, Any], index: int, name: str) -> dict[str, Any]:
    """Our columns fit TRL's tokens, or a DataError says which example's do not."""
    ids, labels, where = example["input_ids"], example["labels"], f"{name} dataset, example {index}"
    if example.get(SPAN_TOKENS) not in (None, ids):
        raise DataError(f"{where}: its spans were aligned to other tokens than TRL made of it; give input_ids instead")
    if PRIORITIES in example:
        values = example[PRIORITIES]
        if values is None or len(values) != len(ids):
            found = "is missing" if values is None else f"has {len(values)} values"
            raise DataError(f"{where}: {len(ids)} tokens but its 'priorities' {found}")
        for token in range(1, len(ids)):
            value = values[token]
            if labels[token] != IGNORED and (value is None or not math.isfinite(value)):
                raise DataError(f"{where}: priorities[{token}] is {value}, on a token that is trained on")
    return {}


def _truncate(example: Mapping[str, Any], keep: slice) -> dict[str, Any]:
    return {name: values[keep] for name, values in example.items()}


def _is_trained(example: Mapping[str, Any]) -> bool:
    return any(label != IGNORED for label in example["labels"])


def _shuffled(dataset: Rows, args: SFTConfig) -> Rows:
    return dataset.shuffle(seed=args.seed) if args.shuffle_dataset else dataset


def _options(dataset: Rows, args: SFTConfig, what: str) -> dict[str, Any]:
    """Options of `map` that only a dataset of known length takes."""
    return {"num_proc": args.dataset_num_proc, "desc": what} if isinstance(dataset, Dataset) else {}
