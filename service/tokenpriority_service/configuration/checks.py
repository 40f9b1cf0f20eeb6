"""What is known to be wrong before anything is loaded.

Knows the configuration and this machine's files, variables and installed libraries. Knows no engine's inside, and
imports none. What only an engine can tell (weights, memory) it leaves to loading.
"""

from __future__ import annotations

import os
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from tokenpriority_service.configuration.settings import (
    LOOPBACK,
    InvalidSettings,
    ModelSettings,
    RemoteModel,
    Settings,
    TorchModel,
    VllmModel,
)
from tokenpriority_service.engines import missing


def check(settings: Settings) -> None:
    """Raises InvalidSettings, one line naming the key, for the first thing that is wrong."""
    if not settings.models:
        raise InvalidSettings("no models: give --model PATH, or --config FILE with a [models.NAME]")
    for name, each in settings.models.items():
        _check_model(f"models.{name}", each)
    _check_memory(settings)


def check_address(host: str, *, keyed: bool, insecure: bool) -> None:
    """Raises InvalidSettings if anybody could use the server from elsewhere. `keyed`: whether it asks for keys."""
    if not keyed and host not in LOOPBACK and not insecure:
        raise InvalidSettings(
            f"server.host: while no team has a key only loopback ({', '.join(LOOPBACK)}) is listened on, got {host!r}; "
            "make one with `tokenpriority keys create --team NAME`, or give --insecure"
        )


def _check_model(key: str, settings: ModelSettings) -> None:
    if (lacking := missing(settings.engine)) is not None:
        raise InvalidSettings(f"{key}.engine: {lacking}")
    match settings:
        case TorchModel():
            _check_folder(f"{key}.model", settings.model)
        case VllmModel():
            _check_folder(f"{key}.model", settings.model)
            for name, path in settings.adapters.items():
                _check_folder(f"{key}.adapters.{name}", path, hub=False)
        case RemoteModel():
            if settings.tokenizer is not None:
                _check_folder(f"{key}.tokenizer", settings.tokenizer)
            if settings.api_key_env is not None and not os.environ.get(settings.api_key_env):
                raise InvalidSettings(f"{key}.api_key_env: the environment variable {settings.api_key_env} is not set")


def _check_folder(key: str, name: str, *, hub: bool = True) -> None:
    path = Path(name)
    # `owner/name` may be a hub name; anything else that is not there is a path that is wrong.
    is_path = not hub or path.is_absolute() or name.startswith(".") or len(path.parts) > 2
    if is_path and not path.is_dir():
        raise InvalidSettings(f"{key}: no such folder: {name}")


def _check_memory(settings: Settings) -> None:
    """Several vLLM models on the same GPUs state their shares: by default the first takes nearly all the memory."""
    models = {f"models.{name}": each for name, each in settings.models.items() if isinstance(each, VllmModel)}
    if len(models) < 2 or builds_for_cpu():  # on a CPU no share is used, and a KV cache has a small default
        return
    for key, each in models.items():
        if each.memory_share is None:
            others = ", ".join(other for other in models if other != key)
            raise InvalidSettings(
                f"{key}.memory_share: is required, above 0 and at most 1, beside other vLLM models on the same GPUs "
                f"({others}); all shares together at most 1"
            )


def builds_for_cpu() -> bool:
    """Whether the vLLM that is installed is a build for CPUs, as vLLM itself tells it: by its version."""
    try:
        return "cpu" in version("vllm")
    except PackageNotFoundError:
        return True  # the community's build has a name of its own
