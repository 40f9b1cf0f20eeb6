"""The trainer's one optimiser step against independent truths: TRL's own, float64 autograd, another split of the batch.

With plain SGD and learning rate 1 a step moves every parameter by minus its gradient, so steps compare gradients.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, get_args

import pytest
import torch
from datasets import Dataset
from torch import Tensor
from trl import SFTTrainer

from tokenpriority.methods.method import Denominator
from tokenpriority_trainer import ColumnSource, LocalSource, PrioritySFTTrainer, Weighting
from tokenpriority_trainer.errors import ConfigError, Diverged, NothingToLearn, WeightError

Update = dict[str, Tensor]
Step = Callable[..., Update]
SIGNED = [-1.5, 1.0, 0.0, 0.5, 0.25, -0.5, 2.0]


def examples(count: int = 8, vocabulary: int = 300) -> list[dict[str, list[int]]]:
    """Sequences of 3 to 17 random tokens, part of them not trained on."""
    generator = torch.Generator().manual_seed(3)
    rows = []
    for number in range(count):
        ids = torch.randint(1, vocabulary, (3 + 2 * number,), generator=generator).tolist()
        rows.append({"input_ids": ids, "labels": [-100] * (number % 3) + ids[number % 3 :]})
    return rows


def signed(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows with every kind of weight, unlike from row to row."""
    return [{**r, "priorities": [SIGNED[(i + len(r["labels"])) % 7] for i in r["input_ids"]]} for r in rows]


def weighted(rows: list[dict[str, Any]], weight: float) -> list[dict[str, Any]]:
    return [{**row, "priorities": [weight] * len(row["input_ids"])} for row in rows]


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
def make_trainer(make_model: Callable[..., Any], make_args: Callable[..., Any], tokenizer: Any) -> Callable[..., Any]:
    def make(rows: list[dict[str, Any]], weighting: Weighting | None = None, model: Any = None, **changes: Any) -> Any:
        rest = {key: changes.pop(key) for key in ("peft_config", "eval_dataset") if key in changes}
        return PrioritySFTTrainer(
            model if model is not None else make_model(),
            make_args(**changes),
            Dataset.from_list(rows),
            priorities=ColumnSource() if "priorities" in rows[0] else LocalSource(),
            weighting=weighting,
            processing_class=tokenizer,
            **rest,
        )

    return make


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
    make_trainer: Callable[..., Any], make_model: Any, make_args: Any, tokenizer: Any, kind: str, accumulation: int
) -> None:
    from peft import LoraConfig

    split = {"per_device_train_batch_size": 8 // accumulation, "gradient_accumulation_steps": accumulation}
    lora = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    peft = {"peft_config": lora} if kind == "adapters" else {}

    def student() -> Any:
        return mixture_of_experts(len(tokenizer)) if kind == "experts" else make_model()

    theirs = SFTTrainer(
        student(), make_args(**split), train_dataset=Dataset.from_list(examples()), processing_class=tokenizer, **peft
    )
    ours = make_trainer(weighted(examples(), 1.0), model=student(), **split, **peft)
    assert_same(moved(ours), moved(theirs))
    shared = ("loss", "entropy", "mean_token_accuracy", "num_tokens", "grad_norm")
    mine, reference = ours.state.log_history[0], theirs.state.log_history[0]
    if accumulation == 1:  # TRL averages entropy and accuracy over micro-batches of unlike size, ours over tokens
        assert {k: mine[k] for k in shared} == pytest.approx({k: reference[k] for k in shared}, rel=1e-5)
    assert (
        mine["nll_pos"] == pytest.approx(reference["loss"], rel=1e-5) or kind == "experts"
    )  # whose loss holds the router's share too


def test_weight_zero_under_kept_is_a_label_left_out(step: Step) -> None:
    rows = examples()
    some = [{**row, "priorities": [float(k % 2) for k in range(len(row["labels"]))]} for row in rows]
    none = [{**row, "labels": [label if k % 2 else -100 for k, label in enumerate(row["labels"])]} for row in rows]
    assert_same(step(some, Weighting(denominator="kept")), step(none))


def test_minus_one_by_ascent_moves_the_other_way(step: Step) -> None:
    down = step(weighted(examples(), -1.0), Weighting(negatives="ascent"))
    assert_same({name: -value for name, value in down.items()}, step(weighted(examples(), 1.0)))


@pytest.mark.parametrize("denominator", get_args(Denominator))
def test_the_step_does_not_depend_on_how_the_batch_is_split(step: Step, denominator: Denominator) -> None:
    rows, rule = signed(examples()), Weighting(denominator=denominator)
    whole = step(rows, rule, per_device_train_batch_size=8)
    for size in (1, 2, 4):
        split = {"per_device_train_batch_size": size, "gradient_accumulation_steps": 8 // size}
        assert_same(step(rows, rule, **split), whole)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_packed_documents_train_as_padded_ones(step: Step, make_model: Any, attention: str) -> None:
    rows = signed(examples())
    padded = step(rows, model=make_model(attn_implementation=attention))
    packed = step(rows, model=make_model(attn_implementation=attention), packing=True, max_length=40)
    assert_same(packed, padded)


def full_precision(model: Any, rows: list[dict[str, Any]], loss: Callable[[Tensor, Tensor], Tensor]) -> Update:
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


def trained_tokens(rows: list[dict[str, Any]]) -> int:
    return sum(label != -100 for row in rows for label in row["labels"][1:])


def test_signed_step_is_float64s_naive_unlikelihood(step: Step, make_model: Any) -> None:
    rows = signed(examples())
    count = trained_tokens(rows)

    def naive(p: Tensor, w: Tensor) -> Tensor:
        return torch.where(w > 0, -w * torch.log(p), w * torch.log(1 - p)) / count

    assert_same(step(rows), full_precision(make_model(), rows, naive))


def test_dft_step_is_that_of_the_loss_one_minus_p(step: Step, make_model: Any) -> None:
    rows = weighted(examples(), 1.0)
    count = trained_tokens(rows)
    expected = full_precision(make_model(), rows, lambda p, _: (1 - p) / count)
    scale = {name: 30 * value for name, value in expected.items()}  # gradients of 1 - p are small at random
    found = {name: 30 * value for name, value in step(rows, Weighting.of("dft")).items()}
    assert_same(found, scale, atol=1e-5)


def test_a_student_factor_multiplies_positive_weights_and_leaves_negative_ones(step: Step, make_model: Any) -> None:
    rows = signed(examples())
    count = trained_tokens(rows)

    def naive(p: Tensor, w: Tensor) -> Tensor:
        return torch.where(w > 0, -w * p.detach() * torch.log(p), w * torch.log(1 - p)) / count

    found = step(rows, Weighting.of("prift_mass", student="dft"))
    assert_same(found, full_precision(make_model(), rows, naive))


def test_span_labels_override_the_priorities(step: Step) -> None:
    rows = signed(examples())
    replaced = [
        {**row, "priorities": [-1.0 if 1 <= k < 3 else w for k, w in enumerate(row["priorities"])]} for row in rows
    ]
    spans = [{**row, "spans": [{"start": 1, "end": 3, "priority": -1.0}]} for row in rows]
    assert_same(step(spans), step(replaced))


def test_the_ramp_runs_over_the_steps_of_the_run(make_trainer: Callable[..., Any]) -> None:
    rows = signed(examples())
    trainer = make_trainer(rows, Weighting(ramp=(0.0, 1.0)), max_steps=4, learning_rate=0.0)
    trainer.train()
    shares = [entry["negative_share"] for entry in trainer.state.log_history[:4]]
    weights = [w for r in rows for w, label in zip(r["priorities"][1:], r["labels"][1:], strict=True) if label != -100]
    negative, positive = -sum(w for w in weights if w < 0), sum(w for w in weights if w > 0)
    expected = [negative * k / 4 / (positive + negative * k / 4) for k in range(4)]
    assert shares == pytest.approx(expected, rel=1e-5)


def test_metrics_are_split_by_sign(make_trainer: Callable[..., Any], make_model: Any) -> None:
    rows = signed(examples())
    trainer = make_trainer(rows, per_device_train_batch_size=2, gradient_accumulation_steps=4)
    trainer.train()
    sums = {"pos": 0.0, "neg": 0.0}
    counts = {"pos": 0, "neg": 0, "zero": 0}
    model = make_model()
    for row in rows:
        ids = torch.tensor([row["input_ids"]])
        logprob = torch.log_softmax(model(ids).logits[0, :-1], -1).gather(-1, ids[0, 1:, None])[:, 0].tolist()
        for lp, weight, label in zip(logprob, row["priorities"][1:], row["labels"][1:], strict=True):
            if label != -100:
                sign = "pos" if weight > 0 else "neg" if weight < 0 else "zero"
                counts[sign] += 1
                sums[sign] = sums.get(sign, 0.0) - lp
    found = trainer.state.log_history[0]
    assert found["nll_pos"] == pytest.approx(sums["pos"] / counts["pos"], rel=1e-5)
    assert found["nll_neg"] == pytest.approx(sums["neg"] / counts["neg"], rel=1e-5)
    assert found["kept_share"] == pytest.approx(1 - counts["zero"] / sum(counts.values()), rel=1e-6)
    assert found["num_tokens"] == sum(len(row["input_ids"]) for row in rows)
    assert found["tokens_per_second"] > 0


def test_a_mean_over_no_token_is_left_out(make_trainer: Callable[..., Any]) -> None:
    trainer = make_trainer(weighted(examples(), 1.0))
    trainer.train()
    assert "nll_neg" not in trainer.state.log_history[0]
    assert trainer.state.log_history[0]["negative_share"] == 0


def test_evaluation_is_plain_nll_whatever_the_weights(
    make_trainer: Callable[..., Any], make_model: Any, make_args: Any, tokenizer: Any
) -> None:
    rows = signed(examples())
    ours = make_trainer(rows, eval_dataset=Dataset.from_list(rows), per_device_eval_batch_size=4)
    theirs = SFTTrainer(
        make_model(),
        make_args(per_device_eval_batch_size=4),
        train_dataset=Dataset.from_list(examples()),
        eval_dataset=Dataset.from_list(examples()),
        processing_class=tokenizer,
    )
    assert ours.evaluate()["eval_loss"] == pytest.approx(theirs.evaluate()["eval_loss"], rel=1e-6)


def test_a_step_without_any_weight_stops_the_run(make_trainer: Callable[..., Any]) -> None:
    trainer = make_trainer(weighted(examples(), 0.0))
    with pytest.raises(NothingToLearn, match=rf"step 1: all {trained_tokens(examples())} trained tokens .* weight 0"):
        trainer.train()


def test_a_micro_batch_without_any_weight_is_fine(step: Step) -> None:
    rows = examples()
    mixed = weighted(rows[:4], 0.0) + weighted(rows[4:], 1.0)
    split = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 8}
    assert_same(step(mixed, **split), step(mixed))


@pytest.mark.parametrize("bad", [math.nan, None])
def test_a_missing_weight_stops_the_run(make_trainer: Callable[..., Any], bad: float | None) -> None:
    rows = [{**row, "seq": 0} for row in weighted(examples(), 1.0)]
    rows[2]["priorities"][4] = bad
    trainer = make_trainer(rows, dataset_kwargs={"skip_prepare_dataset": True})
    with pytest.raises(WeightError, match=r"tokens 0 to 7 of the batch: the weight of its token 4 is nan"):
        trainer.train()


def test_a_short_column_stops_the_run(make_trainer: Callable[..., Any]) -> None:
    rows = weighted(examples(), 1.0)
    rows[2]["priorities"].pop()
    trainer = make_trainer(rows, dataset_kwargs={"skip_prepare_dataset": True})
    with pytest.raises(WeightError, match="has 7 tokens but its 'priorities' has 6 values"):
        trainer.train()


def test_divergence_stops_the_run(make_trainer: Callable[..., Any]) -> None:
    trainer = make_trainer(weighted(examples(), 1.0), learning_rate=1e30, max_steps=3)
    with pytest.raises(Diverged, match="has diverged"):
        trainer.train()


def test_adapters_of_virtual_tokens_are_refused(make_trainer: Callable[..., Any]) -> None:
    from peft import PromptTuningConfig

    config = PromptTuningConfig(num_virtual_tokens=2, task_type="CAUSAL_LM")
    trainer = make_trainer(weighted(examples(), 1.0), peft_config=config)
    with pytest.raises(WeightError, match="adapters that add virtual tokens are not supported"):
        trainer.train()


@pytest.mark.parametrize(
    ("method", "student", "what"),
    [
        ("prift_mass", "prift_mass", "needs more than logprob and entropy: signal 'mass_above'"),
        ("prift_mass", "uniform", "does not read the live student"),
        ("prift_mass", "forgetting", "not positive per token"),
        ("dft", "dft", "is a factor of the live student already"),
    ],
)
def test_student_factors_that_cannot_be_are_refused(method: str, student: str, what: str) -> None:
    with pytest.raises(ConfigError, match=what):
        Weighting.of(method, student=student)


def test_defaults_are_the_methods_own() -> None:
    params = {"threshold": 0.0}
    found = Weighting.of("forgetting", params)
    assert (found.denominator, found.negatives, found.ramp, found.student) == ("by_sign", "ascent", (0.0, 0.25), None)
    changed = Weighting.of("forgetting", params, denominator="all", negatives="unlikelihood", ramp=(1.0, 1.0))
    assert (changed.denominator, changed.negatives, changed.ramp) == ("all", "unlikelihood", (1.0, 1.0))
