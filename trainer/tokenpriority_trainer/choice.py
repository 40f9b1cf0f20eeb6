"""Which kernel a trainer's loss comes from: the one asked for, or the reason in words why it cannot be had.

Knows what `auto` stands for and which trainings each kernel cannot serve. Knows nothing of how kernels compute;
`head.py` and `libraries.py` give them to the model.
"""

from __future__ import annotations

from typing import Any, Literal

import torch

from tokenpriority.errors import InvalidParameter
from tokenpriority.evidence import Evidence
from tokenpriority.methods import Inputs
from tokenpriority_trainer.config import Kernel
from tokenpriority_trainer.errors import ConfigError
from tokenpriority_trainer.head import HALF, add_weighted_head, unfit
from tokenpriority_trainer.libraries import SIGNALS, Library, add_library_head, lack
from tokenpriority_trainer.live import LiveMethod, Part
from tokenpriority_trainer.student import add_fused_signals
from tokenpriority_trainer.weighting import Weighting

Chosen = Literal["trl", "chunked"] | Library

MEASURED = frozenset({"cpu"})
"""Types of device on which the benchmark has shown `chunked` to be at least 10 % faster or 30 % leaner than TRL's head:
tests/benchmarks/trainer.py, the loss at vocabulary 151,936."""


def use_kernel(kernel: Kernel, trainer: Any) -> Chosen:
    """The kernel this trainer's loss comes from; its model is given the head that belongs to it.

    `auto` is `chunked` where that can be had and is measured to be worth it, else `trl`. Raises ConfigError with the
    reason if one asked for by name cannot be had.
    """
    model = trainer.model.get_base_model() if hasattr(trainer.model, "get_base_model") else trainer.model
    if kernel == "trl" or (kernel == "auto" and trainer.args.device.type not in MEASURED):
        return _trls(trainer, model)
    library: Library | None = kernel if kernel == "liger" or kernel == "cce" else None
    reason = _obstacle(trainer)
    if reason is None:
        reason = _without_library(trainer, model) if library is None else _with_library(trainer, model, library)
    if reason is not None:
        if kernel == "auto":
            return _trls(trainer, model)
        raise ConfigError(f"kernel: {kernel!r} cannot be had here: {reason}; set 'trl', or 'auto', which falls back")
    if library is not None:
        add_library_head(model, library)
        return library
    add_weighted_head(model)
    return "chunked"


def _trls(trainer: Any, model: Any) -> Chosen:
    """TRL's head, which gives what is read of the student as far as it can."""
    rule: Weighting = trainer.weighting
    if not rule.reads_distribution("student"):
        add_fused_signals(model, rule.reads("student"))
    return "trl"


def _obstacle(trainer: Any) -> str | None:
    """What in a trainer's settings needs TRL's head; None if nothing does."""
    settings = {
        "the routers' loss of a mixture of experts": trainer.aux_loss_enabled,
        "FSDP, which shards the lm head": trainer.is_fsdp_enabled,
        "DeepSpeed, which may shard the lm head": trainer.is_deepspeed_enabled,
        "torch_compile": trainer.args.torch_compile,
        "several devices in one process": trainer.args.n_gpu > 1,
    }
    found = next((name for name, there in settings.items() if there), None)
    if found is not None:
        return f"{found} needs TRL's head"
    return HALF if trainer.args.fp16 else None


def _without_library(trainer: Any, model: Any) -> str | None:
    """Why the loss cannot be made chunk by chunk; None if it can."""
    rule: Weighting = trainer.weighting
    if rule.deferred:
        return "denominator 'kept' with a live method needs TRL's head"
    beyond = (_beyond_a_token(part, method) for part, method in rule.live)
    return next((reason for reason in beyond if reason is not None), None) or unfit(model)


def _with_library(trainer: Any, model: Any, library: Library) -> str | None:
    """Why a library cannot give all that is read of the student; None if it can."""
    rule: Weighting = trainer.weighting
    given = SIGNALS[library]
    more = [name for name in rule.reads("student") if name not in given]
    if rule.reads_distribution("student"):
        more.append("whole distribution")
    if more:
        names = " and ".join(repr(method.method.name) for _, method in rule.live)
        return f"{names} reads the student's {more[0]}, and {library} gives {' and '.join(sorted(given))} alone"
    return unfit(model) or lack(library, model, autocast=torch.bfloat16 if trainer.args.bf16 else None)


def _beyond_a_token(part: Part, method: LiveMethod) -> str | None:
    """Why a live method cannot weigh a token by the student's logprob and entropy on it alone; None if it can."""
    name = f"method {method.method.name!r}"
    own = part == "method" and (method.method.labels == "inside" or method.method.sign == "signed")
    if method.method.loss is not None or own or method.method.reads_prompt:
        return f"{name} reads labels or the prompt, or gives losses"
    if method.method.scope != "token":
        return f"{name} decides over a {method.method.scope}, not token by token"
    one = torch.ones(1, 1)
    try:  # what a formula reads of the options it was given, only the formula knows
        method.weigh(Inputs(one > 0, student=Evidence(logprob=-one, entropy=one)))
    except InvalidParameter as missing:
        return f"{name} reads more than the student's log-prob and entropy: {missing}"
    return None
