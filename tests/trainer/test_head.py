"""The weighted head of models: their own logits in float64, and whole steps of the trainer on TRL's head."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig

from live_truth import Rows, Update, assert_same, moved
from run_config import assert_close, writer
from tokenpriority.evidence import Evidence
from tokenpriority_trainer import ColumnSource, PrioritySFTTrainer, Weighting, kernel
from tokenpriority_trainer.config import load_config
from tokenpriority_trainer.errors import ConfigError, WeightError
from tokenpriority_trainer.head import WeightedHead, add_weighted_head, use_weighted_head
from tokenpriority_trainer.run import run
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
    return getattr(tf, f"{name}ForCausalLM")(config).float()


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("kind", ["untied", "tied", "bias", "capped", "multiplied", "divided"])
def test_a_models_loss_and_gradients_are_those_of_its_own_logits(
    kind: str, checkpointing: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernel, "chunk_rows", lambda *_: 5)
    model = causal(kind).train()
    truth = copy.deepcopy(model).double()
    ids = torch.randint(1, 60, (3, 9), generator=torch.Generator().manual_seed(1))
    labels = torch.where(torch.rand(ids.shape, generator=torch.Generator().manual_seed(2)) < 0.2, -100, ids)
    weights = torch.tensor(WEIGHTS * 4)[:24].reshape(3, 8)
    if checkpointing:
        model.gradient_checkpointing_enable()
    add_weighted_head(model)
    head = WeightedHead(weights, as_they_are, COUNTS, "unlikelihood", "all")
    out = model(input_ids=ids, labels=labels, weighted_head=head)
    out.loss.backward()
    logits, mask = truth(input_ids=ids).logits[:, :-1], labels[:, 1:] != -100
    expected = naive(logits[mask], labels[:, 1:][mask], weights[mask].double(), "unlikelihood", 40, 40)
    expected.backward()
    assert out.loss.item() == pytest.approx(expected.item(), rel=1e-5)
    size = max(p.grad.abs().max().item() for p in truth.parameters() if p.grad is not None)
    for (name, mine), other in zip(model.named_parameters(), truth.parameters(), strict=True):
        error = (mine.grad.double() - other.grad).abs().max().item() / size
        assert error < 1e-5, name
    top = (logits.argmax(-1) == labels[:, 1:]) & mask
    assert torch.equal(out.is_top1, top)
    assert torch.equal(out.label_mask, mask)
    assert (out.log_probs[~mask] == 0).all()


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


REFUSED: dict[str, tuple[Weighting, str]] = {
    "micro-batch": (Weighting.of("focal"), "'focal' decides over a batch"),
    "signals": (Weighting.of("eaft"), "'eaft' reads more than the student's log-prob and entropy: .*entropy_top20"),
    "neighbours": (Weighting.of("profit", {"mode": "random"}), "'profit' reads more than .*token ids"),
    "losses": (Weighting.of("gem"), "'gem' reads labels or the prompt, or gives losses"),
    "deferred": (Weighting.of("dft", denominator="kept"), "'kept' with a live method"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_needs_trls_head_is_refused_by_name_and_falls_back_under_auto(
    name: str, make_trainer: Any, weighted: Any
) -> None:
    rule, what = REFUSED[name]
    trainer = make_trainer(weighted(1.0), rule)
    with pytest.raises(ConfigError, match=f"kernel: 'chunked' cannot be had here: .*{what}"):
        use_weighted_head("chunked", trainer)
    assert not use_weighted_head("auto", trainer)
    assert not use_weighted_head("trl", trainer)


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


@pytest.mark.slow
def test_two_processes_take_the_step_of_one_on_trls_head(save_student: Any, text: str, tmp_path: Path) -> None:
    write = writer(tmp_path, save_student(tmp_path / "student"), text)
    sgd = {"max_steps": 2, "optim": "sgd", "learning_rate": 1.0, "lr_scheduler_type": "constant"}
    run(load_config(write("one", training=sgd)))
    two = write("two", priorities={"kernel": "chunked"}, training={**sgd, "gradient_accumulation_steps": 1})
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*launch, "-m", "tokenpriority_trainer", str(two)], capture_output=True, text=True, timeout=280, env=environment
    )
    assert done.returncode == 0, done.stderr
    assert_close(tmp_path / "two", tmp_path / "one", atol=1e-5)
