"""What truncation and masked labels take from spans is counted in one warning, and the count is true."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from typing import Any

import pytest

from tokenpriority_trainer.errors import ConfigError
from tokenpriority_trainer.truncation import kept

Make = Callable[..., Any]

# Spans on tokens 1 and 5 of six: the second example's first four labels are ignored, the third's first five.
SPANNED = [
    {
        "input_ids": [*range(1, 7)],
        "labels": [-100] * masked + [*range(1 + masked, 7)],
        "spans": [{"start": 1, "end": 2, "priority": -1.0}, {"start": 5, "end": 6, "priority": 0.5}],
    }
    for masked in (0, 4, 5)
]
BY_PACKING = {"packing": True, "max_length": 4}


@pytest.mark.filterwarnings("ignore:The `'keep_end'` truncation mode is deprecated:FutureWarning")
@pytest.mark.parametrize(
    ("changes", "cut", "untrained", "dropped"),
    [
        ({"max_length": 4}, 3, 2, 2),
        ({"max_length": 4, "truncation_mode": "keep_end"}, 3, 0, 0),
        ({"max_length": 6}, 0, 2, 0),
        ({"max_length": None}, 0, 2, 0),
        ({**BY_PACKING, "packing_strategy": "bfd"}, 3, 2, 0),
        ({**BY_PACKING, "packing_strategy": "bfd_split"}, 0, 2, 0),
        ({**BY_PACKING, "packing_strategy": "wrapped"}, 0, 2, 0),
    ],
)
def test_lost_labels_and_examples_are_counted_in_one_warning(
    make_trainer: Make,
    caplog: pytest.LogCaptureFixture,
    changes: dict[str, Any],
    cut: int,
    untrained: int,
    dropped: int,
) -> None:
    found = make_trainer(SPANNED, **changes).train_dataset
    (record,) = [each for each in caplog.records if each.name.startswith("tokenpriority_trainer")]
    assert record.levelno == logging.WARNING
    assert record.getMessage() == (
        f"train dataset, max_length {changes['max_length']}: {cut} tokens labelled by spans are cut off, {untrained} "
        f"are not trained on (label -100), {dropped} examples are dropped for want of a trained token"
    )
    labels = [value for row in found for value in row["span_priorities"] if not math.isnan(value)]
    assert len(labels) == 6 - cut - dropped  # an example that is dropped here had one label left, untrained
    if not changes.get("packing"):
        assert len(found) == 3 - dropped


def test_nothing_lost_is_no_warning(make_trainer: Make, caplog: pytest.LogCaptureFixture) -> None:
    make_trainer(SPANNED[:1], max_length=6)
    assert [each for each in caplog.records if each.name.startswith("tokenpriority_trainer")] == []


def test_a_truncation_mode_that_trl_lacks_is_refused(make_args: Make) -> None:
    args = make_args(max_length=4, truncation_mode="keep_middle")
    with pytest.raises(ConfigError, match="truncation_mode: must be 'keep_start' or 'keep_end', got 'keep_middle'"):
        kept(args, packing=False)
