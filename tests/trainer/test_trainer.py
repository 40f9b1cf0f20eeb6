"""The trainer's one optimiser step against independent truths: TRL's own, float64 autograd, another split of the batch.

With plain SGD and learning rate 1 a step moves every parameter by minus its gradient, so steps compare gradients.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, get_args

import pytest
import torch
from datasets import Dataset
from torch import Tensor
from trl import SFTTrainer

from tokenpriority.methods import Denominator
from tokenpriority_trainer import Weighting

Update = dict[str, Tensor]
Rows = list[dict[str, Any]]
Step = Callable[..., Update]


def moved(trainer: Any) -> Update:
    """What training changes in each parameter."""
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    trainer.train()
    return {name: p.detach() - before[name] for name, p in trainer.model.named_parameters()}


def assert_same(found: Update, expected: Update, atol: float = 2e-6) -> None:
    assert max(value.abs().max() for value in expected.values()) > 1e-3
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=atol, msg=f"{name}: {{}}".format)


@pytest.fixture
def step(make_trainer: Callable[..., Any]) -> Step:
    return lambda *args, **changes: moved(make_trainer(*args, **changes))


def mixture_of_experts(vocabulary: int) -> Any:
    from transformers import MixtralConfig, MixtralForCausalLM

    torch.manual_seed(0)
    make: Any = MixtralForCausalLM
    config = MixtralConfig(
        vocab_size=vocabulary,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        num_local_experts=4,
        output_router_logits=True,
        router_aux_loss_coef=0.5,
        initializer_range=0.2,
    )
    return make(config).float()


@pytest.mark.parametrize("kind", ["dense", "adapters", "experts"])
@pytest.mark.parametrize("accumulation", [1, 4])
def test_weight_one_is_trls_own_step(
    make_trainer: Callable[..., Any],
    make_model: Any,
    make_args: Any,
    tokenizer: Any,
    rows: Rows,
    weighted: Any,
    kind: str,
    accumulation: int,
) -> None:
    from peft import LoraConfig

    split = {"per_device_train_batch_size": 8 // accumulation, "gradient_accumulation_steps": accumulation}
    lora = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    peft = {"peft_config": lora} if kind == "adapters" else {}

    def student() -> Any:
        return mixture_of_experts(len(tokenizer)) if kind == "experts" else make_model()

    theirs = SFTTrainer(
        student(), make_args(**split), train_dataset=Dataset.from_list(rows), processing_class=tokenizer, **peft
    )
    ours = make_trainer(weighted(1.0), model=student(), **split, **peft)
    assert_same(moved(ours), moved(theirs))
    shared = ("loss", "entropy", "mean_token_accuracy", "num_tokens", "grad_norm")
    mine, reference = ours.state.log_history[0], theirs.state.log_history[0]
    if accumulation == 1:  # TRL averages entropy and accuracy over micro-batches of unlike size, ours over tokens
        assert {k: mine[k] for k in shared} == pytest.approx({k: reference[k] for k in shared}, rel=1e-5)
    assert (
        mine["nll_pos"] == pytest.approx(reference["loss"], rel=1e-5) or kind == "experts"
    )  # whose loss holds the router's share too


def test_weight_zero_under_kept_is_a_label_left_out(step: Step, rows: Rows) -> None:
    some = [{**row, "priorities": [float(k % 2) for k in range(len(row["labels"]))]} for row in rows]
    none = [{**row, "labels": [label if k % 2 else -100 for k, label in enumerate(row["labels"])]} for row in rows]
    assert_same(step(some, Weighting(denominator="kept")), step(none))


def test_minus_one_by_ascent_moves_the_other_way(step: Step, weighted: Any) -> None:
    down = step(weighted(-1.0), Weighting(negatives="ascent"))
    assert_same({name: -value for name, value in down.items()}, step(weighted(1.0)))


@pytest.mark.parametrize("denominator", get_args(Denominator))
def test_the_step_does_not_depend_on_how_the_batch_is_split(step: Step, signed: Rows, denominator: Denominator) -> None:
    rule = Weighting(denominator=denominator)
    whole = step(signed, rule, per_device_train_batch_size=8)
    for size in (1, 2, 4):
        split = {"per_device_train_batch_size": size, "gradient_accumulation_steps": 8 // size}
        assert_same(step(signed, rule, **split), whole)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_packed_documents_train_as_padded_ones(step: Step, make_model: Any, signed: Rows, attention: str) -> None:
    padded = step(signed, model=make_model(attn_implementation=attention))
    packed = step(signed, model=make_model(attn_implementation=attention), packing=True, max_length=40)
    assert_same(packed, padded)


def full_precision(model: Any, rows: Rows, loss: Callable[[Tensor, Tensor], Tensor]) -> Update:
    """Minus the float64 gradient of loss(p, w), summed over trained tokens; the model forwards one row at a time."""
    model = model.double()
    total = torch.zeros((), dtype=torch.float64)
    for row in rows:
        ids = torch.tensor([row["input_ids"]])
        p = torch.softmax(model(ids).logits[0, :-1], -1).gather(-1, ids[0, 1:, None])[:, 0]
        trained = torch.tensor(row["labels"][1:]) != -100
        weights = torch.tensor(row["priorities"][1:], dtype=torch.float64)
        total = total + torch.where(trained, loss(p, weights), 0.0).sum()
    total.backward()
    return {name: -p.grad.float() for name, p in model.named_parameters()}


def trained_tokens(rows: Rows) -> int:
    return sum(label != -100 for row in rows for label in row["labels"][1:])


def test_signed_step_is_float64s_naive_unlikelihood(step: Step, make_model: Any, signed: Rows) -> None:
    count = trained_tokens(signed)

    def naive(p: Tensor, w: Tensor) -> Tensor:
        return torch.where(w > 0, -w * torch.log(p), w * torch.log(1 - p)) / count

    assert_same(step(signed), full_precision(make_model(), signed, naive))


def test_dft_step_is_that_of_the_loss_one_minus_p(step: Step, make_model: Any, weighted: Any) -> None:
    rows = weighted(1.0)
    count = trained_tokens(rows)
    expected = full_precision(make_model(), rows, lambda p, _: (1 - p) / count)
    scale = {name: 30 * value for name, value in expected.items()}  # gradients of 1 - p are small at random
    found = {name: 30 * value for name, value in step(rows, Weighting.of("dft")).items()}
    assert_same(found, scale, atol=1e-5)


def test_a_student_factor_multiplies_positive_weights_and_leaves_negative_ones(
    step: Step, make_model: Any, signed: Rows
) -> None:
    count = trained_tokens(signed)

    def naive(p: Tensor, w: Tensor) -> Tensor:
        return torch.where(w > 0, -w * p.detach() * torch.log(p), w * torch.log(1 - p)) / count

    found = step(signed, Weighting.of("prift_mass", student="dft"))
    assert_same(found, full_precision(make_model(), signed, naive))


def test_span_labels_override_the_priorities(step: Step, signed: Rows) -> None:
    replaced = [
        {**row, "priorities": [-1.0 if 1 <= k < 3 else w for k, w in enumerate(row["priorities"])]} for row in signed
    ]
    spans = [{**row, "spans": [{"start": 1, "end": 3, "priority": -1.0}]} for row in signed]
    assert_same(step(spans), step(replaced))


def test_a_micro_batch_without_any_weight_is_fine(step: Step, weighted: Any) -> None:
    rows = weighted(0.0)[:4] + weighted(1.0)[4:]
    assert_same(step(rows, per_device_train_batch_size=1, gradient_accumulation_steps=8), step(rows))
