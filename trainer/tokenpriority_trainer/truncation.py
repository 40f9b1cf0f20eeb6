"""What `max_length` and masked labels take from the caller's spans, counted and said before training begins.

Knows which tokens of an example TRL keeps. Cuts nothing: `columns.py` and TRL's packing do.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from typing import Any

from datasets import Dataset
from trl import SFTConfig

from tokenpriority_trainer.collator import SPAN_PRIORITIES
from tokenpriority_trainer.documents import IGNORED
from tokenpriority_trainer.errors import ConfigError

logger = logging.getLogger(__name__)

_COUNTS = ("cut", "untrained", "dropped")


def kept(args: SFTConfig, *, packing: bool) -> slice:
    """The tokens of an example that are left: all, its first or its last `max_length`.

    Of the packing strategies only `bfd` cuts; the others go on in the next row. Raises ConfigError for a
    `truncation_mode` that TRL does not have.
    """
    if args.max_length is None or (packing and args.packing_strategy != "bfd"):
        return slice(None)
    windows = {"keep_start": slice(None, args.max_length), "keep_end": slice(-args.max_length, None)}
    mode = "keep_start" if packing else args.truncation_mode
    if mode not in windows:
        raise ConfigError(f"truncation_mode: must be {' or '.join(map(repr, windows))}, got {mode!r}")
    return windows[mode]


def warn_of_losses(dataset: Any, args: SFTConfig, name: str, options: Mapping[str, Any], *, packing: bool) -> None:
    """Log one warning, from the main process, if any span label or example of the tokenised dataset is lost.

    It counts labelled tokens cut off, labelled tokens left that are not trained on (label -100), and examples dropped
    because no trained token is left of them, which happens with a `max_length` and without packing alone. A streamed
    dataset cannot be counted ahead; the warning then says so.
    """
    if not isinstance(dataset, Dataset):
        lost = f"lost to max_length {args.max_length} or to label {IGNORED}"
        _warn(args, f"{name} dataset: it is streamed, so span labels and examples {lost} are not counted")
        return
    drops = args.max_length is not None and not packing
    found = dataset.map(
        _losses,
        fn_kwargs={"keep": kept(args, packing=packing), "drops": drops},
        remove_columns=dataset.column_names,
        **options,
    )
    cut, untrained, dropped = (sum(found[count]) for count in _COUNTS)
    if cut or untrained or dropped:
        _warn(
            args,
            f"{name} dataset, max_length {args.max_length}: {cut} tokens labelled by spans are cut off, {untrained} "
            f"are not trained on (label {IGNORED}), {dropped} examples are dropped for want of a trained token",
        )


def _losses(example: Mapping[str, Any], keep: slice, drops: bool) -> dict[str, int]:
    labels = example["labels"]
    spans = example.get(SPAN_PRIORITIES) or []
    labelled = [token for token, value in enumerate(spans) if not math.isnan(value)]
    left = range(len(labels))[keep]
    untrained = sum(token in left and labels[token] == IGNORED for token in labelled)
    dropped = drops and all(labels[token] == IGNORED for token in left)
    return {"cut": sum(token not in left for token in labelled), "untrained": untrained, "dropped": int(dropped)}


def _warn(args: SFTConfig, message: str) -> None:
    if args.process_index == 0:
        logger.warning(message)
