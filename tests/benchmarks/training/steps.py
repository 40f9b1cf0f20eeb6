"""Whole training steps, forward and backward, of TRL's trainer and of ours on the same model and batch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from trl import SFTConfig, SFTTrainer

from tokenpriority_trainer import ColumnSource, PrioritySFTTrainer

ROWS = 4
Step = Callable[[], object]


def steps(folder: Path, vocabulary: int, width: int, tokens: int) -> dict[str, Step]:
    """Name -> one step on a batch of `tokens` tokens in ROWS rows: plain TRL, and ours with each kernel."""
    rows = batch(vocabulary, tokens // ROWS)
    plain = [{key: row[key] for key in ("input_ids", "labels")} for row in rows]
    shared = {"args": arguments(folder), "processing_class": tokenizer(vocabulary)}
    trainers: dict[str, Any] = {
        "TRL's SFTTrainer": SFTTrainer(model(vocabulary, width), train_dataset=Dataset.from_list(plain), **shared)
    }
    for kernel in ("trl", "chunked"):
        trainers[f"ours, kernel {kernel}"] = PrioritySFTTrainer(
            model(vocabulary, width),
            train_dataset=Dataset.from_list(rows),
            priorities=ColumnSource(),
            kernel=kernel,
            **shared,
        )
    return {name: stepper(trainer) for name, trainer in trainers.items()}


def stepper(trainer: Any) -> Step:
    """One forward and backward pass with everything the trainer does around it, but the optimiser."""
    trainer.current_gradient_accumulation_steps = 1
    loader = trainer.get_train_dataloader()

    def step() -> object:
        samples, counts = trainer.get_batch_samples(iter(loader), 1, torch.device("cpu"))
        loss = trainer.training_step(trainer.model, samples[0], counts)
        trainer.model.zero_grad()
        return loss

    return step


def batch(vocabulary: int, length: int) -> list[dict[str, Any]]:
    """ROWS rows of random tokens with signed weights, none of them 0."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(1, vocabulary, (ROWS, length), generator=generator)
    weights = torch.randn(ids.shape, generator=generator)
    return [
        {"input_ids": row.tolist(), "labels": row.tolist(), "priorities": each.tolist()}
        for row, each in zip(ids, weights, strict=True)
    ]


def model(vocabulary: int, width: int) -> Any:
    """A small random Llama with tied embeddings."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=3 * width,
        num_hidden_layers=4,
        num_attention_heads=max(1, width // 64),
        max_position_embeddings=4096,
        tie_word_embeddings=True,
    )
    make: Any = LlamaForCausalLM  # untyped
    return make(config).float()


def tokenizer(vocabulary: int) -> Any:
    words = {"<pad>": 0, **{f"w{number}": number for number in range(1, 16)}}
    make: Any = PreTrainedTokenizerFast  # untyped
    return make(tokenizer_object=Tokenizer(WordLevel(words, "<pad>")), pad_token="<pad>", eos_token="<pad>")


def arguments(folder: Path) -> SFTConfig:
    return SFTConfig(
        output_dir=str(folder),
        per_device_train_batch_size=ROWS,
        max_length=None,
        max_steps=1,
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        dataloader_pin_memory=False,
    )
