"""Whole training steps, forward and backward, of TRL's trainer, a naive weighted one and ours on the same batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from trl import SFTConfig, SFTTrainer

from tokenpriority_trainer import ColumnSource, PrioritySFTTrainer
from tokenpriority_trainer.collator import EXTRAS, PRIORITIES
from tokenpriority_trainer.config import Kernel
from tokenpriority_trainer.loss import ALL

ROWS = 4
NAIVE = "weighted, whole logits"
OURS: dict[Kernel, str] = {"trl": "ours, kernel trl", "chunked": "ours, kernel chunked"}
PLAIN = {loss: f"TRL's SFTTrainer, {loss}" for loss in ("nll", "chunked_nll")}
Step = Callable[[], object]


class WholeLogits(PrioritySFTTrainer):
    """The weighted loss as one would write it first: all logits, then each token's cross entropy times its weight."""

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Tensor | None = None
    ) -> Any:
        batch = {key: value for key, value in inputs.items() if key not in (*EXTRAS, "labels")}
        logits = model(**batch, use_cache=False).logits[:, :-1].flatten(0, 1)
        each = torch.nn.functional.cross_entropy(logits, inputs["labels"][:, 1:].flatten(), reduction="none")
        assert num_items_in_batch is not None
        return (inputs[PRIORITIES][:, 1:].flatten() * each).sum() / num_items_in_batch[ALL]


def steps(
    folder: Path, vocabulary: int, width: int, tokens: int, ours: Mapping[Kernel, str] = OURS, **changes: Any
) -> dict[str, Step]:
    """Name -> one step on a batch of `tokens` tokens in ROWS rows: plain TRL, whole logits, and ours by kernel.

    `ours` names those of ours by their kernels; `changes` are arguments of SFTConfig.
    """
    rows = batch(vocabulary, tokens // ROWS)
    plain = Dataset.from_list([{key: row[key] for key in ("input_ids", "labels")} for row in rows])
    words = tokenizer(vocabulary)

    def student() -> Any:
        return model(vocabulary, width)

    trainers: dict[str, Any] = {
        name: SFTTrainer(
            student(), arguments(folder, **changes, loss_type=loss), train_dataset=plain, processing_class=words
        )
        for loss, name in PLAIN.items()
    }
    shared = {"train_dataset": Dataset.from_list(rows), "priorities": ColumnSource(), "processing_class": words}
    trainers[NAIVE] = WholeLogits(student(), arguments(folder, **changes), kernel="trl", **shared)
    for kernel, name in ours.items():
        trainers[name] = PrioritySFTTrainer(student(), arguments(folder, **changes), kernel=kernel, **shared)
    return {name: stepper(trainer) for name, trainer in trainers.items()}


def stepper(trainer: Any) -> Step:
    """One forward and backward pass with everything the trainer does around it, but the optimiser."""
    trainer.current_gradient_accumulation_steps = 1
    loader = trainer.get_train_dataloader()

    def step() -> object:
        samples, counts = trainer.get_batch_samples(iter(loader), 1, trainer.args.device)
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


def arguments(folder: Path, **changes: Any) -> SFTConfig:
    return SFTConfig(
        output_dir=str(folder),
        per_device_train_batch_size=ROWS,
        max_length=None,
        max_steps=1,
        report_to="none",
        disable_tqdm=True,
        gradient_checkpointing=False,
        dataloader_pin_memory=False,
        **{"use_cpu": True, "bf16": False, **changes},
    )
