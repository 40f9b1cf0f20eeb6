"""Settings under which weights would be lost, refused; those that need several devices, from the setting alone."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from accelerate.parallelism_config import ParallelismConfig
from datasets import Dataset

from tokenpriority_trainer import ColumnSource, LocalSource
from tokenpriority_trainer.checks import check_arguments, check_setting
from tokenpriority_trainer.errors import ConfigError

TOKENS = {"input_ids": [1, 2], "labels": [1, 2]}


@pytest.mark.parametrize("name", ["tp_size", "cp_size", "sp_size"])
def test_parallelism_that_shards_a_batch_is_refused(name: str) -> None:
    accelerator = SimpleNamespace(parallelism_config=ParallelismConfig(**{name: 2}))
    with pytest.raises(ConfigError, match=f"parallelism_config.{name}: must be 1, got 2"):
        check_setting(SimpleNamespace(_is_vision_dataset=False, accelerator=accelerator))


def test_images_are_refused() -> None:
    with pytest.raises(ConfigError, match="has images"):
        check_setting(SimpleNamespace(_is_vision_dataset=True))


@pytest.mark.parametrize("processes", [1, 2])
def test_counts_of_one_process_alone_are_refused_where_there_are_several(make_args: Any, processes: int) -> None:
    args = make_args(average_tokens_across_devices=False)
    several: Any = SimpleNamespace(**{**vars(args), "world_size": processes})
    rows = Dataset.from_list([{"text": "import json"}])
    if processes == 1:
        check_arguments(several, rows, LocalSource(), {})
    else:
        with pytest.raises(ConfigError, match="average_tokens_across_devices: must be true"):
            check_arguments(several, rows, LocalSource(), {})


@pytest.mark.parametrize(
    ("row", "changes", "what"),
    [
        ({**TOKENS, "spans": []}, {"dataset_kwargs": {"skip_prepare_dataset": True}}, "skip_prepare_dataset"),
        (TOKENS, {"loss_type": "dft"}, "loss_type: must be 'nll', got 'dft'"),
        (TOKENS, {"label_smoothing_factor": 0.1}, "label_smoothing_factor: must be 0, got 0.1"),
        ({**TOKENS, "spans": []}, {"packing": True}, "max_length: must be set when packing is on"),
    ],
)
def test_settings_that_would_lose_weights_are_refused(
    make_trainer: Any, row: dict[str, Any], changes: dict[str, Any], what: str
) -> None:
    with pytest.raises(ConfigError, match=what):
        make_trainer([row], **changes)


@pytest.mark.parametrize(
    ("row", "source", "what"),
    [
        (TOKENS, ColumnSource(), "has no column 'priorities', but the source of priorities reads it"),
        ({**TOKENS, "priorities": [1, 1]}, LocalSource(), "does not read it; drop the column, or use ColumnSource"),
    ],
)
def test_a_priorities_column_and_its_source_go_together(
    make_args: Any, row: dict[str, Any], source: Any, what: str
) -> None:
    with pytest.raises(ConfigError, match=what):
        check_arguments(make_args(), Dataset.from_list([row]), source, {})


@pytest.mark.parametrize("name", ["data_collator", "compute_loss_func", "formatting_func"])
def test_arguments_that_would_lose_weights_are_refused(make_args: Any, name: str) -> None:
    with pytest.raises(ConfigError, match=name):
        check_arguments(make_args(), Dataset.from_list([{**TOKENS, "spans": []}]), LocalSource(), {name: print})
