"""Real vLLM engines on this CPU over tiny random models, and the truth they are held against.

The truth is the model's own forward in float64 by transformers, one sequence at a time, and the definitions of the
signals over its logits in NumPy (`test_architectures` holds those against the plain loops of the other engines' tests).
An engine takes 15 s and more to start, so tests share them.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from tokenpriority.evidence import SIGNALS
from tokenpriority_service.engines import Engine, Job

os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
os.environ["VLLM_PLUGINS"] = "tokenpriority"

MAX_LEN = 512
BLOCK = 128
"""Tokens of one block of vLLM's key-value cache on a CPU."""

_SHAPE: dict[str, Any] = {
    "vocab_size": 512,
    "hidden_size": 128,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": MAX_LEN,
    "initializer_range": 0.1,  # large enough for logits that differ
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": None,
    "tie_word_embeddings": False,
}
MODELS: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "llama", **_SHAPE},
    "qwen3": {"model_type": "qwen3", **_SHAPE, "head_dim": 64},
    "gemma2": {
        **{"model_type": "gemma2", **_SHAPE, "head_dim": 32, "sliding_window": 100, "vocab_size": 1001},
        **{"final_logit_softcapping": 5.0, "attn_logit_softcapping": 3.0, "query_pre_attn_scalar": 32},
        "tie_word_embeddings": True,
    },
    "granite": {
        **{"model_type": "granite", **_SHAPE, "logits_scaling": 0.25, "embedding_multiplier": 3.0},
        **{"residual_multiplier": 0.7, "attention_multiplier": 0.2},
    },
    "qwen2_wide": {"model_type": "qwen2", **_SHAPE, "vocab_size": 70_001, "tie_word_embeddings": True},
}
"""Name -> config: the smallest models that show one way each of getting from ids to logits."""

ADAPTERS: dict[str, tuple[int, list[str]]] = {
    "first": (4, ["q_proj", "v_proj", "o_proj", "gate_proj", "down_proj"]),
    "second": (9, ["k_proj", "up_proj"]),
}
"""Name -> rank and modules."""


class Lab:
    """What the tests of this folder share: models, their truth, jobs, engines and comparisons."""

    max_len, block, kinds = MAX_LEN, BLOCK, MODELS

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._exact: dict[str, Any] = {}
        self._truths: dict[tuple[str, bytes], Any] = {}

    def saved(self, kind: str, dtype: torch.dtype = torch.float32) -> Path:
        """The folder a model of `MODELS` is saved in, made once."""
        path = self.folder / f"{kind}-{str(dtype).removeprefix('torch.')}"
        if not path.exists():
            torch.manual_seed(len(kind))
            model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**MODELS[kind]))
            with torch.no_grad():
                for name, parameter in model.named_parameters():
                    if name.endswith(("bias", "norm.weight")):  # made as zeros or ones, which would show nothing
                        parameter.add_(torch.randn_like(parameter) * 0.2)
            model.to(dtype).save_pretrained(path)
        return path

    def load(self, kind: str, dtype: torch.dtype = torch.float64, *, saved: torch.dtype = torch.float32) -> Any:
        """The saved model in `dtype`; eager, because other attentions ignore a soft-cap."""
        load: Any = AutoModelForCausalLM.from_pretrained
        return load(self.saved(kind, saved), dtype=dtype, attn_implementation="eager").eval()

    def truth(self, kind: str, job: Job) -> Any:
        """[8, T] float64 of a model of `MODELS`, see `definitions`; NaN at index 0."""
        key = kind, job.token_ids.tobytes()
        if key not in self._truths:
            if kind not in self._exact:
                self._exact[kind] = self.load(kind)
            self._truths[key] = self.truth_of(self._exact[kind], job)
        return self._truths[key]

    def truth_of(self, model: Any, job: Job) -> Any:
        """The same of any transformers model."""
        ids = torch.from_numpy(job.token_ids.astype(np.int64))
        with torch.no_grad():
            logits = model(input_ids=ids[None], use_cache=False).logits[0].double().numpy()
        rows = self.definitions(logits[:-1], ids[1:].numpy())
        return np.concatenate([np.full((8, 1), np.nan), rows], axis=1)

    @classmethod
    def definitions(cls, logits: Any, targets: Any) -> Any:
        """[8, n] from [n, V] float64: the six signals, entropy_top20, and how near another logit is to the target's."""
        pieces = [slice(first, first + 64) for first in range(0, len(targets), 64)]
        return np.concatenate([np.empty((8, 0)), *(cls._definitions(logits[p], targets[p]) for p in pieces)], axis=1)

    @staticmethod
    def _definitions(logits: Any, targets: Any) -> Any:
        target = np.take_along_axis(logits, targets[:, None], 1)
        peak = logits.max(1, keepdims=True)
        normaliser = peak + np.log(np.exp(logits - peak).sum(1, keepdims=True))
        logq = logits - normaliser
        q, above = np.exp(logq), logits > target
        tied = logits == target
        np.put_along_axis(tied, targets[:, None], False, 1)
        best = np.sort(logq, 1)[:, -20:]
        best = best - np.log(np.exp(best).sum(1, keepdims=True))
        gap = np.abs(logits - target)
        gap[gap == 0] = np.inf
        return np.stack(
            [
                (target - normaliser)[:, 0],
                -(q * logq).sum(1),
                (peak - normaliser)[:, 0],
                1 + above.sum(1),
                (q * above).sum(1),
                (q * tied).sum(1),
                -(np.exp(best) * best).sum(1),
                gap.min(1),
            ]
        )

    def ids(self, length: int, *, seed: int = 0, kind: str = "llama") -> Any:
        """Random ids, (length,) uint32; the last id of the vocabulary is always among two or more."""
        ids = np.random.default_rng(seed).integers(0, MODELS[kind]["vocab_size"], length).astype(np.uint32)
        if length > 1:
            ids[length // 2] = MODELS[kind]["vocab_size"] - 1
        return ids

    def jobs(self, *lengths: int, seed: int = 0, kind: str = "llama", top20: bool = False) -> list[Job]:
        """Jobs of these lengths, all wanted."""
        return [Job(self.ids(n, seed=1000 * seed + i, kind=kind), top20=top20) for i, n in enumerate(lengths)]

    @staticmethod
    def score(engine: Engine, *calls: Sequence[Job]) -> list[Any]:
        """The results of one call, or of several concurrent ones joined; the engine stays open."""

        async def together() -> list[Any]:
            parts = await asyncio.gather(*(engine.score(jobs) for jobs in calls))
            return [result for part in parts for result in part]

        return asyncio.run(together())

    def check(self, rows: Any, job: Job, expected: Any, *, atol: float = 1e-4) -> float:
        """All signals to `atol`; rank and masses only where no other logit comes so near that rounding may swap them.

        Returns the largest error in nats.
        """
        if isinstance(rows, Exception):
            raise rows
        assert rows.shape == (len(job.rows), len(job.token_ids))
        assert rows.dtype == np.float32
        assert np.isnan(rows[:, : job.score_from]).all()
        got, wanted = rows[:, job.score_from :], expected[:, job.score_from :]
        nats = [0, 1, 2] + [6] * job.top20
        np.testing.assert_allclose(got[nats], wanted[nats], rtol=0, atol=atol)
        apart = wanted[7] > 2 * atol
        np.testing.assert_array_equal(got[3, apart], wanted[3, apart])
        np.testing.assert_allclose(got[4:6, apart], wanted[4:6, apart], rtol=0, atol=atol)
        return float(np.abs(got[nats] - wanted[nats]).max(initial=0))

    def check_all(self, results: Sequence[Any], jobs: Sequence[Job], kind: str, *, atol: float = 1e-4) -> float:
        """`check` of each, against the truth of a model of `MODELS`. Returns the largest error in nats."""
        assert len(results) == len(jobs)
        pairs = zip(results, jobs, strict=True)
        return max((self.check(rows, job, self.truth(kind, job), atol=atol) for rows, job in pairs), default=0.0)

    @staticmethod
    def close_to(rows: Any, others: Any, atol: float) -> None:
        """Two answers to one job are the same but for rounding; ranks may swap where logits are that near."""
        assert rows.shape == others.shape
        nats = [row for row in range(len(rows)) if row != SIGNALS.index("rank")]
        np.testing.assert_allclose(rows[nats], others[nats], rtol=0, atol=atol)

    @staticmethod
    def until(condition: Callable[[], Any], what: str, seconds: float) -> None:
        """Wait for something another process brings about."""
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, f"not within {seconds:g} s: {what}"
            time.sleep(0.02)


class Processes:
    """The processes of an engine, by the names vLLM gives them."""

    @staticmethod
    def below(parent: int) -> dict[int, str]:
        """Every living descendant, pid -> command line."""
        found = {}
        for process in psutil.Process(parent).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                if process.status() != psutil.STATUS_ZOMBIE:
                    found[process.pid] = " ".join(process.cmdline())
        return found

    def named(self, name: str) -> list[int]:
        """Those of this process whose command line holds `name`."""
        return [pid for pid, command in self.below(os.getpid()).items() if name in command]


@pytest.fixture(scope="session")
def vllm(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    """The lab; skips where vLLM is not installed, and keeps vLLM's files out of the home directory."""
    if find_spec("vllm") is None:
        pytest.skip("vLLM is not installed")
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("vllm")
    for name in ("VLLM_CACHE_ROOT", "VLLM_CONFIG_ROOT", "TORCHINDUCTOR_CACHE_DIR"):
        os.environ[name] = str(folder / name)
    return Lab(folder)


@pytest.fixture(scope="session")
def folders(vllm: Lab) -> dict[str, str]:
    """Two adapters that change much, of other ranks on other modules."""
    from peft import LoraConfig, get_peft_model

    made = {}
    for seed, (name, (rank, modules)) in enumerate(ADAPTERS.items()):
        torch.manual_seed(seed)
        config: Any = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=modules)
        model: Any = get_peft_model(vllm.load("llama", torch.float32), config)
        for parameter_name, parameter in model.named_parameters():
            if "lora_B" in parameter_name:  # made as zeros, which would change nothing
                torch.nn.init.normal_(parameter, std=0.1)
        made[name] = str(vllm.folder / f"adapter-{name}")
        model.save_pretrained(made[name])
    return made


@contextlib.contextmanager
def opened(model: Path | str, **settings: Any) -> Iterator[Any]:
    """A VllmEngine over a folder, closed in the end."""
    from tokenpriority_service.engines.vllm.engine import VllmEngine

    engine = VllmEngine(str(model), **{"threads": 1, "kv_cache_bytes": 1 << 26, **settings})
    try:
        yield engine
    finally:
        asyncio.run(engine.close())


@pytest.fixture(scope="session")
def open_engine(vllm: Lab) -> Callable[..., contextlib.AbstractContextManager[Any]]:
    """`with open_engine(folder, **settings) as engine`."""
    return opened


@pytest.fixture(scope="session")
def llama(vllm: Lab) -> Iterator[Any]:
    """A plain Llama that most tests share: steps of 192 tokens, so that prompts are cut, and a prefix cache."""
    with opened(vllm.saved("llama"), max_batch_tokens=192, logits_bytes=1 << 18) as engine:
        yield engine


@pytest.fixture(scope="session")
def cramped(vllm: Lab) -> Iterator[Any]:
    """The same Llama with room for two of its longest sequences and no prefix cache."""
    block_bytes = 2 * 2 * 2 * 32 * BLOCK * 4  # layers, keys and values, heads, head size, tokens, float32
    with opened(
        vllm.saved("llama"), max_batch_tokens=192, kv_cache_bytes=9 * block_bytes, prefix_caching=False
    ) as engine:
        yield engine


@pytest.fixture(scope="session")
def processes() -> Processes:
    return Processes()
