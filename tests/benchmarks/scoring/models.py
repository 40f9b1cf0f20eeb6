"""Random models of two shapes, and sequences for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

SHAPES: dict[str, dict[str, Any]] = {
    "llama 8k": {"model_type": "llama", "vocab_size": 8192, "head_dim": 64},
    "qwen3 152k": {"model_type": "qwen3", "vocab_size": 151_936, "head_dim": 64, "tie_word_embeddings": True},
}
"""Name -> what tells a shape from the other; both are 128 wide and 2 layers deep."""

_COMMON: dict[str, Any] = {
    "hidden_size": 128,
    "intermediate_size": 352,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}

LONGEST = 4000
"""Tokens of the prompt memory is measured with."""

_SEQUENCES = {"llama 8k": (256, 64), "qwen3 152k": (64, 8)}


def sequences(shape: str, *, quick: bool) -> int:
    """How many sequences a round has."""
    return _SEQUENCES[shape][quick]


def batch(rng: np.random.Generator, shape: str, count: int, tokens: int) -> list[list[int]]:
    """Random ids."""
    found: list[list[int]] = rng.integers(0, SHAPES[shape]["vocab_size"], (count, tokens)).tolist()
    return found


def saved(folder: Path, shape: str) -> Path:
    """The folder of the model, made once, with a tokenizer that has a word for each id (vLLM detokenises)."""
    path = folder / shape.replace(" ", "-")
    if path.exists():
        return path
    import torch
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

    torch.manual_seed(0)
    make: Any = AutoConfig.for_model  # untyped
    config = make(**SHAPES[shape], **_COMMON, max_position_embeddings=LONGEST + 96)
    AutoModelForCausalLM.from_config(config).save_pretrained(path)
    words = {f"word{number}": number for number in range(config.vocab_size)}
    tokenizer = Tokenizer(WordLevel(words, unk_token="word0"))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="word1").save_pretrained(path)
    return path
