"""What every seed of the demo shares: the text, the tokenizer, the base model and the reference.

Knows the order in which they are made. Knows nothing of fine-tuning or servers.
"""

from __future__ import annotations

import copy
import statistics
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from tokenpriority_trainer.demo import corpus, dataset, models
from tokenpriority_trainer.demo.corpus import Ids
from tokenpriority_trainer.demo.dataset import Mask
from tokenpriority_trainer.demo.progress import Progress
from tokenpriority_trainer.demo.scale import Scale

_POINTS = 60
"""Points of a training curve."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """The frozen models and the text that is left; arrays are (N, T), N differs."""

    tokenizer: PreTrainedTokenizerFast
    frozen: dict[str, LlamaForCausalLM]
    """`base` and `reference`, also saved under FOLDER/NAME."""
    curves: dict[str, list[dict[str, float]]]
    """Their training losses, by name: a list of {step, loss}."""
    tuning: Ids
    """Windows the fine-tuning sets are drawn from."""
    clean: Ids
    """Held-out windows."""
    probes: Ids
    idiom: Mask
    """Held-out windows with the idiom planted, and where it stands."""


def prepare(scale: Scale, folder: Path, progress: Progress) -> Prepared:
    """Make all of it. Raises CorpusTooSmall if this Python's standard library has too little text."""
    with progress.stage("Text and tokenizer"):
        parts = corpus.split_sources(scale.corpus_bytes)
        tokenizer = corpus.train_tokenizer(parts.base, scale.vocab_size)
        rows = {
            name: corpus.windows(tokenizer, getattr(parts, name), scale.length, seed)
            for seed, name in enumerate(("base", "curated", "tuning", "heldout"))
        }
    base = models.new_model(scale, tokenizer, seed=0)
    curves = {"base": _fit("base", base, rows["base"], scale.base_steps, scale.base_lr, scale, progress)}
    reference = copy.deepcopy(base)
    steps, lr = scale.reference_steps, scale.reference_lr
    curves["reference"] = _fit("reference", reference, rows["curated"], steps, lr, scale, progress)
    frozen = {"base": base, "reference": reference}
    for name, model in frozen.items():
        models.save(model, tokenizer, folder / name)
    clean = corpus.at_least(rows["heldout"], scale.heldout, "held-out")
    probes, idiom = dataset.plant_some(tokenizer, clean, scale.probes, np.random.default_rng(0))
    planted = idiom.any(axis=1)
    return Prepared(tokenizer, frozen, curves, rows["tuning"], clean, probes[planted], idiom[planted])


def _fit(
    name: str, model: LlamaForCausalLM, rows: Ids, steps: int, lr: float, scale: Scale, progress: Progress
) -> list[dict[str, float]]:
    """Train one model behind its bar; its curve, each point the mean loss since the one before."""
    corpus.at_least(rows, scale.batch, name)
    every = max(1, steps // _POINTS)
    losses: list[float] = []
    curve: list[dict[str, float]] = []
    with progress.stage(f"Training the {name} model", steps) as stage:

        def report(step: int, loss: float) -> None:
            losses.append(loss)
            if step % every == 0:
                curve.append({"step": step, "loss": statistics.fmean(losses[-every:])})
                stage.to(step, f"loss {curve[-1]['loss']:.2f}")

        models.fit(model, rows, steps=steps, batch=scale.batch, lr=lr, seed=0, report=report)
    return curve
