"""The torch engine: any transformers causal LM, in process, on a CPU or a GPU.

Knows how a model is loaded and when to refuse it. Leaves batches to `batches`, threads to `worker`, the forward to
`scorer`. Remote code is never run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM, PreTrainedModel

from tokenpriority.evidence import ENGINE_SIGNALS
from tokenpriority_service.engines import statistics
from tokenpriority_service.engines.batches import plan_batches
from tokenpriority_service.engines.checkpoint import load_tokenizer
from tokenpriority_service.engines.contract import score_wanted
from tokenpriority_service.engines.engine import Engine, EngineInfo, Job, Rows
from tokenpriority_service.engines.fingerprint import model_fingerprint
from tokenpriority_service.engines.head import Head
from tokenpriority_service.engines.probe import check_model
from tokenpriority_service.engines.scorer import Scorer
from tokenpriority_service.engines.worker import Plan, Run, Worker

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
DEVICES = ("cpu", "cuda")

_THREADS = torch.get_num_threads()
"""What torch takes by itself, read before an engine sets another number, which new threads would take over."""


class TorchEngine:
    """Scores with a transformers causal LM; loads it at once, then owns one thread until `close`.

    `model` is a folder or a hub name; `dtype` a key of `DTYPES`; `device` one of `DEVICES`; `max_model_len` is at
    most, and by default, what the config states; `max_batch_tokens` bounds the padded tokens of one forward (a longer
    sequence runs alone), `logits_bytes` the float32 logits in memory; `threads` sets torch's threads on a CPU.

    Logits are computed in `dtype`, as the model does, and the evidence from them in float32. In bfloat16, logits have
    eight significant bits, so many tokens tie; use float32 where ranks and masses must be fine.

    Raises ValueError, naming the field, if the model cannot be loaded as asked or must not be scored (see `probe`).
    """

    def __init__(
        self,
        model: str,
        *,
        dtype: str = "float32",
        device: str = "cpu",
        max_model_len: int | None = None,
        max_batch_tokens: int = 8192,
        logits_bytes: int = 1 << 28,
        threads: int | None = None,
    ) -> None:
        _check_settings(dtype, device, max_batch_tokens, threads)
        self._threads = threads if threads is not None else _THREADS
        # On the worker's thread, where scoring will be: OpenMP keeps threads for each thread that computes, and two
        # such sets on the same cores sleep and wake at every loop, at a third of the speed.
        load = partial(self._load, model, dtype, device, max_model_len, max_batch_tokens, logits_bytes)
        self._worker = Worker(load, name=f"torch engine {model}")

    def _load(
        self,
        model: str,
        dtype: str,
        device: str,
        max_model_len: int | None,
        max_batch_tokens: int,
        logits_bytes: int,
    ) -> tuple[Run, Plan]:
        torch.set_num_threads(self._threads)
        loaded = _load_model(model, DTYPES[dtype], device)
        head = Head(loaded, logits_bytes)
        length = _max_model_len(loaded.config.get_text_config(), max_model_len)
        # Padded heads and padded embeddings both exist; only ids that both know can be scored.
        vocab_size = min(head.vocab_size, _input_vocab_size(loaded))
        check_model(loaded, head, vocab_size, length)
        bounds = _length_bounds(loaded.config.get_text_config())
        self._tokenizer = load_tokenizer(model)
        self._info = EngineInfo(
            engine="torch",
            model=model,
            dtype=dtype,
            max_model_len=length,
            vocab_size=vocab_size,
            fingerprint=model_fingerprint(loaded, self._tokenizer, _numerics(loaded, dtype, device, bounds)),
            signals=ENGINE_SIGNALS,
            length_bounds=bounds,
        )
        self._scorer: Scorer | None = Scorer(loaded, head)
        return self._run, partial(plan_batches, max_tokens=max_batch_tokens, bounds=bounds)

    @property
    def info(self) -> EngineInfo:
        """Constant after construction."""
        return self._info

    @property
    def tokenizer(self) -> Any | None:
        """The tokenizer beside the weights, or None if there is none."""
        return self._tokenizer

    @property
    def adapters(self) -> Mapping[str, Engine]:
        """None: merge an adapter into its model, or load it with the vllm engine."""
        return {}

    @property
    def fault(self) -> str | None:
        """None: it lives and dies with this process."""
        return None

    async def score(self, jobs: Sequence[Job]) -> list[Rows | Exception]:
        """Evidence of each job in order, see `Engine.score`; jobs of concurrent calls share batches."""
        return await score_wanted(jobs, self._info, self._worker.score)

    async def close(self) -> None:
        """Stop after the batch now running and free the model; idempotent."""
        await self._worker.close()
        self._scorer = None

    def _run(self, jobs: Sequence[Job]) -> list[Rows | Exception]:
        assert self._scorer is not None, "the worker has ended before the scorer is freed"
        torch.set_num_threads(self._threads)  # another engine may have set MKL's, which all threads share
        try:
            return self._scorer.score(jobs)
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()
            raise


def _check_settings(dtype: str, device: str, max_batch_tokens: int, threads: int | None) -> None:
    if dtype not in DTYPES:
        raise ValueError(f"dtype: expected one of {', '.join(DTYPES)}, got {dtype!r}")
    if device not in DEVICES:
        raise ValueError(f"device: expected one of {', '.join(DEVICES)}, got {device!r}")
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("device: 'cuda' was asked for, but torch sees no CUDA device")
    if max_batch_tokens < 1:
        raise ValueError(f"max_batch_tokens: expected at least 1, got {max_batch_tokens}")
    if threads is not None and threads < 1:
        raise ValueError(f"threads: expected at least 1, got {threads}")


def _load_model(model: str, dtype: torch.dtype, device: str) -> PreTrainedModel:
    # transformers' types know nothing of output_loading_info.
    load: Any = AutoModelForCausalLM.from_pretrained
    loaded, report = load(model, dtype=dtype, output_loading_info=True, trust_remote_code=False)
    # transformers fills missing weights at random, with a warning.
    lost = sorted(report["missing_keys"]) + sorted(str(key) for key in report["mismatched_keys"])
    if lost:
        raise ValueError(f"model: {model} lacks {len(lost)} weights of {type(loaded).__name__}, the first is {lost[0]}")
    prepared: PreTrainedModel = loaded.eval().requires_grad_(False).to(device)
    return prepared


def _max_model_len(config: Any, asked: int | None) -> int:
    known = getattr(config, "max_position_embeddings", None)
    length = known if asked is None else asked
    if length is None:
        raise ValueError("max_model_len: the model's config states no length, so it must be set")
    if length < 2 or (known is not None and length > known):
        allowed = "at least 2" if known is None else f"2 to {known}"
        raise ValueError(f"max_model_len: expected {allowed} tokens, got {length}")
    return int(length)


def _input_vocab_size(model: Any) -> int:
    return int(model.get_input_embeddings().weight.shape[0])


def _length_bounds(config: Any) -> tuple[int, ...]:
    """The lengths above which a forward, with all that is in it, uses other rotary frequencies (longrope).

    Dynamic NTK scaling depends on the length too, but only beyond `max_position_embeddings`, which is never scored.
    """
    rope = getattr(config, "rope_parameters", None) or {}
    kinds = (rope, *(each for each in rope.values() if isinstance(each, dict)))
    long = [each for each in kinds if each.get("rope_type") == "longrope"]
    return tuple(sorted({int(each["original_max_position_embeddings"]) for each in long}))


def _numerics(model: PreTrainedModel, dtype: str, device: str, bounds: tuple[int, ...]) -> dict[str, str]:
    # Evidence kept before lengths were told apart (2026-11-29) is not to be found any more.
    apart = {"length_bounds": str(bounds)} if bounds else {}
    return {
        **apart,
        "engine": "torch",
        "statistics": str(statistics.VERSION),
        "dtype": dtype,
        "device": device,
        "attention": str(model.config._attn_implementation),
        "matmul": torch.get_float32_matmul_precision(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
