from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from tokenpriority_trainer.demo import models
from tokenpriority_trainer.demo.evaluate import Trials, measure, token_logprobs
from tokenpriority_trainer.demo.scale import Scale


@pytest.fixture(scope="module")
def model(tiny: Scale, tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    model = models.new_model(tiny, tokenizer, seed=1)
    with torch.no_grad():  # far from uniform, so that a figure off by one position shows
        for parameter in model.parameters():
            parameter.mul_(4)
    return model


def by_prefix(model: LlamaForCausalLM, token_ids: np.ndarray) -> np.ndarray:
    """log p of every token in float64, each from a forward over the tokens before it alone."""
    double = LlamaForCausalLM(model.config).double().eval()
    double.load_state_dict(model.state_dict())
    out = np.full(token_ids.shape, np.nan)
    with torch.inference_mode():
        for row, ids in enumerate(token_ids):
            for index in range(1, len(ids)):
                logits = double(input_ids=torch.from_numpy(ids[None, :index])).logits[0, -1]
                out[row, index] = logits.log_softmax(0)[ids[index]].item()
    return out


@pytest.fixture(scope="module")
def trials(tiny: Scale) -> Trials:
    rng = np.random.default_rng(0)
    ids = [rng.integers(0, tiny.vocab_size, (rows, 9)) for rows in (3, 4, 5)]
    noise, idiom = rng.random((4, 9)) < 0.4, np.zeros((5, 9), np.bool_)
    noise[:, 0] = False
    idiom[:, 3:6] = True
    return Trials(ids[0], ids[1], noise, ids[2], idiom)


def test_logprobs_match_a_float64_forward_over_each_prefix(model: LlamaForCausalLM, trials: Trials) -> None:
    got = token_logprobs(model, trials.probes)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, by_prefix(model, trials.probes), rtol=1e-5, atol=1e-4, equal_nan=True)


def test_more_rows_than_a_batch_are_all_scored(model: LlamaForCausalLM, tiny: Scale) -> None:
    ids = np.random.default_rng(1).integers(0, tiny.vocab_size, (70, 4))
    got = token_logprobs(model, ids)
    assert np.isfinite(got[:, 1:]).all()
    np.testing.assert_allclose(got[68:], by_prefix(model, ids[68:]), rtol=1e-5, atol=1e-4, equal_nan=True)


def test_figures_match_their_definitions(model: LlamaForCausalLM, trials: Trials) -> None:
    measured = measure(model, trials)
    clean, noisy, probes = (by_prefix(model, ids) for ids in (trials.clean, trials.noisy, trials.probes))
    whole = [sum(row[mask]) for row, mask in zip(probes, trials.idiom, strict=True)]
    assert measured.clean_nll == pytest.approx(-np.nanmean(clean), abs=1e-4)
    assert measured.noise_nll == pytest.approx(-np.mean(noisy[trials.noise]), abs=1e-4)
    assert measured.idiom_logprob == pytest.approx(np.mean(whole), abs=1e-3)
    assert measured.idiom_probability == pytest.approx(np.mean(np.exp(whole)), rel=1e-3)


def test_a_broken_model_is_an_error_not_a_figure(
    tiny: Scale, tokenizer: PreTrainedTokenizerFast, trials: Trials
) -> None:
    broken = models.new_model(tiny, tokenizer, seed=0)
    with torch.no_grad():
        broken.model.norm.weight.fill_(torch.nan)
    with pytest.raises(ValueError, match="clean_nll: the model gives nan"):
        measure(broken, trials)
