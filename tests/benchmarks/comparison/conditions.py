"""What every training of one noise level and seed shares: the spoilt set, frozen evidence of it, and the trials.

The demo's text, tokenizer, models and ways of spoiling, at a smaller scale. Knows nothing of methods or trainings.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from tokenpriority.evidence import Evidence
from tokenpriority_service.engines import Job, load_engine
from tokenpriority_trainer.demo import dataset
from tokenpriority_trainer.demo.dataset import Examples
from tokenpriority_trainer.demo.evaluate import Trials
from tokenpriority_trainer.demo.preparation import Prepared, prepare
from tokenpriority_trainer.demo.progress import Progress
from tokenpriority_trainer.demo.scale import Scale

SCALE = Scale(
    vocab_size=1024, length=64, width=64, base_steps=1200, reference_steps=250, examples=640, tuning_steps=80,
    heldout=192, probes=96, noisy_share=0.6, idiom_share=0.25,
)  # fmt: skip
"""A training takes some seconds on one core."""
NOISE = (0.1, 0.25, 0.5)
"""Share of a noisy example's tokens that are replaced: light, the demo's, heavy."""


@dataclass(frozen=True, slots=True)
class Condition:
    """One noise level and seed."""

    noise: float
    seed: int
    examples: Examples
    evidence: dict[str, list[Evidence]]
    """`reference` and `base`: the evidence of each example, with entropy_top20."""
    trials: Trials


class Conditions:
    """Makes conditions; the frozen models are trained once and lie in `folder`/base and `folder`/reference."""

    def __init__(self, folder: Path, scale: Scale = SCALE) -> None:
        self.folder, self.scale = folder, scale
        folder.mkdir(parents=True, exist_ok=True)
        with Progress(Console(stderr=True)) as progress:
            self.prepared: Prepared = prepare(scale, folder, progress)

    def make(self, noise: float, seed: int) -> Condition:
        """The condition; the same for the same noise and seed."""
        examples = dataset.spoil(
            self.prepared.tokenizer, self.prepared.tuning, replace(self.scale, noise_rate=noise), seed
        )
        evidence = {name: self._evidence(name, examples) for name in ("reference", "base")}
        noisy = examples.noise.any(axis=1)
        first = slice(0, self.scale.heldout)
        trials = Trials(
            clean=self.prepared.clean,
            noisy=examples.token_ids[noisy][first],
            noise=examples.noise[noisy][first],
            probes=self.prepared.probes,
            idiom=self.prepared.idiom,
        )
        return Condition(noise, seed, examples, evidence, trials)

    def _evidence(self, name: str, examples: Examples) -> list[Evidence]:
        engine = load_engine("torch", model=str(self.folder / name), dtype="float32", threads=1)

        async def score() -> list[Any]:
            try:
                return await engine.score([Job(ids.astype(np.uint32), top20=True) for ids in examples.token_ids])
            finally:
                await engine.close()

        rows = asyncio.run(score())
        for each in rows:
            if isinstance(each, Exception):
                raise each
        return [Evidence.from_rows(each) for each in rows]
