"""Log-probs of tokens by a library's kernel: Liger's, or Apple's Cut Cross-Entropy (CCE).

Knows how each is called, what it can do to logits, and from which version on its gradients are right. Both hold no
logits; their log-probs have a gradient whatever loss follows. Knows nothing of weights or of the trainer. CCE is called
without its gradient filter: it leaves out entries of softmax - onehot below a threshold before they are multiplied by
the token's weight, so that large weights, and the whole push of a negative one on the tail, would be cut.

Shapes: n tokens, H hidden size, V vocabulary; R rows, C columns of the batch.
"""

from __future__ import annotations

import importlib
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Literal

import torch
from packaging.version import Version
from torch import Tensor

from tokenpriority_trainer.head import HeadOutput, extend, final_states, placed, rows_of, shaping
from tokenpriority_trainer.kernel import Shaping, factors

Library = Literal["liger", "cce"]

SIGNALS: dict[Library, frozenset[str]] = {"liger": frozenset({"logprob", "entropy"}), "cce": frozenset({"logprob"})}
"""What each says of a token; neither says which token is likeliest."""

_PACKAGES: dict[Library, tuple[str, str, str]] = {
    "liger": ("liger-kernel", "0.8.2", "older ones give wrong gradients of single tokens in silence"),
    "cce": ("cut-cross-entropy", "25.1.1", "older ones were not tried"),
}
"""The package, the least version of it, and why."""

_HOPPER = (9, 0)
"""Compute capability on which Liger has a kernel of its own, for bfloat16 alone and by way of nvidia-cutlass-dsl."""


def lack(library: Library, model: Any, *, autocast: torch.dtype | None) -> str | None:
    """Why a library cannot score this model's tokens here, None if it can; without `autocast` in its own dtype."""
    weight = model.get_output_embeddings().weight
    return absent(library) or beyond(library, model) or unready(library, autocast or weight.dtype, weight.device)


def absent(library: Library) -> str | None:
    """What is wrong with the installed package; None if nothing."""
    package, least, why = _PACKAGES[library]
    install = f"pip install 'tokenpriority[{library}]'"
    try:
        installed = version(package)
    except PackageNotFoundError:
        return f"{package} >= {least} is not installed: {install}"
    if Version(installed) < Version(least):
        return f"{package} is {installed}, and must be {least} or later ({why}): {install}"
    return None


def beyond(library: Library, model: Any) -> str | None:
    """What this model does to its logits that a library cannot do; None if nothing."""
    if model.get_output_embeddings().bias is not None:
        return f"{library} adds no bias to the logits, and the model's lm head has one"
    shape = shaping(model.config)
    if library == "liger" and shape.cap is not None:
        return f"liger caps no logits, and the model's are capped at {shape.cap:g} (final_logit_softcapping)"
    if library == "liger" and shape.scale <= 0:
        return f"liger scales logits by positive factors alone, and the model's is {shape.scale:g}"
    return None


def unready(library: Library, dtype: torch.dtype, device: torch.device) -> str | None:
    """Why an installed library cannot compute on this device in this dtype; None if it can."""
    if device.type != "cuda":
        return f"{library} needs a CUDA device, and the model is on {device.type}"
    hopper = torch.cuda.get_device_capability(device) == _HOPPER
    if (library == "cce" or hopper) and dtype != torch.bfloat16:
        return f"{library} computes in bfloat16 here, not {str(dtype).removeprefix('torch.')}: set bf16 = true"
    name = "cut_cross_entropy" if library == "cce" else "liger_kernel.ops.fused_linear_scaled_cross_entropy"
    if library == "liger" and hopper:
        name = "liger_kernel.ops.cutedsl.ops.fused_scaled_cross_entropy_sm90"
    try:
        importlib.import_module(name)
    except ImportError as error:
        more = ": pip install 'liger-kernel[cutedsl]'" if library == "liger" and hopper else ""
        return f"{library} cannot be imported ({error}){more}"
    return None


def add_library_head(model: Any, library: Library) -> None:
    """Give a causal language model's forward the argument `library_head`: with True it gives log-probs."""
    extend(model, "library_head", partial(_run, library))


def _run(library: Library, model: Any, _: bool, *args: Any, labels: Tensor, **kwargs: Any) -> HeadOutput:
    hidden, targets, mask, linear = final_states(model, labels, *args, **kwargs)
    picked = rows_of(hidden, mask), linear.weight, targets[mask]
    logprob, entropy = logprobs(library, *picked, shaping(model.config))
    return HeadOutput(
        log_probs=placed(mask, logprob), entropy=None if entropy is None else placed(mask, entropy), label_mask=mask
    )


def logprobs(
    library: Library, hidden: Tensor, weight: Tensor, targets: Tensor, shape: Shaping
) -> tuple[Tensor, Tensor | None]:
    """Log-probs (n,) float32 with gradient to hidden (n, H) and weight (V, H), and entropies (n,) float32 without one.

    `targets` (n,) is int64 in [0, V). Products are in autocast's dtype where it is on, else in that of `hidden`. None
    stands for entropies the library does not give. With n = 0 the first is empty and keeps hidden and weight connected.
    """
    matrix, _ = factors(hidden, weight, None)
    if not len(targets):
        empty = (hidden.to(matrix.dtype) @ matrix.t()).float().sum(-1)
        return empty, empty.detach() if "entropy" in SIGNALS[library] else None
    return (_liger if library == "liger" else _cce)(hidden, matrix, targets, shape)


def _liger(hidden: Tensor, matrix: Tensor, targets: Tensor, shape: Shaping) -> tuple[Tensor, Tensor]:
    from liger_kernel.ops.fused_linear_scaled_cross_entropy import LigerFusedLinearScaledCrossEntropyFunction

    function: Any = LigerFusedLinearScaledCrossEntropyFunction
    inputs = hidden.to(matrix.dtype).contiguous(), matrix.contiguous(), targets
    nll, entropy = function.apply(*inputs, temperature=1 / shape.scale, return_entropy=True)
    return -nll.float(), entropy.detach().float()


def _cce(hidden: Tensor, matrix: Tensor, targets: Tensor, shape: Shaping) -> tuple[Tensor, None]:
    from cut_cross_entropy import linear_cross_entropy

    scaled = hidden if shape.scale == 1.0 else hidden * shape.scale
    # Its kernel needs a GPU; its own form in torch, which holds the logits, does the same anywhere.
    form = {"impl": "cce", "filter_eps": None} if hidden.is_cuda else {"impl": "torch_compile"}
    nll = linear_cross_entropy(scaled.to(matrix.dtype), matrix, targets, softcap=shape.cap, reduction="none", **form)
    return -nll.float(), None
