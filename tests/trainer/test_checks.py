"""Refusals that need several processes or devices to meet, given the settings alone."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from accelerate.parallelism_config import ParallelismConfig  # type: ignore[import-untyped]
from datasets import Dataset

from tokenpriority_trainer import LocalSource
from tokenpriority_trainer.checks import check_arguments, check_setting
from tokenpriority_trainer.errors import ConfigError


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
