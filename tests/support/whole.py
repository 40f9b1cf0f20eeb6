"""Micro-batches of whole distributions, and a method over them run on token after token by a naive formula."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import array_api_strict
import torch
from hypothesis import strategies as st
from torch import Tensor

from tokenpriority.methods import Inputs, Role, get_method, prioritise, token_losses

Given = dict[str, Any]
ROLES: tuple[Role, ...] = ("student", "reference", "base")


@dataclass
class Batch:
    """A micro-batch, (S, T) and (S, T, V), in float64; rows may be padded at the end with id -100."""

    logits: dict[Role, Tensor]
    token_ids: Tensor
    mask: Tensor
    labels: Tensor

    def inputs(self, convert: Callable[[Tensor], Any] = lambda values: values) -> Inputs:
        logits: Mapping[Role, Any] = {role: convert(values) for role, values in self.logits.items()}
        ids, mask, labels = (convert(values) for values in (self.token_ids, self.mask, self.labels))
        return Inputs(mask, token_ids=ids, labels=labels, logits=logits)


@st.composite
def batches(draw: st.DrawFn) -> Batch:
    """1 to 3 rows of 1 to 7 tokens over 2 to 30; ties, repeated tokens, extreme logits, padding, nobody wanted."""
    rows, length, vocab = draw(st.integers(1, 3)), draw(st.integers(1, 7)), draw(st.integers(2, 30))
    magnitude = draw(st.sampled_from([0.5, 4.0, 40.0, 1e4]))
    g = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    return _batch(rows, length, vocab, magnitude, g, wanted=draw(st.sampled_from([0.0, 0.6, 1.0])))


def _batch(rows: int, length: int, vocab: int, magnitude: float, g: torch.Generator, wanted: float) -> Batch:
    def logits() -> Tensor:
        return (torch.randn(rows, length, vocab, generator=g, dtype=torch.float64) * 4).round() / 4 * magnitude

    ids = torch.randint(0, min(vocab, 4), (rows, length), generator=g)  # few, so that they repeat
    mask = torch.rand(rows, length, generator=g) < wanted
    mask[:, 0] = False
    last = torch.randint(1, length + 1, (rows, 1), generator=g)
    padding = torch.arange(length) >= last
    ids[padding], mask[padding] = -100, False
    labels = torch.tensor([math.nan, -1.0, -0.5, 0.0, 2.0], dtype=torch.float64)
    drawn = labels[torch.randint(0, 5, (rows, length), generator=g)]
    return Batch({role: logits() for role in ROLES}, ids, mask, drawn)


PLAIN = _batch(3, 6, 11, 2.0, torch.Generator().manual_seed(5), wanted=0.8)


@dataclass
class Token:
    """What the formula of one token may read: rows of logits [V], its own id, those before it, how many were wanted."""

    z: dict[Role, Tensor]
    y: int
    before: list[int]
    nth: int
    label: float

    def log_p(self, role: Role = "student") -> Tensor:
        return torch.nn.functional.log_softmax(self.z[role], 0)


Naive = Callable[[Token, Given], Tensor]


def naive(batch: Batch, params: Given, each: Naive) -> Tensor:
    """The formula at every wanted token, (S, T), 0 elsewhere."""
    rows = []
    for s, ids in enumerate(batch.token_ids.tolist()):
        row: list[Tensor] = []
        for t, y in enumerate(ids):
            if not batch.mask[s, t]:
                row.append(torch.zeros((), dtype=torch.float64))
                continue
            z = {role: batch.logits[role][s, t] for role in ROLES}
            nth = int(batch.mask[s, : t + 1].sum())
            row.append(each(Token(z, y, ids[:t], nth, float(batch.labels[s, t])), params))
        rows.append(torch.stack(row))
    return torch.stack(rows)


def computed(name: str, params: Given, inputs: Inputs, xp: Any) -> Any:
    method = get_method(name)
    apply = prioritise if method.loss is None else token_losses
    return apply(method, method.parse(params), inputs, xp=xp)


def strict(values: Tensor) -> Any:
    return array_api_strict.asarray(values.numpy())
