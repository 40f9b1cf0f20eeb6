"""Every rule for negative weights, 300 steps on a small model that has learnt an unsafe idiom, and one that breaks it.

Text, model and idiom are the demo's: source files of the standard library with a line of the idiom planted in some.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from datasets import Dataset
from trl import SFTConfig

from tokenpriority.composition import Schedule
from tokenpriority_trainer import FrozenCopies, Guard, LocalSource, PrioritySFTTrainer, Weighting
from tokenpriority_trainer.demo import corpus, dataset, models
from tokenpriority_trainer.demo.corpus import Ids
from tokenpriority_trainer.demo.dataset import Mask
from tokenpriority_trainer.demo.evaluate import token_logprobs
from tokenpriority_trainer.demo.scale import Scale
from tokenpriority_trainer.errors import Diverged, GuardStop

SCALE = Scale(corpus_bytes=1_200_000, vocab_size=400, length=48, batch=8, width=64, layers=2, heads=2)
STEPS = 300
NO_LIMIT = Guard(max_nll_ratio=1e9)


@dataclass(frozen=True)
class Unsafe:
    """A model that has learnt the idiom, what it learnt it from, and held-out text without and with it."""

    model: Any
    tokenizer: Any
    rows: Ids
    idiom: Mask
    clean: Ids
    probes: Ids
    probe_idiom: Mask

    def clean_nll(self, model: Any) -> float:
        """Nats per token of held-out text."""
        return float(-token_logprobs(model, self.clean)[:, 1:].mean(dtype=np.float64))

    def fallen(self, model: Any) -> float:
        """How many times less likely than before the idiom's tokens are after held-out text, geometric mean."""
        logprobs = [token_logprobs(each, self.probes)[self.probe_idiom] for each in (self.model, model)]
        return float(np.exp((logprobs[0] - logprobs[1]).mean(dtype=np.float64)))


@pytest.fixture(scope="session")
def unsafe() -> Unsafe:
    parts = corpus.split_sources(SCALE.corpus_bytes)
    files = parts.base[:16]
    tokenizer = corpus.train_tokenizer(files, SCALE.vocab_size)
    rows = corpus.at_least(corpus.windows(tokenizer, files, SCALE.length, 0), 800, "base")
    clean = corpus.at_least(corpus.windows(tokenizer, parts.heldout, SCALE.length, 1), 64, "held-out")
    rng = np.random.default_rng(0)
    rows, idiom = dataset.plant_some(tokenizer, rows, 200, rng)
    probes, probe_idiom = dataset.plant_some(tokenizer, clean, 32, rng)
    planted = probe_idiom.any(axis=1)
    model = models.new_model(SCALE, tokenizer, seed=0)
    models.fit(model, rows, steps=400, batch=SCALE.batch, lr=SCALE.base_lr, seed=0, report=lambda *_: None)
    return Unsafe(model, tokenizer, rows, idiom, clean, probes[planted], probe_idiom[planted])


@pytest.fixture
def unlearning(unsafe: Unsafe, make_args: Callable[..., SFTConfig]) -> Callable[..., Any]:
    """A trainer of a copy of the unsafe model, the idiom labelled -1 and all other tokens retained with weight 1."""
    labelled = [
        {"input_ids": ids.tolist(), "spans": dataset.spans(mask, -1.0)}
        for ids, mask in zip(unsafe.rows, unsafe.idiom, strict=True)
    ]

    def make(weighting: Weighting, guard: Guard | None = None, **changes: Any) -> Any:
        adam = {"optim": "adamw_torch", "learning_rate": 1e-3, "max_grad_norm": 1.0, "max_steps": STEPS}
        local = FrozenCopies(reference=copy.deepcopy(unsafe.model)) if "reference" in weighting.roles else None
        return PrioritySFTTrainer(
            copy.deepcopy(unsafe.model),
            make_args(**{**adam, "logging_steps": 10, "per_device_train_batch_size": SCALE.batch, **changes}),
            Dataset.from_list(labelled),
            priorities=LocalSource(),
            weighting=weighting,
            local=local,
            guard=guard,
            processing_class=unsafe.tokenizer,
        )

    return make


RULES = {
    "unlikelihood": Weighting.of(negatives="unlikelihood"),
    "npo": Weighting.of(forget="npo", forget_params={"beta": 0.05}),
    "wga": Weighting.of(forget="wga", forget_params={"beta": 1.0}),
    "satimp": Weighting.of(forget="satimp", forget_params={"beta1": 1.0}),
    "ascent": Weighting.of(negatives="ascent", clip=(-0.1, 1.0)),
}
"""`ascent` has its default ramp, 0 to 0.25 over the run, and a cap."""


@pytest.mark.slow
@pytest.mark.parametrize("rule", RULES)
def test_the_idiom_is_unlearnt_and_clean_text_is_not(unsafe: Unsafe, unlearning: Callable[..., Any], rule: str) -> None:
    """The default guard stands by and sees nothing wrong."""
    trainer = unlearning(RULES[rule])
    trainer.train()
    assert trainer.state.global_step == STEPS
    fallen = unsafe.fallen(trainer.model)
    risen = unsafe.clean_nll(trainer.model) / unsafe.clean_nll(unsafe.model)
    assert fallen > 10, (fallen, risen)
    assert risen < 1.05, (fallen, risen)


@pytest.mark.slow
def test_without_negative_weights_the_idiom_fades_less(unsafe: Unsafe, unlearning: Callable[..., Any]) -> None:
    """Leaving the idiom out of training is not unlearning it: so much falls by itself."""
    trainer = unlearning(Weighting.of(clip=(0.0, 1.0)))
    trainer.train()
    assert unsafe.fallen(trainer.model) < 10


@pytest.mark.slow
def test_uncapped_ascent_diverges_and_the_guard_stops_it(unsafe: Unsafe, unlearning: Callable[..., Any]) -> None:
    """Plain SGD, no clipping: measured by held-out NLL, which more than tenfolds before the gradient is NaN."""
    sgd = {"optim": "sgd", "learning_rate": 0.5, "max_grad_norm": 0.0, "logging_steps": 1}
    uncapped = Weighting.of(negatives="ascent", schedule=Schedule(shape="constant", start=1.0))
    free = unlearning(uncapped, NO_LIMIT, **sgd)
    with pytest.raises((GuardStop, Diverged), match=r"limit any finite number|has diverged"):
        free.train()
    broken = unsafe.clean_nll(free.model)
    assert not broken < 10 * unsafe.clean_nll(unsafe.model)  # or NaN

    guarded = unlearning(uncapped, Guard(max_nll_ratio=2.0, window=8), **sgd)
    with pytest.raises(GuardStop, match=r"nll_pos over 8 steps is .*guard.max_nll_ratio") as stopped:
        guarded.train()
    assert int(re.findall(r"^step (\d+)", str(stopped.value))[0]) == guarded.state.global_step + 1
    assert guarded.state.global_step < free.state.global_step
    assert not broken < 2 * unsafe.clean_nll(guarded.model)
