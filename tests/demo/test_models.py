from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerFast

from tokenpriority_trainer.demo import models
from tokenpriority_trainer.demo.corpus import Ids
from tokenpriority_trainer.demo.scale import Scale


def fitted(
    tiny: Scale, tokenizer: PreTrainedTokenizerFast, rows: Ids, seed: int
) -> tuple[LlamaForCausalLM, list[tuple[int, float]]]:
    model = models.new_model(tiny, tokenizer, seed=0)
    losses: list[tuple[int, float]] = []
    models.fit(
        model, rows, steps=25, batch=8, lr=1e-2, seed=seed, report=lambda step, loss: losses.append((step, loss))
    )
    return model, losses


def test_training_learns_and_the_seed_decides_it(tiny: Scale, tokenizer: PreTrainedTokenizerFast, rows: Ids) -> None:
    model, losses = fitted(tiny, tokenizer, rows, seed=0)
    again, same = fitted(tiny, tokenizer, rows, seed=0)
    _, other = fitted(tiny, tokenizer, rows, seed=1)
    assert [step for step, _ in losses] == list(range(1, 26))
    assert abs(losses[0][1] - math.log(tiny.vocab_size)) < 0.2
    assert losses[-1][1] < losses[0][1] - 0.5
    assert losses == same != other
    for one, two in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, two)


def test_a_saved_model_comes_back_with_its_tokenizer(
    tiny: Scale, tokenizer: PreTrainedTokenizerFast, rows: Ids, tmp_path: Path
) -> None:
    model = models.new_model(tiny, tokenizer, seed=0).eval()
    models.save(model, tokenizer, tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype="float32")
    ids = torch.from_numpy(np.array(rows[:2]))
    with torch.inference_mode():
        assert torch.equal(loaded(input_ids=ids).logits, model(input_ids=ids).logits)
    text = "def f(x):\n    return x"
    assert AutoTokenizer.from_pretrained(tmp_path)(text)["input_ids"] == tokenizer(text)["input_ids"]
