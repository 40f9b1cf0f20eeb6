"""From static weights and the student's pass to the weights and charges of one micro-batch.

Knows the order of the steps: live methods, schedule, clip; and whose evidence comes from where: the student's pass, the
scoring server's log-probs, a frozen copy. Knows nothing of TRL, denominators or processes.

Shapes: R rows, C columns of the batch; S documents, T tokens of the longest.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tokenpriority import composition
from tokenpriority.evidence import Evidence
from tokenpriority.methods import Inputs, Role
from tokenpriority_trainer.collator import LOGPROBS, PRIORITIES, PROMPT, SPAN_PRIORITIES
from tokenpriority_trainer.documents import IGNORED
from tokenpriority_trainer.errors import WeightError
from tokenpriority_trainer.live import TORCH
from tokenpriority_trainer.local import FrozenCopies
from tokenpriority_trainer.loss import penalty, shifted
from tokenpriority_trainer.rows import ROWS, Rows
from tokenpriority_trainer.student import Pass, frozen_evidence
from tokenpriority_trainer.weighting import Weighting


@dataclass(frozen=True, slots=True, eq=False)
class Composed:
    """What the loss is made of, each (R, C - 1)."""

    decided: Tensor
    """Weights after the live methods, which are what denominators count."""
    weights: Tensor
    """Weights after schedule and clip."""
    positive: Tensor
    """Charge of a token of weight 1, with gradient."""
    negative: Tensor
    """Charge of a token of weight -1, with gradient."""


class Composer:
    """Applies a weighting, micro-batch by micro-batch."""

    def __init__(self, weighting: Weighting, copies: FrozenCopies) -> None:
        self._weighting = weighting
        self._copies = copies

    def __call__(self, batch: Mapping[str, Any], passed: Pass, factor: float) -> Composed:
        """The weights and charges of a batch; `factor` is the schedule's at this step.

        `batch` is the whole of it, our keys included. Raises WeightError if the reference's log-probs are to be read
        and not there, EngineFault if evidence or a weight is not finite.
        """
        rule, static = self._weighting, batch[PRIORITIES]
        decided, charge = static, None
        if rule.live:
            rows = Rows(batch[ROWS], tuple(static.shape))
            inputs = self._inputs(batch, passed, rows)
            weights = rows.of(static) * rows.inside
            for part, method in rule.live:
                if method.method.loss is None:
                    weights = method.applied(part, weights, inputs)
                else:
                    charge = shifted(rows.back(method.losses(inputs)))
            decided = rows.back(weights.to(static.dtype))
        decided = shifted(decided)
        positive = -passed.log_probs if charge is None else charge
        own = charge is not None and rule.labels_inside
        negative = positive if own else penalty(passed.log_probs, rule.negatives)
        return Composed(decided, self._finished(decided, factor), positive, negative)

    def tokens(self, static: Tensor, student: Evidence, factor: float) -> Tensor:
        """Weights after schedule and clip (n,) of tokens apart from their batch, in which every live method judges a
        token by the student's evidence on it alone; `static` and the evidence are (n,)."""
        weights = static[None]
        if self._weighting.live:
            one_row = Evidence(**{name: values[None] for name, values in student.present().items()})
            inputs = Inputs(torch.ones_like(weights, dtype=torch.bool), student=one_row)
            for part, method in self._weighting.live:
                weights = method.applied(part, weights, inputs)
        return self._finished(weights[0].to(static.dtype), factor)

    def _finished(self, weights: Tensor, factor: float) -> Tensor:
        rule = self._weighting
        if rule.schedule is not None:
            weights = composition.scheduled(weights, rule.schedule, factor, xp=TORCH)
        return weights if rule.clip is None else composition.clipped(weights, rule.clip, xp=TORCH)

    def _inputs(self, batch: Mapping[str, Any], passed: Pass, rows: Rows) -> Inputs:
        """What the live methods may read, in rows."""
        rule = self._weighting
        trained = batch["labels"] != IGNORED
        mask = rows.of(trained) & rows.inside
        mask[:, 0] = False
        evidence: dict[str, Evidence] = {}
        logits: dict[Role, Tensor] = {}
        for role in rule.roles:
            whole = rule.reads_distribution(role)
            found, distribution = self._read(role, batch, passed, whole)
            if found is not None:
                evidence[role] = _in_rows(found, rows)
            if whole and distribution is not None:
                logits[role] = rows.predicting(distribution).float()
        labels = batch.get(SPAN_PRIORITIES)
        return Inputs(
            mask,
            labels=None if labels is None else rows.of(labels),
            prompt=rows.of(batch[PROMPT]) if PROMPT in batch else None,
            token_ids=rows.of(batch["input_ids"]),
            logits=logits,
            **evidence,
        )

    def _read(
        self, role: Role, batch: Mapping[str, Any], passed: Pass, whole: bool
    ) -> tuple[Evidence | None, Tensor | None]:
        """Evidence (R, C) and, if asked for, logits (R, C, V) of a role."""
        if role == "student":
            return passed.evidence, passed.logits
        signals = self._weighting.reads(role)
        if role == "reference" and role not in self._copies.roles:
            if LOGPROBS not in batch:
                raise WeightError("the source gives no log-probs of the reference, which the method reads")
            return Evidence(batch[LOGPROBS]), None
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "position_ids") if name in batch}
        logits = self._copies.logits(role, inputs)
        evidence = frozen_evidence(logits, batch["labels"], signals) if signals else None
        return evidence, logits if whole else None


def _in_rows(evidence: Evidence, rows: Rows) -> Evidence:
    return Evidence(**{name: rows.of(values) for name, values in evidence.present().items()})
