"""Engines: loaded models that score. `engine` holds the protocol, each other engine's file its own library.

`load_engine` is the one place that knows them by name.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tokenpriority_service.engines.engine import Engine, EngineInfo, Job

__all__ = ["ENGINES", "Engine", "EngineInfo", "Job", "load_engine"]


def load_engine(
    kind: str,
    *,
    model: str | None = None,
    dtype: str = "float32",
    device: str = "cpu",
    max_model_len: int | None = None,
    max_batch_tokens: int = 8192,
    logits_bytes: int = 1 << 28,
    threads: int | None = None,
) -> Engine:
    """Load the engine `kind` with a model; blocks until it can score, and imports that engine's library alone.

    See `TorchEngine` for the settings; the fake engine has no use for any but `model` (its name) and `max_model_len`.
    Raises ValueError, naming the field, for an unknown kind or what the engine refuses.
    """
    if kind not in ENGINES:
        raise ValueError(f"engine: expected one of {', '.join(ENGINES)}, got {kind!r}")
    return ENGINES[kind](
        model=model,
        dtype=dtype,
        device=device,
        max_model_len=max_model_len,
        max_batch_tokens=max_batch_tokens,
        logits_bytes=logits_bytes,
        threads=threads,
    )


def _torch(*, model: str | None, **settings: Any) -> Engine:
    from tokenpriority_service.engines.torch import TorchEngine

    if model is None:
        raise ValueError("model: the torch engine needs a folder or a hub name")
    return TorchEngine(model, **settings)


def _fake(*, model: str | None, max_model_len: int | None, **_: Any) -> Engine:
    from tokenpriority_service.engines.fake import FakeEngine

    chosen: dict[str, Any] = {"model": model, "max_model_len": max_model_len}
    return FakeEngine(**{name: value for name, value in chosen.items() if value is not None})


ENGINES: dict[str, Callable[..., Engine]] = {"torch": _torch, "fake": _fake}
"""Engine name -> its loader."""
