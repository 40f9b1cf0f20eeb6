"""What FSDP asks for beyond TRL: models read and written whole by a run whose own parameters are in parts.

Knows accelerate's settings of FSDP. Knows nothing of how parameters are sharded, gathered or reduced: FSDP2 does that
within the forward and backward passes, and neither the loss nor its denominators see it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_FIRST_ALONE = "FSDP_CPU_RAM_EFFICIENT_LOADING"
"""Where accelerate tells transformers that all processes but the first get zeros for a model's weights."""


@contextmanager
def read_by_all() -> Iterator[None]:
    """Every process reads the weights of a model: one that is not sharded is never sent the first process's."""
    before = os.environ.pop(_FIRST_ALONE, None)
    try:
        yield
    finally:
        if before is not None:
            os.environ[_FIRST_ALONE] = before


@contextmanager
def written_whole(accelerator: Any) -> Iterator[None]:
    """A model is written whole: where checkpoints are sharded, transformers would write none at the end of a run."""
    plugin = getattr(accelerator.state, "fsdp_plugin", None)
    if plugin is None:
        yield
        return
    form = plugin.state_dict_type
    plugin.set_state_dict_type("FULL_STATE_DICT")
    try:
        yield
    finally:
        plugin.set_state_dict_type(form)
