"""FSDP on the CPU. accelerate shards on accelerators alone, so here two processes on the CPU count as such.

Everything else is real: gloo, the sharded parameters, the gathers and the reduced gradients. Takes effect when imported
in a process of a launch whose environment holds ENVIRONMENT.
"""

from __future__ import annotations

import os
from typing import Any

ENVIRONMENT = {"ACCELERATE_TORCH_DEVICE": "cpu", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}


def _prepare_backend(*_: Any, **__: Any) -> tuple[str, Any]:
    from accelerate.utils import DistributedType

    return "gloo", DistributedType.MULTI_GPU


if "LOCAL_RANK" in os.environ:
    from accelerate.state import PartialState

    PartialState._prepare_backend = _prepare_backend
