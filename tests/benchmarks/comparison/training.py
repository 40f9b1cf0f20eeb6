"""One training of the study: weights computed beforehand into a column, the rest by the trainer, and what it left.

The trainer is the product's own, in this process, on one thread. Knows nothing of which methods there are.
"""

from __future__ import annotations

import copy
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM
from trl import SFTConfig

from comparison.conditions import Condition, Conditions
from comparison.findings import Finding
from comparison.recipes import Recipe
from tokenpriority.errors import TokenPriorityError
from tokenpriority.methods import Inputs, get_method, prioritise
from tokenpriority_trainer.collator import PRIORITIES, SPAN_PRIORITIES
from tokenpriority_trainer.demo.evaluate import measure
from tokenpriority_trainer.local import FrozenCopies
from tokenpriority_trainer.source import ColumnSource
from tokenpriority_trainer.trainer import PrioritySFTTrainer
from tokenpriority_trainer.weighting import Weighting

LABEL = -1.0


def study(conditions: Conditions, condition: Condition, recipe: Recipe) -> Finding:
    """Train by the recipe and measure. A training that fails is a finding too, with the reason."""
    key: dict[str, Any] = {"noise": condition.noise, "seed": condition.seed, "recipe": recipe.name}
    try:
        with tempfile.TemporaryDirectory() as folder:
            trainer = _trainer(conditions, condition, recipe, Path(folder))
            began = time.perf_counter()
            trainer.train()
            seconds = time.perf_counter() - began
        measured = measure(trainer.model.float(), condition.trials)
    except (TokenPriorityError, ValueError) as error:  # diverged, refused, or a figure that is not finite
        return Finding(**key, failure=f"{type(error).__name__}: {error}".split("\n")[0][:120])
    kept = [line["kept_share"] for line in trainer.state.log_history if "kept_share" in line]
    return Finding(
        **key,
        clean_nll=measured.clean_nll,
        noise_nll=measured.noise_nll,
        idiom_logprob=measured.idiom_logprob,
        kept=float(np.mean(kept)),
        steps_per_second=trainer.state.global_step / seconds,
    )


def _trainer(conditions: Conditions, condition: Condition, recipe: Recipe, folder: Path) -> PrioritySFTTrainer:
    load: Any = AutoModelForCausalLM.from_pretrained
    weighting = _weighting(recipe)
    frozen: dict[str, Any] = {
        role: copy.deepcopy(model) for role, model in conditions.prepared.frozen.items() if role in weighting.roles
    }
    return PrioritySFTTrainer(
        load(conditions.folder / "base", dtype=torch.float32),
        _arguments(conditions, condition, folder),
        _rows(condition, recipe),
        priorities=ColumnSource(),
        weighting=weighting,
        local=FrozenCopies(**frozen),
        processing_class=conditions.prepared.tokenizer,
    )


def _weighting(recipe: Recipe) -> Weighting:
    if recipe.live is None:
        method = get_method(recipe.static)
        return Weighting.of(
            "uniform",
            denominator=method.denominator,
            negatives=method.negatives if method.sign == "signed" else None,
            schedule=method.schedule,
        )
    if recipe.part == "method":
        return Weighting.of(recipe.live, recipe.live_params, local=True)
    if recipe.part == "student":
        return Weighting.of(student=recipe.live, student_params=recipe.live_params)
    return Weighting.of(forget=recipe.live, forget_params=recipe.live_params)


def _rows(condition: Condition, recipe: Recipe) -> Dataset:
    examples = condition.examples
    columns: dict[str, list[Any]] = {
        "input_ids": examples.token_ids.tolist(),
        PRIORITIES: [weights.tolist() for weights in _static(condition, recipe)],
    }
    if recipe.labelled:
        columns[SPAN_PRIORITIES] = np.where(examples.idiom, LABEL, np.nan).tolist()
    return Dataset.from_dict(columns)


def _static(condition: Condition, recipe: Recipe) -> list[Any]:
    """The weights a server would answer, (T,) float32 each."""
    method = get_method(recipe.static)
    params = method.parse(recipe.params)
    mask = np.arange(condition.examples.token_ids.shape[1]) > 0
    pairs = zip(condition.evidence["reference"], condition.evidence["base"], strict=True)
    inputs = [Inputs(mask, reference=reference, base=base) for reference, base in pairs]
    return [prioritise(method, params, each, xp=np).astype(np.float32) for each in inputs]


def _arguments(conditions: Conditions, condition: Condition, folder: Path) -> SFTConfig:
    scale = conditions.scale
    return SFTConfig(
        output_dir=str(folder),
        max_steps=scale.tuning_steps,
        per_device_train_batch_size=scale.batch,
        max_length=scale.length,
        learning_rate=scale.tuning_lr,
        lr_scheduler_type="linear",
        warmup_steps=max(1, scale.tuning_steps // 20),
        logging_steps=10,
        save_strategy="no",
        gradient_checkpointing=False,
        use_cpu=True,
        bf16=False,
        dataloader_pin_memory=False,
        report_to="none",
        disable_tqdm=True,
        seed=condition.seed,
    )
