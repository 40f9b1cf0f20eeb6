"""Live methods in the trainer: padded, packed and split, against float64 on one document at a time."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft import LoraConfig

from live_truth import Rows, Update, assert_same, expected, moved, near_and_far, truth
from tokenpriority.methods import get_method, prioritise
from tokenpriority_trainer import FrozenCopies, Weighting
from tokenpriority_trainer.live import TORCH

Step = Callable[..., Update]

SPLITS = [{"per_device_train_batch_size": 8 // n, "gradient_accumulation_steps": n} for n in (2, 4, 8)]
PACKED = {"packing": True, "max_length": 40}


@pytest.fixture
def step(make_trainer: Callable[..., Any]) -> Step:
    return lambda *args, **changes: moved(make_trainer(*args, **changes))


@pytest.fixture
def frozen(make_model: Any) -> Callable[[], FrozenCopies]:
    return lambda: near_and_far(make_model)


@pytest.fixture
def labelled(rows: Rows) -> Rows:
    """The rows with signed labels on some tokens, 0 among them."""
    labels = [
        {"start": 1, "end": 2, "priority": -1.0},
        {"start": 2, "end": 3, "priority": 0.5},
        {"start": 4, "end": 6, "priority": -2.0},
        {"start": 6, "end": 7, "priority": 0.0},
    ]
    return [{**row, "spans": [one for one in labels if one["end"] <= len(row["input_ids"])]} for row in rows]


WEIGHTS: list[tuple[str, dict[str, Any]]] = [
    ("talr", {}),
    ("cayley", {}),
    ("deft", {}),
    ("focal", {}),
    ("mile", {}),
    ("eaft", {}),
    ("ranktuner", {}),
    ("infosft", {}),
    ("bll_threshold", {"side": "top", "tau": 0.002}),
    ("profit", {"tau": 0.002}),
    ("rho1", {"keep": 0.5}),
    ("iw_sft", {}),
    ("sstoken_excess", {}),
    ("rft", {"tau": 1.0}),
    ("cdpo", {}),
    ("gem", {}),
    ("asft", {}),
    ("unlikelihood", {}),
]
FORGETTING: list[tuple[str, dict[str, Any]]] = [
    ("ga", {}),
    ("graddiff", {}),
    ("wga", {"forget": "labelled"}),
    ("satimp", {"forget": "labelled", "beta1": 0.5}),
    ("npo", {"forget": "labelled"}),
    ("npo", {}),
    ("simnpo", {"forget": "labelled"}),
    ("tnpo", {"forget": "labelled", "beta": 0.5}),
    ("wtnpo", {"beta": 0.2, "alpha": 0.2}),
    ("ce_u", {"forget": "labelled"}),
    ("undial", {"forget": "labelled"}),
]


@pytest.mark.parametrize(("name", "params"), WEIGHTS)
def test_a_live_method_takes_float64s_step_padded_and_packed(
    step: Step, make_model: Any, rows: Rows, frozen: Any, name: str, params: dict[str, Any]
) -> None:
    rule, copies = Weighting.of(name, params), frozen()
    expect = expected(make_model(), rows, name, params, copies)
    assert_same(step(rows, rule, local=copies), expect)
    assert_same(step(rows, rule, local=copies, **PACKED), expect)


@pytest.mark.parametrize(("name", "whole"), [("deft", False), ("cayley", False), ("eaft", True)])
@pytest.mark.parametrize("adapters", [None, LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")])
def test_logits_are_made_for_what_trls_head_does_not_give_alone(
    make_trainer: Any, rows: Rows, name: str, whole: bool, adapters: Any
) -> None:
    """TRL's head reads the lm head's weight, a chunk at a time; the layer itself gives all logits whenever it runs."""
    trainer = make_trainer(rows, Weighting.of(name), peft_config=adapters)
    made: list[torch.Size] = []
    trainer.model.get_output_embeddings().register_forward_hook(lambda *given: made.append(given[2].shape))
    trainer.train()
    assert trainer.kernel == "trl"
    assert bool(made) == whole


@pytest.mark.parametrize(("name", "params"), FORGETTING)
def test_an_unlearning_method_reads_the_labels_itself(
    step: Step, make_model: Any, labelled: Rows, frozen: Any, name: str, params: dict[str, Any]
) -> None:
    rule, copies = Weighting.of(name, params), frozen()
    expect = expected(make_model(), labelled, name, params, copies)
    assert_same(step(labelled, rule, local=copies), expect)
    assert_same(step(labelled, rule, local=copies, **PACKED), expect)


@pytest.mark.parametrize(
    ("name", "params"),
    [
        ("profit", {"tau": 0.002}),
        ("sstoken_excess", {}),
        ("npo", {"forget": "labelled"}),
        ("graddiff", {}),
        ("ce_u", {}),
        ("iw_sft", {}),
    ],
)
@pytest.mark.parametrize("denominator", [None, "kept"])
def test_the_step_of_a_live_method_does_not_depend_on_the_split(
    make_trainer: Any, labelled: Rows, frozen: Any, name: str, params: dict[str, Any], denominator: Any
) -> None:
    rule, copies = Weighting.of(name, params, denominator=denominator), frozen()
    clip = {"max_grad_norm": 0.02 if name == "ce_u" else 0.1}  # clipping must see the gradient after its denominator
    whole = make_trainer(labelled, rule, local=copies, **clip)
    update = moved(whole)
    assert whole.state.log_history[0]["grad_norm"] > clip["max_grad_norm"]
    for split in SPLITS:
        trainer = make_trainer(labelled, rule, local=copies, **split, **clip)
        assert_same(moved(trainer), update)
        for key in ("loss", "grad_norm", "kept_share", "nll_pos"):
            one, other = (each.state.log_history[0].get(key) for each in (whole, trainer))
            assert other == (one if one is None else pytest.approx(one, rel=1e-4)), key


def test_everything_composed_is_the_product_of_its_steps(step: Step, make_model: Any, signed: Rows) -> None:
    rule = Weighting.of(
        "prift_mass",
        student="focal",
        student_params={"gamma": 1.0},
        forget="wga",
        forget_params={"beta": 0.5},
        schedule={"shape": "constant", "start": 3.0, "sign": "both"},
        clip=(-0.2, 4.0),
        denominator="all",
    )
    model = make_model().double()
    per_row = []
    for row in signed:
        ids = torch.tensor([row["input_ids"]])
        logprob = torch.log_softmax(model(ids).logits[0, :-1], -1).gather(-1, ids[0, 1:, None])[:, 0]
        trained = [label != -100 for label in row["labels"][1:]]
        per_row += list(zip(logprob, row["priorities"][1:], trained, strict=True))
    tokens = [(lp, w) for lp, w, is_trained in per_row if is_trained]
    spared = [1 - math.exp(lp.item()) for lp, w in tokens if w > 0]
    loss = torch.zeros((), dtype=torch.float64)
    for lp, w in tokens:
        p = math.exp(lp.item())
        factor = (1 - p) / (sum(spared) / len(spared)) if w > 0 else p**0.5
        final = min(max(3.0 * w * factor, -0.2), 4.0)
        loss = loss - final * lp
    (loss / len(tokens)).backward()
    assert_same(step(signed, rule), {name: -p.grad.float() for name, p in model.named_parameters()})


def test_span_labels_stand_over_a_live_signed_method(step: Step, make_model: Any, labelled: Rows, frozen: Any) -> None:
    copies, params = frozen(), {"keep": 0.5, "scope": "sequence"}
    rule = Weighting.of(
        "forgetting", params, denominator="all", schedule={"shape": "constant", "start": 1.0}, local=True
    )
    model = make_model()
    logprob, inputs = truth(model, labelled, "forgetting", params, copies)
    method = get_method("forgetting")
    weights = prioritise(method, method.parse(params), inputs, xp=TORCH)
    assert inputs.labels is not None
    weights = torch.where(inputs.mask & ~torch.isnan(inputs.labels), inputs.labels, weights)
    (-(weights * logprob).sum() / inputs.mask.sum()).backward()
    update = {name: -p.grad.float() for name, p in model.named_parameters()}
    for each in copies._given.values():
        each.float()
    assert_same(step(labelled, rule, local=copies), update)
