"""The head and the probe: known architectures are read rightly, unknown ones refused, logits stay small."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from tokenpriority_service.engines import Job
from tokenpriority_service.engines.head import Head, hidden_states
from tokenpriority_service.engines.probe import check_model
from tokenpriority_service.engines.scorer import Scorer


class Watch:
    """Counts the rows lm_head is given, in all and at most at once."""

    def __init__(self, model: Any) -> None:
        self.calls: list[int] = []
        model.get_output_embeddings().register_forward_hook(
            lambda _module, inputs, _output: self.calls.append(inputs[0].shape[0])
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_known_architectures_pass_the_probe(lab: Any, kind: str, dtype: torch.dtype) -> None:
    model = lab.build(kind).to(dtype)
    check_model(model, Head(model, 1 << 20), lab.vocab_size, lab.max_len)


@pytest.mark.parametrize("length", [2, 3])
def test_the_probe_fits_any_length(lab: Any, length: int) -> None:
    model = lab.build("gpt2")
    check_model(model, Head(model, 1 << 20), lab.vocab_size, length)


@pytest.mark.parametrize(
    ("kind", "field"),
    [
        ("gemma2_cap", "final_logit_softcapping"),
        ("cohere_scale", "logit_scale"),
        ("granite_divides", "logits_scaling"),
        ("hyperclovax_multiplies", "logits_scaling"),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_head_read_wrongly_is_refused(lab: Any, kind: str, field: str, dtype: torch.dtype) -> None:
    """A head made without the field stands for an architecture whose field we do not know."""
    model = lab.build(kind).to(dtype)
    model.config.__dict__[field], value = None, getattr(model.config, field)
    head = Head(model, 1 << 20)
    model.config.__dict__[field] = value
    with pytest.raises(ValueError, match="different logits"):
        check_model(model, head, lab.vocab_size, lab.max_len)


def test_a_soft_cap_far_above_the_logits_still_shows(lab: Any) -> None:
    """On the model's own logits it would be lost in bfloat16's rounding."""
    model = lab.build("gemma2_cap", final_logit_softcapping=None).to(torch.bfloat16)
    head = Head(model, 1 << 20)
    check_model(model, head, lab.vocab_size, lab.max_len)
    model.config.final_logit_softcapping = 100.0
    with torch.inference_mode():
        assert model(input_ids=torch.arange(16)[None]).logits.abs().max() < 10
    with pytest.raises(ValueError, match="different logits"):
        check_model(model, head, lab.vocab_size, lab.max_len)


def test_a_model_that_sees_what_follows_is_refused(lab: Any) -> None:
    model = lab.build("bert_not_causal")
    with pytest.raises(ValueError, match="not causal"):
        check_model(model, Head(model, 1 << 20), lab.vocab_size, lab.max_len)


def test_a_head_of_several_layers_is_refused(lab: Any) -> None:
    model = lab.build("bert_other_head")
    with pytest.raises(ValueError, match="different logits"):
        check_model(model, Head(model, 1 << 20), lab.vocab_size, lab.max_len)


def test_a_model_with_nan_weights_is_refused(lab: Any) -> None:
    model = lab.build("llama")
    model.model.norm.weight.data[3] = torch.nan
    with pytest.raises(ValueError, match="cannot be scored"):
        check_model(model, Head(model, 1 << 20), lab.vocab_size, lab.max_len)


def test_a_model_without_a_head_is_refused(lab: Any) -> None:
    with pytest.raises(ValueError, match="LlamaModel has no output embeddings"):
        Head(lab.build("llama").model, 1 << 20)


def test_a_suppressed_vocabulary_passes_the_probe(lab: Any) -> None:
    model = lab.build("phi_bias")
    model.lm_head.bias.data[5] = -torch.inf
    check_model(model, Head(model, 1 << 20), lab.vocab_size, lab.max_len)


def test_logits_beyond_the_embeddings_count(lab: Any) -> None:
    """A head padded to a round size: no id reaches its extra logits, but they are part of the softmax."""
    model = lab.build("llama")
    model.lm_head = torch.nn.Linear(32, 128, bias=False)
    head = Head(model, 1 << 20)
    check_model(model, head, lab.vocab_size, lab.max_len)
    [job] = lab.jobs(1)
    [rows] = Scorer(model, head).score([job])
    lab.check(rows, lab.truth(model.double(), job))


def test_right_padding_changes_nothing(lab: Any, kind: str) -> None:
    """No attention mask is given: what stands to the right of a sequence must not reach it, in any architecture."""
    model = lab.build(kind)
    ids = torch.arange(20)[None] * 5 % lab.vocab_size
    with torch.inference_mode():
        alone = hidden_states(model, ids[:, :12])
        padded = hidden_states(model, torch.cat([ids[:, :12], torch.zeros(1, 8, dtype=torch.int64)], 1))
        beside = hidden_states(model, ids)
    torch.testing.assert_close(padded[:, :12], alone, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(beside[:, :12], alone, rtol=1e-4, atol=1e-5)


def test_tokens_by_vocabulary_never_exists_whole(lab: Any) -> None:
    """300 tokens by 50,000 logits are 60 MB; the head may hold 8 rows of them."""
    vocab = 50_000
    model = lab.build("llama_tied", vocab_size=vocab, max_position_embeddings=512)
    head = Head(model, logits_bytes=8 * vocab * 4)
    watch = Watch(model)
    job = Job(np.random.default_rng(0).integers(0, vocab, 300).astype(np.uint32))
    [rows] = Scorer(model, head).score([job])
    assert isinstance(rows, np.ndarray)
    assert sum(watch.calls) == 299
    assert max(watch.calls) == 8
    with torch.inference_mode():
        logits = model(input_ids=torch.from_numpy(job.token_ids.astype(np.int64))[None]).logits[0, :-1].double()
    expected = logits.log_softmax(1)[torch.arange(299), job.token_ids[1:].astype(np.int64)]
    np.testing.assert_allclose(rows[0, 1:], expected.numpy(), rtol=0, atol=1e-4)


def test_score_from_skips_the_heads_rows(lab: Any) -> None:
    model = lab.build("llama")
    scorer, watch = Scorer(model, Head(model, 1 << 20)), Watch(model)
    [long] = lab.jobs(1, seed=3)
    jobs = [long, Job(long.token_ids[:25])]
    whole = scorer.score(jobs)
    assert sum(watch.calls) == lab.max_len - 1 + 24
    watch.calls.clear()
    later = scorer.score([Job(long.token_ids, lab.max_len - 4), Job(jobs[1].token_ids, 24)])
    assert sum(watch.calls) == 4 + 1
    for got, full, start in zip(later, whole, (lab.max_len - 4, 24), strict=True):
        assert isinstance(got, np.ndarray)
        assert isinstance(full, np.ndarray)
        assert np.isnan(got[:, :start]).all()
        np.testing.assert_allclose(got[:, start:], full[:, start:], rtol=0, atol=1e-5)


def test_a_row_that_does_not_fit_is_refused(lab: Any) -> None:
    with pytest.raises(ValueError, match=r"logits_bytes: one row of 97 logits takes 388 bytes, got 387"):
        Head(lab.build("llama"), 387)
