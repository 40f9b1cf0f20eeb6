"""What a live method makes of a batch, in float64 and with a forward pass for each document alone."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tokenpriority.distribution import evidence_of
from tokenpriority.evidence import Evidence
from tokenpriority.methods import Inputs, get_method, prioritise, token_losses
from tokenpriority_trainer import FrozenCopies
from tokenpriority_trainer.live import TORCH

Update = dict[str, Tensor]
Rows = list[dict[str, Any]]


def moved(trainer: Any) -> Update:
    """What training changes in each parameter: by plain SGD, minus the gradient."""
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    trainer.train()
    return {name: p.detach() - before[name] for name, p in trainer.model.named_parameters()}


def assert_same(found: Update, expected: Update) -> None:
    """Equal to float32, measured by the largest change."""
    size = max(value.abs().max().item() for value in expected.values())
    assert 0 < size < math.inf
    for name, value in expected.items():
        torch.testing.assert_close(found[name] / size, value / size, rtol=1e-4, atol=5e-5, msg=f"{name}: {{}}".format)


def near_and_far(make_model: Callable[..., Any]) -> FrozenCopies:
    """A reference near the student of seed 0, and a base further off."""
    reference = make_model()
    with torch.no_grad():
        for parameter, other in zip(reference.parameters(), make_model(5).parameters(), strict=True):
            parameter.add_(0.1 * other)
    return FrozenCopies(reference=reference, base=make_model(7))


def span_labels(row: dict[str, Any], length: int) -> list[float]:
    labels = [math.nan] * length
    for one in row.get("spans", []):
        labels[one["start"] : one["end"]] = [one["priority"]] * (one["end"] - one["start"])
    return labels


def truth(model: Any, rows: Rows, name: str, params: dict[str, Any], frozen: FrozenCopies) -> tuple[Tensor, Inputs]:
    """Log-probs (S, T) float64 with gradient and the inputs of a method, from a forward pass per document."""
    roles = {"student": model, **frozen._given}
    length = max(len(row["input_ids"]) for row in rows)
    method = get_method(name)
    needed = ("student", *method.needs(method.parse(params)))
    logits: dict[str, list[Tensor]] = {role: [] for role in roles if role in needed}
    for row in rows:
        ids = torch.tensor([row["input_ids"]])
        for role, out in logits.items():
            raw = roles[role].double()(ids).logits[0, :-1]
            out.append(torch.nn.functional.pad(raw, (0, 0, 1, length - ids.shape[1])))
    ids = torch.tensor([row["input_ids"] + [0] * (length - len(row["input_ids"])) for row in rows])
    mask = torch.tensor(
        [[label != -100 for label in r["labels"]] + [False] * (length - len(r["labels"])) for r in rows]
    )
    mask[:, 0] = False
    stacked: dict[Any, Tensor] = {role: torch.stack(each) for role, each in logits.items()}
    names = ("entropy", "rank", "top1_logprob", "mass_above", "mass_tied", "entropy_top20", "collision")
    found: dict[str, Evidence] = {
        role: evidence_of(each.detach(), ids, names=names, xp=TORCH) for role, each in stacked.items()
    }
    labels = torch.tensor([span_labels(row, length) for row in rows], dtype=torch.float64)
    inputs = Inputs(mask, labels=labels, token_ids=ids, logits=stacked, **found)
    return torch.log_softmax(stacked["student"], -1).gather(-1, ids[..., None])[..., 0], inputs


def expected(model: Any, rows: Rows, name: str, params: dict[str, Any], frozen: FrozenCopies) -> Update:
    """Minus the float64 gradient of the method's loss, its denominators counted here."""
    method = get_method(name)
    logprob, inputs = truth(model, rows, name, params, frozen)
    parsed = method.parse(params)
    if method.loss is not None:
        charge = token_losses(method, parsed, inputs, xp=TORCH)
        signs = torch.ones_like(charge)
    else:
        signs = prioritise(method, parsed, inputs, xp=TORCH).detach()
        charge = -signs * logprob
        if method.negatives == "unlikelihood":
            charge = torch.where(signs < 0, signs * torch.log1p(-logprob.exp()), charge)
    count = {
        "all": inputs.mask.sum(),
        "kept": (signs != 0).sum(),
        "sequences": inputs.mask.any(-1).sum(),
    }
    if method.denominator == "by_sign":
        loss = charge[signs > 0].sum() / (signs > 0).sum() + charge[signs < 0].sum() / (signs < 0).sum()
    else:
        loss = torch.where(inputs.mask, charge, 0.0).sum() / count[method.denominator]
    loss.backward()
    update = {name: -p.grad.float() for name, p in model.named_parameters()}
    for each in (model, *frozen._given.values()):
        each.float()
    return update
