"""Frozen copies beside the student: what is refused, and the snapshot that is taken anew."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tokenpriority_trainer import FrozenCopies, LocalSource, Weighting
from tokenpriority_trainer.checks import check_evidence, check_setting
from tokenpriority_trainer.errors import ConfigError, WeightError

Rows = list[dict[str, Any]]
Make = Callable[..., Any]


def logprobs(model: Any, rows: Rows) -> Any:
    """Log-probs of the trained tokens, one forward pass per row."""
    found = []
    for row in rows:
        ids, labels = torch.tensor([row["input_ids"]]), torch.tensor(row["labels"][1:])
        every = torch.log_softmax(model(ids).logits[0, :-1], -1).gather(-1, ids[0, 1:, None])[:, 0]
        found.append(every[labels != -100])
    return torch.cat(found)


def test_psfts_snapshot_is_taken_anew_every_refresh(make_trainer: Make, make_model: Any, rows: Rows) -> None:
    trainer = make_trainer(
        rows, Weighting.of("psft"), local=FrozenCopies(refresh=2), max_steps=4, learning_rate=0.5, packing=False
    )
    trainer.train()
    model = make_model()
    for k in range(4):
        if k % 2 == 0:
            with torch.no_grad():
                old = logprobs(copy.deepcopy(model), rows)
        now = logprobs(model, rows)
        ratio = torch.exp(now.detach() - old)
        loss = -(torch.where(ratio <= 1.28, ratio, 0.0) * now).mean()
        gradients = torch.autograd.grad(loss, list(model.parameters()))
        with torch.no_grad():
            for parameter, gradient in zip(model.parameters(), gradients, strict=True):
                parameter.sub_(0.5 * gradient)
    for (name, found), expected in zip(trainer.model.named_parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5, msg=f"{name}: {{}}".format)


def test_a_snapshot_of_adapters_is_the_adapted_model(make_trainer: Make, rows: Rows) -> None:
    from peft import LoraConfig

    lora = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    trainer = make_trainer(rows, Weighting.of("psft"), local=FrozenCopies(), peft_config=lora)
    trainer.train()
    assert trainer.state.log_history[0]["priority_mean"] == pytest.approx(1.0, abs=1e-5)  # ratio 1 at the first step


def test_a_run_resumed_within_a_window_is_refused(make_model: Any, tokenizer: Any) -> None:
    copies, student = FrozenCopies(refresh=4), make_model()
    copies.load(["old"], student, tokenizer)
    with pytest.raises(
        ConfigError, match=r"local\.refresh: a resumed run must begin at a multiple of 4 steps.*got step 6"
    ):
        copies.begin_step(6, student)
    copies.begin_step(8, student)
    copies.begin_step(9, student)


def test_copies_are_frozen_and_of_the_students_type(
    make_model: Any, tokenizer: Any, save_student: Any, tmp_path: Path
) -> None:
    student = make_model().to(torch.bfloat16)
    copies = FrozenCopies(reference=str(save_student(tmp_path / "frozen", 3)), base=make_model(4))
    copies.load(["reference", "base"], student, tokenizer)
    for model in copies._models.values():
        assert not model.training
        assert all(p.dtype == torch.bfloat16 and not p.requires_grad for p in model.parameters())
    batch = {"input_ids": torch.tensor([[1, 2, 3]]), "labels": torch.tensor([[1, 2, 3]])}
    assert not copies.logits("reference", batch).requires_grad


def test_a_copy_that_does_not_fit_is_refused(
    make_model: Any, tokenizer: Any, save_student: Any, tmp_path: Path
) -> None:
    student = make_model()
    with pytest.raises(ConfigError, match=r"local\.reference: its vocabulary has 512 entries, the student's 400"):
        FrozenCopies(reference=make_model(vocab_size=512)).load(["reference"], student, tokenizer)
    with pytest.raises(ConfigError, match=r"local\.base: is the student itself"):
        FrozenCopies(base=student).load(["base"], student, tokenizer)
    with pytest.raises(ConfigError, match=r"local\.reference: no model with its tokenizer at"):
        FrozenCopies(reference=str(tmp_path / "nowhere")).load(["reference"], student, tokenizer)
    other = copy.deepcopy(tokenizer)
    other.add_tokens(["<new>"])
    folder = save_student(tmp_path / "other", 3)
    with pytest.raises(ConfigError, match=r"local\.reference: the tokenizer of .* is not the student's"):
        FrozenCopies(reference=str(folder)).load(["reference"], student, other)
    with pytest.raises(ConfigError, match=r"local\.refresh: must be at least 1, got 0"):
        FrozenCopies(refresh=0)
    for parameter in student.parameters():
        torch.nn.init.zeros_(parameter)
    with pytest.raises(ConfigError, match=r"local\.base: its weights are all 0"):
        FrozenCopies(base=copy.deepcopy(student)).load(["base"], student, tokenizer)


@pytest.mark.parametrize(
    ("method", "params", "what"),
    [
        ("npo", {}, "'npo' reads the reference: set priorities.url"),
        ("rft", {"tau": 1.0}, "'rft' reads a second frozen model: set priorities.local.base"),
        ("asft", {}, "'asft' reads the reference's whole distribution, which no server sends"),
        ("cdpo", {}, "'cdpo' reads a second frozen model"),
    ],
)
def test_evidence_that_is_not_there_is_named(method: str, params: dict[str, Any], what: str) -> None:
    with pytest.raises(ConfigError, match=what):
        check_evidence(Weighting.of(method, params), LocalSource(), FrozenCopies())


def test_more_of_the_reference_than_a_server_sends_is_named() -> None:
    rule = Weighting.of("prift_mass", local=True)
    with pytest.raises(
        ConfigError, match="'prift_mass' reads the reference's mass_above, mass_tied in the forward pass"
    ):
        check_evidence(rule, LocalSource(), FrozenCopies())


def test_a_source_without_the_references_log_probs_stops_the_run(make_trainer: Make, rows: Rows) -> None:
    class Ones:
        wait_seconds = 0.0

        def stream(self, batches: Any) -> Any:
            yield from LocalSource().stream(batches)

    trainer = make_trainer(rows, Weighting.of("npo"), source=Ones())
    with pytest.raises(WeightError, match="the source gives no log-probs of the reference"):
        trainer.train()


@pytest.mark.parametrize(
    ("method", "kind", "what"),
    [
        ("sstoken_excess", "deepspeed", "denominator: 'kept' with a live method must rescale gradients"),
        ("psft", "fsdp", "reads the student's snapshot cannot run sharded by fsdp"),
        ("sstoken_excess", "experts", "would scale the routers' loss too"),
    ],
)
def test_settings_under_which_live_methods_go_wrong_are_refused(method: str, kind: str, what: str) -> None:
    from types import SimpleNamespace

    trainer = SimpleNamespace(
        _is_vision_dataset=False,
        accelerator=SimpleNamespace(parallelism_config=None),
        weighting=Weighting.of(method),
        aux_loss_enabled=kind == "experts",
        is_deepspeed_enabled=kind == "deepspeed",
        is_fsdp_enabled=kind == "fsdp",
    )
    with pytest.raises(ConfigError, match=what):
        check_setting(trainer)
