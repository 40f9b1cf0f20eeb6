"""Whether an optimiser step may be taken: something to learn; negative mass, gradient norm and retained NLL in limits.

A step is judged once, after its last backward pass and before the optimiser moves. Signs of static weights are known
earlier, but those of live methods and the gradients are not, and one point in time makes it one decision for all
micro-batches; all processes judge the same reduced numbers, so all of them decide alike. Knows nothing of how weights
and losses are made. Imports torch only where a step is judged, since the configuration reads the limits.
"""

from __future__ import annotations

import logging
import math
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from tokenpriority_trainer.errors import ConfigError, Diverged, GuardStop, NothingToLearn

if TYPE_CHECKING:
    from torch import Tensor

logger = logging.getLogger(__name__)

MEMORY = "tokenpriority_guard"
"""Key in the run's state, and so in every checkpoint, under which stands what the guard remembers."""

LEAST_NLL = 1.0
"""Nats; a lower baseline counts as this, since a small NLL may rise many times over and still be small."""


class Guard(BaseModel):
    """`[guard]`: limits of an optimiser step over the whole global batch. Raises pydantic's ValidationError.

    A gradient norm that is no finite number is beyond any limit, but under fp16, whose scaler leaves out such steps
    by itself.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, strict=True)

    action: Literal["stop", "skip"] = "stop"
    """Before a step beyond a limit: stop the run, or leave the step out."""
    max_negative_share: float | None = Field(None, ge=0, le=1)
    """Share of the sum of |w| that is negative, after schedule and clip; None for no limit."""
    max_grad_norm: float | None = Field(None, gt=0)
    """Norm of the gradients before clipping; None for no limit."""
    max_nll_ratio: float = Field(3.0, gt=1)
    """Mean NLL of the positively weighted tokens of the last `window` steps, over the lowest such mean so far."""
    window: int = Field(16, ge=1)
    """Steps of that mean; none is judged by it before there are so many."""
    patience: int = Field(8, ge=1)
    """Steps in a row that `skip` leaves out at most; the next stops the run."""

    def check_deepspeed(self) -> None:
        """Raises ConfigError for what cannot be under DeepSpeed, which takes its step within the backward pass."""
        if self.action == "skip":
            raise ConfigError("guard.action: 'skip' cannot be under DeepSpeed, which steps within the backward pass")
        if self.max_grad_norm is not None:
            raise ConfigError("guard.max_grad_norm: DeepSpeed does not always give the norm; leave it out")


@dataclass(frozen=True, slots=True)
class Seen:
    """What one optimiser step showed, over all micro-batches and processes."""

    nll: float
    """Sum of the NLL of positively weighted tokens, nats."""
    tokens: float
    """How many these are."""
    negative_share: float
    grad_norm: float | None
    """None where it is not the guard's to judge."""


@dataclass(slots=True)
class Memory:
    """What the guard remembers from step to step; its fields are JSON."""

    nlls: list[list[float]] = field(default_factory=list)
    """[nll, tokens] of the last steps with a positively weighted token, at most `window`."""
    lowest: float | None = None
    """Lowest mean over a whole window so far, nats."""
    skipped: int = 0
    """Steps left out in a row."""

    def see(self, seen: Seen, window: int) -> float | None:
        """Take in a step; the mean NLL over the window, None as long as it is not full."""
        if seen.tokens:
            self.nlls = [*self.nlls, [seen.nll, seen.tokens]][-window:]
        if len(self.nlls) < window:
            return None
        mean = sum(nll for nll, _ in self.nlls) / sum(tokens for _, tokens in self.nlls)
        self.lowest = mean if self.lowest is None else min(self.lowest, mean)
        return mean


class Watch:
    """A guard at work, one optimiser step after the other."""

    def __init__(self, guard: Guard, *, deepspeed: bool = False) -> None:
        if deepspeed:
            guard.check_deepspeed()
        self._guard, self._deepspeed = guard, deepspeed
        self._parts: list[Tensor] = []
        self._empty = False
        self._skipped = 0

    def clear(self) -> None:
        """Begin an optimiser step."""
        self._parts, self._empty = [], False

    def leave_out(self, trained: int, remainder: bool, state: Any, accelerator: Any) -> None:
        """Leave out this step, none of whose `trained` tokens has a weight, if it is the `remainder` of an epoch.

        Every process must call if one does. Raises NothingToLearn for any other step: what keeps nothing of a whole
        batch is no chance. Under DeepSpeed, where no step can be left out, also for the remainder.
        """
        said = f"step {state.global_step + 1}: all {trained} trained tokens of the global batch have weight 0"
        if not remainder:
            raise NothingToLearn(f"{said}; use a larger batch, or a method or parameters that keep more")
        if self._deepspeed:
            raise NothingToLearn(f"{said}, and DeepSpeed can leave out no step; set dataloader_drop_last")
        self._empty = True
        if accelerator.is_main_process:
            logger.warning("%s, which is what the epoch had left; the step is left out", said)

    def add(self, logprobs: Tensor, priorities: Tensor, weights: Tensor) -> None:
        """Add one micro-batch: all (R, C - 1); `priorities` give the sign, `weights` are after schedule and clip."""
        import torch

        positive, nll, zero = priorities > 0, -logprobs.detach().float(), torch.zeros_like(weights)
        sums = (
            torch.where(positive, nll, 0.0),
            positive,
            torch.where(weights < 0, -weights, zero),
            weights.abs(),
        )
        self._parts.append(torch.stack([part.sum().float() for part in sums]))

    def judge(self, grad_norm: Tensor | float | None, state: Any, accelerator: Any) -> bool:
        """Whether the optimiser step that is due must be left out. Every process must call, and all get one answer.

        `grad_norm` is that of the whole model before clipping; `state` the run's TrainerState. A step that has
        nothing to learn is left out unjudged, and nothing of it remembered. Raises GuardStop if the run must end
        before this step, Diverged if the retained NLL is no finite number.
        """
        if self._empty:
            return True
        seen, step = self._seen(grad_norm, accelerator), state.global_step + 1
        if not math.isfinite(seen.nll):
            raise Diverged(f"step {step}: the negative log-likelihood is {seen.nll}: training has diverged")
        memory = Memory(**state.stateful_callbacks.get(MEMORY, {}))
        found = self._beyond(seen, memory)
        memory.skipped = memory.skipped + 1 if found else 0
        state.stateful_callbacks[MEMORY] = asdict(memory)
        if not found:
            return False
        said = f"step {step}: " + " and ".join(found)
        if self._guard.action == "stop":
            raise GuardStop(f"{said}; the step was not taken")
        if memory.skipped > self._guard.patience:
            raise GuardStop(f"{said}; {self._guard.patience} steps in a row were left out before it (guard.patience)")
        self._skipped += 1
        if accelerator.is_main_process:
            logger.warning("%s; the step is left out", said)
        return True

    def drain(self) -> dict[str, float]:
        """What to log: the steps left out since the last call, where steps can be."""
        count, self._skipped = float(self._skipped), 0
        return {"guard_skipped": count} if self._guard.action == "skip" else {}

    def _seen(self, grad_norm: Tensor | float | None, accelerator: Any) -> Seen:
        import torch

        sums = torch.stack(self._parts).sum(0)
        whole: Any = grad_norm
        if hasattr(whole, "full_tensor"):  # of sharded gradients
            whole = whole.full_tensor()
        norm = torch.as_tensor(0.0 if whole is None else whole, dtype=sums.dtype, device=sums.device).detach()
        reduced = accelerator.reduce(torch.cat([sums, norm.reshape(1)])).tolist()
        nll, tokens, negative, total, norms = reduced
        value = norms / accelerator.num_processes
        scaled = accelerator.scaler is not None and not math.isfinite(value)
        share = negative / total if total else 0.0  # no weight is none that is negative
        return Seen(nll, tokens, share, None if whole is None or scaled else value)

    def _beyond(self, seen: Seen, memory: Memory) -> list[str]:
        """What is beyond its limit, each with field, value and limit."""
        guard, found = self._guard, []
        if guard.max_negative_share is not None and seen.negative_share > guard.max_negative_share:
            limit = f"limit {guard.max_negative_share:g} (guard.max_negative_share)"
            found.append(f"negative_share is {seen.negative_share:.4g}, {limit}")
        norm = seen.grad_norm
        if norm is not None and not math.isfinite(norm):
            found.append(f"grad_norm is {norm}, limit any finite number")
        elif norm is not None and guard.max_grad_norm is not None and norm > guard.max_grad_norm:
            found.append(f"grad_norm is {norm:.4g}, limit {guard.max_grad_norm:g} (guard.max_grad_norm)")
        mean = memory.see(seen, guard.window)
        if mean is not None and memory.lowest is not None:
            limit_nll = guard.max_nll_ratio * max(memory.lowest, LEAST_NLL)
            if mean > limit_nll:
                times = f"{guard.max_nll_ratio:g} times its lowest, at least {LEAST_NLL:g} (guard.max_nll_ratio)"
                found.append(f"nll_pos over {guard.window} steps is {mean:.4g}, limit {limit_nll:.4g}: {times}")
        return found


def allow_step(allowed: bool, optimizer: Any, accelerator: Any) -> None:
    """Let the optimiser step that is due be taken, or make it nothing at all: no update, no state, no scheduler.

    accelerate's optimiser does nothing while gradients are not in step, a mark that the Trainer sets anew for each
    micro-batch; and one that says its step was skipped, as after an overflow in fp16, keeps the Trainer from moving
    the scheduler. The Trainer drops the gradients after every step. Zeroed gradients would not do: Adam goes on by
    its momentum and decays the weights.
    """
    optimizer._is_overflow = not allowed  # under fp16 a step that is taken sets it itself
    if not allowed:
        accelerator.gradient_state._set_sync_gradients(False)
        if accelerator.scaler is not None:
            accelerator.scaler.update()  # taking the norm has unscaled the gradients; only this ends that
