"""The weighted head of models: their own logits in float64, and whole steps of the trainer on TRL's head."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, cast, get_args

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig

from live_truth import Rows, Update, assert_same, moved
from tokenpriority.evidence import Evidence
from tokenpriority.methods import Negatives
from tokenpriority_trainer import ColumnSource, PrioritySFTTrainer, Weighting, kernel
from tokenpriority_trainer.errors import ConfigError, WeightError
from tokenpriority_trainer.head import WeightedHead, add_weighted_head
from tokenpriority_trainer.libraries import Library, add_library_head, beyond
from tokenpriority_trainer.student import Pass, add_fused_signals, forward, forward_library, forward_weighted
from whole_logits import COUNTS, WEIGHTS, naive


def as_they_are(static: torch.Tensor, _: Evidence) -> torch.Tensor:
    return static


def causal(kind: str) -> Any:
    """Tiny models that differ in what stands between hidden states and the distribution."""
    import transformers as tf

    sizes: dict[str, Any] = {
        **{"vocab_size": 60, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2},
        **{"num_attention_heads": 2, "num_key_value_heads": 2, "initializer_range": 0.3, "pad_token_id": 0},
    }
    kinds: dict[str, tuple[str, dict[str, Any]]] = {
        "untied": ("Llama", {}),
        "tied": ("Qwen3", {"tie_word_embeddings": True, "head_dim": 8}),
        "bias": ("Phi", {}),
        "capped": ("Gemma2", {"final_logit_softcapping": 3.0, "head_dim": 8, "query_pre_attn_scalar": 8}),
        "multiplied": ("Cohere", {"logit_scale": 0.25}),
        "divided": ("Granite", {"logits_scaling": 4.0}),
    }
    name, changes = kinds[kind]
    torch.manual_seed(0)
    config = getattr(tf, f"{name}Config")(**{**sizes, **changes})
    model = getattr(tf, f"{name}ForCausalLM")(config).float()
    if model.get_output_embeddings().bias is not None:
        torch.nn.init.normal_(model.get_output_embeddings().bias)
    return model


KINDS = ["untied", "tied", "bias", "capped", "multiplied", "divided"]
MODULES: dict[Library, str] = {
    "liger": "liger_kernel.ops.fused_linear_scaled_cross_entropy",
    "cce": "cut_cross_entropy",
}
Found = tuple[torch.Tensor, Pass]


def batch_and_weights() -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Ids and labels (3, 9), part of them ignored; weights (3, 8) of both signs and 0."""
    ids = torch.randint(1, 60, (3, 9), generator=torch.Generator().manual_seed(1))
    ignored = torch.rand(ids.shape, generator=torch.Generator().manual_seed(2)) < 0.2
    weights = torch.tensor(WEIGHTS * 4)[:24].reshape(3, 8).masked_fill(ignored[:, 1:], 0.0)
    return {"input_ids": ids, "labels": torch.where(ignored, -100, ids)}, weights


def weighted_pass(which: str, model: Any, negatives: Negatives) -> Found:
    """The loss of a pass of the trainer's, and the pass."""
    batch, weights = batch_and_weights()
    head = WeightedHead(weights, as_they_are, COUNTS, negatives, "all")
    if which == "chunked":
        add_weighted_head(model)
        passed = forward_weighted(model, batch, head)
        assert passed.loss is not None
        return passed.loss, passed
    if which == "liger" or which == "cce":
        add_library_head(model, cast(Library, which))
        passed = forward_library(model, batch)
    else:
        add_fused_signals(model, ("collision",))
        passed = forward(model, batch, signals=("collision",), distribution=False, router=False)
    return head.loss(weights, passed.log_probs, passed.log_probs), passed


def whole_logits(model: Any, negatives: Negatives) -> Found:
    """The same of a model's own logits, in their dtype."""
    batch, weights = batch_and_weights()
    logits, targets = model(input_ids=batch["input_ids"]).logits[:, :-1], batch["labels"][:, 1:]
    mask = targets != -100
    wide = logits if logits.dtype == torch.float64 else logits.float()
    loss = naive(wide[mask], targets[mask], weights[mask].to(wide.dtype), negatives, 40, 40)
    every = torch.log_softmax(wide, -1)
    log_probs = every.gather(-1, targets.clamp(min=0)[..., None])[..., 0].masked_fill(~mask, 0)
    collision = every.exp().square().sum(-1).masked_fill(~mask, 0)
    logprob, collision = (torch.nn.functional.pad(each, (1, 0)) for each in (log_probs, collision))
    return loss, Pass(log_probs, mask, (logits.argmax(-1) == targets) & mask, Evidence(logprob, collision=collision))


def error(model: Any, truth: Any) -> float:
    """The largest difference of any entry of any gradient, over the largest gradient."""
    pairs = list(zip(model.parameters(), truth.parameters(), strict=True))
    size = max(other.grad.abs().max().item() for _, other in pairs)
    return float(max((mine.grad.double() - other.grad).abs().max().item() for mine, other in pairs) / size)


def assert_as_in_float64(which: str, model: Any, negatives: Negatives) -> None:
    """The loss of a pass, its gradients and what it says of the tokens, against the model's own logits in float64."""
    truth = copy.deepcopy(model).double()
    loss, passed = weighted_pass(which, model, negatives)
    loss.backward()
    expected, other = whole_logits(truth, negatives)
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert error(model, truth) < 1e-5
    torch.testing.assert_close(passed.log_probs.double(), other.log_probs, rtol=0, atol=1e-5)
    given = passed.evidence.present()
    assert ("collision" in given) == (which == "trl")
    for name in given.keys() & {"logprob", "collision"}:
        torch.testing.assert_close(given[name].double(), other.evidence.signal(name), rtol=0, atol=1e-5)
    if passed.is_top1 is not None and other.is_top1 is not None:
        assert torch.equal(passed.is_top1, other.is_top1)
    assert torch.equal(passed.label_mask, other.label_mask)


@pytest.mark.parametrize("negatives", ["unlikelihood", "ascent"])
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("which", ["chunked", "trl"])
def test_a_models_loss_and_gradients_are_those_of_its_own_logits(
    which: str, kind: str, checkpointing: bool, negatives: Negatives, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernel, "chunk_rows", lambda *_: 5)
    model = causal(kind).train()
    if checkpointing:
        model.gradient_checkpointing_enable()
    assert_as_in_float64(which, model, negatives)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # which torch.compile, in CCE, looks at
@pytest.mark.parametrize("library", MODULES)
def test_so_are_those_by_a_library_in_its_own_torch(library: Library) -> None:
    pytest.importorskip(MODULES[library], exc_type=ImportError)
    tried = []
    for kind in KINDS:
        if beyond(library, causal(kind)) is None:
            tried.append(kind)
            for negatives in get_args(Negatives):
                assert_as_in_float64(library, causal(kind).train(), negatives)
    assert tried == [kind for kind in KINDS if kind != "bias" and (library, kind) != ("liger", "capped")]


@pytest.mark.parametrize("negatives", ["unlikelihood", "ascent"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("which", ["chunked", "trl"])
def test_under_bfloat16_autocast_a_model_is_as_near_the_truth_as_with_whole_logits(
    which: str, kind: str, negatives: Negatives
) -> None:
    model, theirs, truth = causal(kind).train(), causal(kind).train(), causal(kind).train().double()
    with torch.autocast("cpu", torch.bfloat16):
        loss, _ = weighted_pass(which, model, negatives)
        alike, _ = whole_logits(theirs, negatives)
    expected, _ = whole_logits(truth, negatives)
    for each in (loss, alike, expected):
        each.backward()
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(expected.item(), rel=5e-3)
    assert error(model, theirs) < 0.02
    assert error(model, truth) < 1.5 * error(theirs, truth)


@pytest.fixture
def trained(make_model: Any, make_args: Any, tokenizer: Any) -> Callable[..., tuple[Update, dict[str, float]]]:
    """What one step changes and logs, from a trainer of this kernel."""

    def train(rows: Rows, which: Any, rule: Weighting | None, model: Any, **changes: Any) -> Any:
        peft = changes.pop("peft_config", None)
        trainer = PrioritySFTTrainer(
            model,
            make_args(**changes),
            Dataset.from_list(rows),
            priorities=ColumnSource(),
            weighting=rule,
            kernel=which,
            peft_config=peft,
            processing_class=tokenizer,
        )
        return moved(trainer), trainer.state.log_history[0]

    return train


LORA = {"target_modules": ["q_proj", "v_proj"], "init_lora_weights": False, "task_type": "CAUSAL_LM"}
STEPS: dict[str, tuple[Weighting, dict[str, Any]]] = {
    "padded": (Weighting(), {}),
    "packed": (Weighting(denominator="by_sign"), {"packing": True, "max_length": 40}),
    "accumulated": (Weighting(), {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4}),
    "one by one": (Weighting(), {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 8}),
    "adapters": (Weighting(), {"peft_config": LoraConfig(r=2, **LORA)}),
    "checkpointed": (Weighting(), {"gradient_checkpointing": True}),
    "scheduled, clipped": (Weighting.of(negatives="ascent", clip=(-0.5, 1.5)), {}),
    "live factors": (Weighting.of(student="dft", forget="wga"), {}),
    "live method": (Weighting.of("dft"), {"packing": True, "max_length": 40}),
}


@pytest.mark.parametrize("name", STEPS)
def test_a_step_is_that_of_trls_head_and_so_is_what_it_logs(
    name: str, trained: Any, make_model: Any, signed: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernel, "chunk_rows", lambda *_: 13)
    rule, changes = STEPS[name]
    (mine, logged), (theirs, expected) = (
        trained(signed, which, rule, make_model(tie_word_embeddings=name == "padded"), **changes)
        for which in ("chunked", "trl")
    )
    assert_same(mine, theirs)
    shared = expected.keys() - {"tokens_per_second", "wait_seconds"}
    assert logged.keys() == expected.keys()
    assert {key: logged[key] for key in shared} == pytest.approx({key: expected[key] for key in shared}, rel=1e-5)


def test_a_micro_batch_without_weight_or_label_is_fine(trained: Any, make_model: Any, signed: Rows) -> None:
    none = [{**row, "priorities": [0.0] * len(row["priorities"])} for row in signed[:3]]
    blank = [{**row, "labels": [-100] * len(row["labels"])} for row in signed[3:5]]
    rows, split = none + blank + signed[5:], {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 8}
    mine, theirs = (trained(rows, which, None, make_model(), **split)[0] for which in ("chunked", "trl"))
    assert_same(mine, theirs)


def test_a_head_that_multiplies_otherwise_is_refused(make_model: Any) -> None:
    class Other(torch.nn.Linear):
        pass

    model = make_model()
    model.set_output_embeddings(Other(32, 400))
    with pytest.raises(ConfigError, match="its lm head is Other, not Linear"):
        add_weighted_head(model)


def test_weights_for_another_number_of_positions_are_refused() -> None:
    model = causal("untied")
    add_weighted_head(model)
    ids = torch.ones((1, 5), dtype=torch.long)
    head = WeightedHead(torch.ones(1, 3), as_they_are, COUNTS, "ascent", "all")
    with pytest.raises(WeightError, match="scored 5 positions, weights are for 4"):
        model(input_ids=ids, labels=ids, weighted_head=head)
