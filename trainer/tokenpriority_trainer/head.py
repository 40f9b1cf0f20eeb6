"""A model's forward pass that ends in the weighted loss: `model(..., labels=labels, weighted_head=...)`.

The way in is the model's own forward, so that DDP, autocast, PEFT and gradient checkpointing wrap it as they wrap any
other. Knows where a model keeps its lm head, what it does to its logits, and which trainings `kernel.py` cannot serve.

Shapes: R rows, C columns of the batch; n tokens; what is (R, C - 1) speaks of token i + 1.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from transformers.utils.generic import ModelOutput

from tokenpriority.errors import InvalidParameter
from tokenpriority.evidence import Evidence
from tokenpriority.methods import Denominator, Inputs, Negatives
from tokenpriority_trainer.documents import IGNORED
from tokenpriority_trainer.errors import ConfigError, WeightError
from tokenpriority_trainer.kernel import Shaping, charged, scored
from tokenpriority_trainer.live import LiveMethod, Part
from tokenpriority_trainer.loss import penalty, weighted_loss
from tokenpriority_trainer.weighting import Weighting

Kernel = Literal["trl", "chunked", "auto"]
"""Where the loss is computed: TRL's fused lm head, `kernel.py`, or the latter where it can."""

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
class WeightedOutput(ModelOutput):
    """What the pass gives: the loss, and of each token, (R, C - 1), without gradient, 0 or False where the label is
    ignored, the other fields."""

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
    original = model.forward

    @functools.wraps(type(model).forward)  # `generate` and the trainer read the signature
    def forward(self: Any, *args: Any, weighted_head: WeightedHead | None = None, **kwargs: Any) -> Any:
        if weighted_head is None:
            return original(*args, **kwargs)
        return _run(self, weighted_head, *args, **kwargs)

    model.forward = types.MethodType(forward, model)


def unfit(model: Any) -> str | None:
    """Why the product with the lm head cannot be taken out of this model; None if it can."""
    head = model.get_output_embeddings()
    if type(head) is not torch.nn.Linear:  # a subclass may multiply otherwise, as quantised heads do
        return f"its lm head is {type(head).__name__}, not Linear"
    return HALF if head.weight.dtype == torch.float16 else None


def use_weighted_head(kernel: Kernel, trainer: Any) -> bool:
    """Whether this trainer's loss comes from `kernel.py`; its model is then given the weighted head.

    `trl`: no; `auto`: where it can; `chunked`: ConfigError with the reason where it cannot.
    """
    if kernel == "trl":
        return False
    model = trainer.model.get_base_model() if hasattr(trainer.model, "get_base_model") else trainer.model
    reason = _obstacle(trainer) or unfit(model)
    if kernel == "chunked" and reason is not None:
        raise ConfigError(f"kernel: 'chunked' cannot be had here: {reason}; set 'trl', or 'auto', which falls back")
    if reason is None:
        add_weighted_head(model)
    return reason is None


def _obstacle(trainer: Any) -> str | None:
    """What in a trainer's settings needs TRL's head; None if nothing does."""
    rule: Weighting = trainer.weighting
    settings = {
        "the routers' loss of a mixture of experts": trainer.aux_loss_enabled,
        "denominator 'kept' with a live method": rule.deferred,
        "FSDP, which shards the lm head": trainer.is_fsdp_enabled,
        "DeepSpeed, which may shard the lm head": trainer.is_deepspeed_enabled,
        "torch_compile": trainer.args.torch_compile,
        "several devices in one process": trainer.args.n_gpu > 1,
    }
    found = next((name for name, there in settings.items() if there), None)
    if found is not None:
        return f"{found} needs TRL's head"
    if trainer.args.fp16:
        return HALF
    return next((reason for part, method in rule.live if (reason := _beyond_a_token(part, method))), None)


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


def _run(model: Any, head: WeightedHead, *args: Any, labels: Tensor, **kwargs: Any) -> WeightedOutput:
    hidden = model.base_model(*args, **{**kwargs, "use_cache": False}).last_hidden_state
    check_width(hidden.shape[1], head.static.shape[1] + 1)
    linear = model.get_output_embeddings()  # looked up anew: wrappers replace it
    weight, bias = _whole(linear.weight), linear.bias
    shape, device = shaping(model.config), weight.device
    hidden, targets, static = hidden.to(device), labels[:, 1:].to(device), head.static.to(device)
    mask = targets != IGNORED
    kept, rest = mask & (static != 0), mask & (static == 0)
    weights = static[kept]

    def charge(rows: slice, logprob: Tensor, entropy: Tensor) -> Tensor:
        return head.loss(weights[rows], logprob, entropy)

    loss, trained = charged(_rows(hidden, kept), weight, bias, targets[kept], charge, shape)
    read = scored(_rows(hidden, rest), weight, bias, targets[rest], shape)
    pairs = zip(trained, read, strict=True)
    logprob, entropy, is_top1 = (_placed(kept, one) + _placed(rest, other) for one, other in pairs)
    return WeightedOutput(loss, logprob, entropy, is_top1, mask)


def _whole(weight: Tensor) -> Tensor:
    """Raises ConfigError for a weight of which only a part is here: the gradient's other parts would be lost."""
    if isinstance(weight, DTensor) or weight.numel() == 0:
        raise ConfigError("kernel: 'chunked' needs the whole lm head on each process, and it is sharded; use 'trl'")
    return weight


def _rows(hidden: Tensor, chosen: Tensor) -> Tensor:
    """(n, H): the rows of hidden (R, C, H) that predict the tokens chosen (R, C - 1)."""
    index = torch.nn.functional.pad(chosen, (0, 1)).flatten().nonzero()[:, 0]
    return hidden.flatten(0, 1).index_select(0, index)


def _placed(chosen: Tensor, values: Tensor) -> Tensor:
    """(n,) -> (R, C - 1), 0 where not chosen."""
    return values.new_zeros(chosen.shape).masked_scatter(chosen, values)
