"""Tiny random models made at test time, and the truth they are held against.

The truth is a second implementation on purpose: the model's own forward in float64, one sequence at a time, and plain
Python loops over its logits.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from tokenpriority.evidence import SIGNALS
from tokenpriority_service.engines import Engine, Job
from tokenpriority_service.engines.torch import TorchEngine

VOCAB = 97
MAX_LEN = 40

_SHAPE = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": MAX_LEN,
    "initializer_range": 0.3,  # large enough for logits that differ
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": None,
}
_GPT2_SHAPE = {
    "vocab_size": VOCAB,
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 2,
    "n_positions": MAX_LEN,
    "initializer_range": 0.3,
    "bos_token_id": 0,
    "eos_token_id": 1,
}
MODELS: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "llama", **_SHAPE},
    "llama_tied": {"model_type": "llama", **_SHAPE, "tie_word_embeddings": True},
    "qwen3": {"model_type": "qwen3", **_SHAPE, "head_dim": 16, "tie_word_embeddings": True},
    "gpt2": {"model_type": "gpt2", **_GPT2_SHAPE},
    "phi_bias": {"model_type": "phi", **_SHAPE, "num_key_value_heads": 2},
    "gemma2_cap": {"model_type": "gemma2", **_SHAPE, "head_dim": 16, "final_logit_softcapping": 4.0},
    "cohere_scale": {"model_type": "cohere", **_SHAPE, "logit_scale": 0.25},
    "granite_divides": {"model_type": "granite", **_SHAPE, "logits_scaling": 4.0},
    "hyperclovax_multiplies": {"model_type": "hyperclovax", **_SHAPE, "logits_scaling": 0.5},
    "minicpm3_divides_hidden": {
        **{"model_type": "minicpm3", **_SHAPE, "num_key_value_heads": 2, "dim_model_base": 8},
        **{"q_lora_rank": 16, "kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 16},
    },
    "mamba": {"model_type": "mamba", **_SHAPE, "state_size": 4},
    "phi3_longrope": {
        **{"model_type": "phi3", **_SHAPE, "original_max_position_embeddings": 24},
        "rope_parameters": {
            **{"rope_type": "longrope", "rope_theta": 10000.0},
            **{"short_factor": [1.0] * 8, "long_factor": [4.0] * 8},
        },
    },
    "bert_not_causal": {"model_type": "bert-generation", **_SHAPE, "pad_token_id": 0},
    "bert_other_head": {"model_type": "bert", **_SHAPE, "pad_token_id": 0, "is_decoder": True},
}
"""Name -> config; each is the smallest model that shows one way of getting from hidden states to logits."""

REFUSED = ("bert_not_causal", "bert_other_head")


class Lab:
    """What the tests of this folder share: models, their truth, jobs and comparisons."""

    vocab_size = VOCAB
    max_len = MAX_LEN
    kinds = MODELS

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._exact: dict[str, Any] = {}

    def build(self, kind: str, **changes: Any) -> Any:
        """A fresh random model of `MODELS`, in float32; `changes` are config fields."""
        torch.manual_seed(len(kind))
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**{**MODELS[kind], **changes}))
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name.endswith("bias"):  # made as zeros, which would show nothing
                    parameter.normal_()
        return model.eval()

    def saved(self, kind: str) -> Path:
        """The folder a model of `MODELS` is saved in, made once."""
        folder = self._folder / kind
        if not folder.exists():
            self.build(kind).save_pretrained(folder)
        return folder

    def exact(self, kind: str) -> Any:
        """The saved model in float64."""
        if kind not in self._exact:
            load: Any = AutoModelForCausalLM.from_pretrained
            self._exact[kind] = load(self.saved(kind), dtype=torch.float64).eval()
        return self._exact[kind]

    def jobs(self, count: int, longest: int = MAX_LEN, *, seed: int = 0) -> list[Job]:
        """Jobs of mixed lengths over the tiny vocabulary: one of `longest`, one of 1, the others between."""
        rng = np.random.default_rng(seed)
        lengths = [longest, 1, *rng.integers(2, longest + 1, count)][:count]
        return [Job(rng.integers(0, VOCAB, length).astype(np.uint32)) for length in lengths]

    def score(self, engine: Engine, *calls: Sequence[Job]) -> list[Any]:
        """The results of one call, or of several concurrent ones joined; the engine stays open."""

        async def together() -> list[Any]:
            parts = await asyncio.gather(*(engine.score(jobs) for jobs in calls))
            return [result for part in parts for result in part]

        return asyncio.run(together())

    def truth(self, model: Any, job: Job) -> Any:
        """[7, T] float64 from a float64 model: see `statistics`; NaN at index 0."""
        ids = job.token_ids.astype(np.int64)
        with torch.no_grad():
            logits = model(input_ids=torch.from_numpy(ids)[None], use_cache=False).logits[0].double().tolist()
        rows = [self.statistics(row, y) for row, y in zip(logits, ids[1:].tolist(), strict=False)]
        return np.array([[math.nan] * 7, *rows]).T

    def top20(self, model: Any, job: Job) -> Any:
        """(T,) float64 from a float64 model: entropy of the 20 likeliest, renormalised; NaN at index 0."""
        with torch.no_grad():
            ids = torch.from_numpy(job.token_ids.astype(np.int64))
            logits = model(input_ids=ids[None], use_cache=False).logits[0].double().tolist()
        out = [math.nan]
        for row in logits[:-1]:
            weights = [math.exp(z - max(row)) for z in sorted(row, reverse=True)[:20]]
            out.append(-math.fsum(w / math.fsum(weights) * math.log(w / math.fsum(weights)) for w in weights))
        return np.array(out)

    @staticmethod
    def statistics(logits: Sequence[float], y: int) -> list[float]:
        """The six signals of one row by their definitions, then the least distance of another logit to the target's."""
        peak = max(logits)
        normaliser = math.fsum(math.exp(z - peak) for z in logits)
        q = [math.exp(z - peak) / normaliser for z in logits]
        above = [v for v, z in enumerate(logits) if z > logits[y]]
        tied = [v for v, z in enumerate(logits) if z == logits[y] and v != y]
        return [
            logits[y] - peak - math.log(normaliser),
            -math.fsum(p * math.log(p) for p in q if p > 0),
            -math.log(normaliser),
            1 + len(above),
            math.fsum(q[v] for v in above),
            math.fsum(q[v] for v in tied),
            min((abs(z - logits[y]) for z in logits if z != logits[y]), default=math.inf),
        ]

    @staticmethod
    def check(rows: Any, expected: Any, score_from: int = 1, *, atol: float = 1e-4) -> int:
        """All six signals to `atol`; rank and masses only where no other logit comes so near that rounding may swap
        them. Returns at how many positions that was.
        """
        assert rows.shape == (len(SIGNALS), expected.shape[1])
        assert rows.dtype == np.float32
        assert np.isnan(rows[:, :score_from]).all()
        got, wanted = rows[:, score_from:], expected[:, score_from:]
        np.testing.assert_allclose(got[:3], wanted[:3], rtol=0, atol=atol)
        apart = wanted[6] > atol
        np.testing.assert_array_equal(got[3, apart], wanted[3, apart])
        np.testing.assert_allclose(got[4:, apart], wanted[4:6, apart], rtol=0, atol=atol)
        return int(apart.sum())


@pytest.fixture(params=[kind for kind in MODELS if kind not in REFUSED])
def kind(request: pytest.FixtureRequest) -> str:
    """Each model of `MODELS` that can be scored."""
    return str(request.param)


@pytest.fixture
def open_engine(lab: Lab) -> Iterator[Callable[..., TorchEngine]]:
    """Loads torch engines by name of `MODELS` or by folder; all are closed in the end."""
    engines: list[TorchEngine] = []

    def load(model: str | Path, **settings: Any) -> TorchEngine:
        path = lab.saved(model) if isinstance(model, str) else model
        engines.append(TorchEngine(str(path), threads=1, **settings))
        return engines[-1]

    yield load
    for engine in engines:
        asyncio.run(engine.close())


@pytest.fixture(scope="session")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    torch.set_num_threads(1)
    return Lab(tmp_path_factory.mktemp("models"))
