"""What a configuration names, loaded: the student, its tokenizer, its adapters, the data.

Knows files, folders and hub names. Knows nothing of priorities or training.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from datasets import Dataset, load_dataset
from datasets.exceptions import DatasetGenerationError
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from tokenpriority_trainer.config import ModelSection
from tokenpriority_trainer.errors import ConfigError

_FILES = {".jsonl": "json", ".json": "json", ".parquet": "parquet"}


def load_tokenizer(model: ModelSection) -> PreTrainedTokenizerBase:
    """The student's tokenizer. Raises ConfigError if there is none at `path`."""
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(model.path, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise ConfigError(f"model.path: no tokenizer at {model.path!r}: {_first_line(error)}") from None
    return tokenizer


def load_model(model: ModelSection) -> Any:
    """The student, a causal language model, on the CPU in `dtype`. Raises ConfigError if there is none at `path`."""
    try:
        return AutoModelForCausalLM.from_pretrained(model.path, dtype=model.dtype, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise ConfigError(f"model.path: no model at {model.path!r}: {_first_line(error)}") from None


def lora_config(model: ModelSection) -> LoraConfig | None:
    """The adapters to train, None to train the whole model."""
    if model.lora is None:
        return None
    lora = model.lora
    return LoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=lora.target_modules,
        task_type="CAUSAL_LM",
    )


def load_rows(key: str, name: str) -> Dataset:
    """The dataset that `data.<key>` names: a .jsonl, .json or .parquet file, or `hub-name[:split]`, split "train".

    Raises ConfigError naming the key if there is no such file or dataset, or it holds no example.
    """
    kind = _FILES.get(Path(name).suffix)
    try:
        if kind is not None:
            if not Path(name).is_file():
                raise ConfigError(f"data.{key}: no such file: {name}")
            rows = load_dataset(kind, data_files=name, split="train")
        else:
            hub_name, _, split = name.partition(":")
            rows = load_dataset(hub_name, split=split or "train")
    except (OSError, ValueError, DatasetGenerationError) as error:
        raise ConfigError(f"data.{key}: cannot read {name!r}: {_first_line(error)}") from None
    if len(rows) == 0:
        raise ConfigError(f"data.{key}: {name!r} holds no example")
    return rows


def _first_line(error: Exception) -> str:
    cause = error.__cause__ or error
    return str(cause).strip().partition("\n")[0]
