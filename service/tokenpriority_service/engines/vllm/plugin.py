"""The vLLM plugin: in a process that asks for it, every causal LM becomes a model that scores.

Loaded by vLLM (entry-point group `vllm.general_plugins`) in the front end, the engine core and every worker. It does
nothing unless our server started the process or the environment says `TOKENPRIORITY_SCORING=1`, so that other uses of
vLLM in the same installation are left alone. An architecture keeps its name, because some models hang
configuration on it.
"""

from __future__ import annotations

import os
from typing import Any

from tokenpriority_service.engines.vllm import parent

SWITCH = "TOKENPRIORITY_SCORING"
"""Environment variable that turns the plugin on when it is "1"."""

ORIGINALS: dict[str, Any] = {}
"""Architecture -> what vLLM had registered under its name."""


def register() -> None:
    """The entry point; may be called more than once."""
    parent.follow()
    if os.environ.get(SWITCH) != "1" or ORIGINALS:
        return
    replace_models()


def replace_models() -> None:
    """Have vLLM take our class for every causal LM, in this process."""
    from tokenpriority_service.engines.vllm import internals

    for architecture in internals.causal_architectures():
        ORIGINALS[architecture] = internals.registered(architecture)
        internals.register(architecture, f"tokenpriority_service.engines.vllm.models:{architecture}")
    internals.bound_prefix_hits()
