"""Real text at a miniature scale, shared by the demo's tests."""

from __future__ import annotations

import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

from tokenpriority_trainer.demo import corpus
from tokenpriority_trainer.demo.corpus import Corpus, Ids
from tokenpriority_trainer.demo.evaluate import Measured
from tokenpriority_trainer.demo.results import Results, Row
from tokenpriority_trainer.demo.scale import Scale

TINY = Scale(
    corpus_bytes=1_200_000,
    vocab_size=512,
    length=48,
    batch=8,
    width=32,
    layers=1,
    heads=2,
    base_steps=30,
    reference_steps=10,
    examples=48,
    tuning_steps=8,
    heldout=24,
    probes=8,
)


@pytest.fixture(scope="session")
def tiny() -> Scale:
    return TINY


@pytest.fixture(scope="session")
def parts() -> Corpus:
    return corpus.split_sources(TINY.corpus_bytes)


@pytest.fixture(scope="session")
def tokenizer(parts: Corpus) -> PreTrainedTokenizerFast:
    return corpus.train_tokenizer(parts.base, TINY.vocab_size)


@pytest.fixture(scope="session")
def rows(parts: Corpus, tokenizer: PreTrainedTokenizerFast) -> Ids:
    windows = corpus.windows(tokenizer, parts.tuning, TINY.length, seed=0)
    windows.flags.writeable = False
    return windows


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(7)


@pytest.fixture
def results() -> Results:
    """Two seeds of a frozen and of three trained models, figures made up."""
    settings = {"scale": {"examples": 48, "length": 48, "noisy_share": 0.6, "noise_rate": 0.25, "idiom_share": 0.25}}
    results = Results(settings, seeds=2)
    for seed in (0, 1):
        measured = Measured(3.5 + seed, 9.0, -40.0 - seed, 1e-9)
        results.rows.append(Row("base", seed, measured))
        for name in ("uniform", "positive", "signed"):
            results.rows.append(Row(name, seed, measured, 0.8, 1.5 + seed, 4000.0, 60.0))
    for name in ("base", "reference"):
        results.curves[name] = [{"step": 10, "loss": 5.0}, {"step": 20, "loss": 4.0}]
    for name in ("uniform", "positive", "signed"):
        results.curves[name] = [{"step": 1, "nll_pos": 4.0}, {"step": 2, "nll_pos": 3.5, "nll_neg": 2.0}]
    results.stages["one stage"] = 12.25
    return results
