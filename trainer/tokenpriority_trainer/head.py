"""A model's forward pass that ends in the weighted loss: `model(..., labels=labels, weighted_head=...)`.

The way in is the model's own forward, so that DDP, autocast, PEFT and gradient checkpointing wrap it as they wrap any
other; `libraries.py` takes the same way. Knows where a model keeps its lm head and what it does to its logits.

Shapes: R rows, C columns of the batch; n tokens; what is (R, C - 1) speaks of token i + 1.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from transformers.utils.generic import ModelOutput

from tokenpriority.evidence import Evidence
from tokenpriority.methods import Denominator, Negatives
from tokenpriority_trainer.documents import IGNORED
from tokenpriority_trainer.errors import ConfigError, WeightError
from tokenpriority_trainer.kernel import Shaping, charged, scored
from tokenpriority_trainer.loss import penalty, weighted_loss

HALF = "float16 cannot hold the gradients of a loss that is not scaled yet; use bfloat16"


@dataclass(frozen=True, slots=True, eq=False)
class WeightedHead:
    """What the loss of a micro-batch is made of, besides the student's log-probs."""

    static: Tensor
    """(R, C - 1) weights as they are known before the forward pass; a token of weight 0 keeps it."""
    weigh: Callable[[Tensor, Evidence], Tensor]
    """Static weights (n,) and the student's logprob and entropy (n,) to the weights applied (n,)."""
    counts: Tensor
    """Those of `loss.count`, over the whole global batch."""
    negatives: Negatives
    denominator: Denominator

    def loss(self, static: Tensor, logprob: Tensor, entropy: Tensor) -> Tensor:
        """What tokens of these static weights cost, all (n,); a scalar with gradient on `logprob`."""
        weights = self.weigh(static, Evidence(logprob=logprob.detach(), entropy=entropy))
        down = penalty(logprob, self.negatives)
        return weighted_loss(-logprob, down, weights, self.counts, denominator=self.denominator)


@dataclass
class HeadOutput(ModelOutput):
    """What the pass gives: the loss, and of each token, (R, C - 1), 0 or False where the label is ignored, the other
    fields. Those have no gradient; without a loss, `log_probs` has one. None is what the kernel does not give."""

    loss: Tensor | None = None
    log_probs: Tensor | None = None
    entropy: Tensor | None = None
    is_top1: Tensor | None = None
    label_mask: Tensor | None = None


def add_weighted_head(model: Any) -> None:
    """Give a causal language model's forward the argument `weighted_head`, a WeightedHead; without it nothing changes.

    Raises ConfigError if its lm head is not a plain linear layer.
    """
    reason = unfit(model)
    if reason is not None:
        raise ConfigError(f"kernel: 'chunked' does not go with this model: {reason}")
    extend(model, "weighted_head", _run)


def extend(model: Any, name: str, run: Callable[..., HeadOutput]) -> None:
    """Give a model's forward the argument `name`: unless it is None, `run(model, value, ...)` answers in its place."""
    original = model.forward

    @functools.wraps(type(model).forward)  # `generate` and the trainer read the signature
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        value = kwargs.pop(name, None)
        return original(*args, **kwargs) if value is None else run(self, value, *args, **kwargs)

    model.forward = types.MethodType(forward, model)


def unfit(model: Any) -> str | None:
    """Why the product with the lm head cannot be taken out of this model; None if it can."""
    head = model.get_output_embeddings()
    if type(head) is not torch.nn.Linear:  # a subclass may multiply otherwise, as quantised heads do
        return f"its lm head is {type(head).__name__}, not Linear"
    return HALF if head.weight.dtype == torch.float16 else None


def check_width(columns: int, wanted: int) -> None:
    """Raises WeightError if the model scored another number of positions than the batch has columns."""
    if columns != wanted:
        raise WeightError(
            f"the model scored {columns} positions, weights are for {wanted}; adapters that add virtual tokens are not "
            "supported"
        )


def shaping(config: Any) -> Shaping:
    """What models of this configuration do to their logits, by the names that transformers gives it."""
    text = config.get_text_config()
    factors = (getattr(text, name, None) for name in ("logit_scale", "output_multiplier", "lm_head_multiplier"))
    scale = next((float(factor) for factor in factors if factor is not None), None)
    scaling = getattr(text, "logits_scaling", None)
    if scale is None and scaling is not None:
        # Granite and its kin divide by it; HyperCLOVA X multiplies.
        scale = float(scaling) if text.model_type == "hyperclovax" else 1 / scaling
    return Shaping(1.0 if scale is None else scale, getattr(text, "final_logit_softcapping", None))


def final_states(model: Any, labels: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor, Tensor, Any]:
    """Hidden states (R, C, H), targets and their mask (R, C - 1), and the lm head, all on the head's device.

    Raises WeightError as `check_width`, ConfigError for a head of which only a part is here.
    """
    hidden = model.base_model(*args, **{**kwargs, "use_cache": False}).last_hidden_state
    check_width(hidden.shape[1], labels.shape[1])
    linear = model.get_output_embeddings()  # looked up anew: wrappers replace it
    _check_whole(linear.weight)
    device = linear.weight.device
    targets = labels[:, 1:].to(device)
    return hidden.to(device), targets, targets != IGNORED, linear


def _run(model: Any, head: WeightedHead, *args: Any, labels: Tensor, **kwargs: Any) -> HeadOutput:
    check_width(labels.shape[1], head.static.shape[1] + 1)
    hidden, targets, mask, linear = final_states(model, labels, *args, **kwargs)
    weight, bias, shape = linear.weight, linear.bias, shaping(model.config)
    static = head.static.to(weight.device)
    kept, rest = mask & (static != 0), mask & (static == 0)
    weights = static[kept]

    def charge(rows: slice, logprob: Tensor, entropy: Tensor) -> Tensor:
        return head.loss(weights[rows], logprob, entropy)

    loss, trained = charged(rows_of(hidden, kept), weight, bias, targets[kept], charge, shape)
    read = scored(rows_of(hidden, rest), weight, bias, targets[rest], shape)
    pairs = zip(trained, read, strict=True)
    logprob, entropy, is_top1 = (placed(kept, one) + placed(rest, other) for one, other in pairs)
    return HeadOutput(loss, logprob, entropy, is_top1, mask)


def _check_whole(weight: Tensor) -> None:
    """Raises ConfigError for a weight of which only a part is here: the gradient's other parts would be lost."""
    if isinstance(weight, DTensor) or weight.numel() == 0:
        raise ConfigError("kernel: needs the whole lm head on each process, and it is sharded; set 'trl'")


def rows_of(hidden: Tensor, chosen: Tensor) -> Tensor:
    """(n, H): the rows of hidden (R, C, H) that predict the tokens chosen (R, C - 1)."""
    index = torch.nn.functional.pad(chosen, (0, 1)).flatten().nonzero()[:, 0]
    return hidden.flatten(0, 1).index_select(0, index)


def placed(chosen: Tensor, values: Tensor) -> Tensor:
    """(n,) -> (R, C - 1), 0 where not chosen."""
    return values.new_zeros(chosen.shape).masked_scatter(chosen, values)
