"""The fake engine: a true distribution at every position, in the shape of an engine."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenpriority.errors import EngineFault, InvalidSequence, Unavailable
from tokenpriority_service.engines import Job, load_engine
from tokenpriority_service.engines.fake import FakeEngine

ENGINE = FakeEngine()
VOCAB = ENGINE.info.vocab_size


def ids(*values: int) -> np.ndarray[tuple[int], np.dtype[np.uint32]]:
    return np.array(values, np.uint32)


@pytest.mark.parametrize("prefix", [[0], [0, 0], [1, 2, 3], [3, 2, 1], [7] * 20, [500, 11], [4], [40], [8, 1], [90, 3]])
@pytest.mark.parametrize("vocab", [260, 512])
def test_it_is_a_distribution_with_the_evidence_of_one(lab: Any, prefix: list[int], vocab: int) -> None:
    """Every token of the vocabulary after one prefix: the six signals follow from the logprobs alone."""
    prefix = [each % vocab for each in prefix]
    rows = lab.score(FakeEngine(vocab_size=vocab), [Job(ids(*prefix, token)) for token in range(vocab)])
    last = np.array([each[:, -1] for each in rows])
    logprobs = last[:, 0].astype(np.float64)
    assert np.exp(logprobs).sum() == pytest.approx(1, abs=1e-5)
    for token in range(0, vocab, 7):
        expected = lab.statistics(last[:, 0].tolist(), token)[:6]
        np.testing.assert_allclose(last[token], expected, rtol=1e-5, atol=1e-5)


@given(
    st.lists(st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=50), min_size=1, max_size=5), st.integers(1, 9)
)
@settings(max_examples=60, deadline=None)
def test_signals_are_coherent_and_aligned(lab: Any, sequences: list[list[int]], score_from: int) -> None:
    jobs = [Job(ids(*each), score_from) for each in sequences]
    for job, rows in zip(jobs, lab.score(ENGINE, jobs), strict=True):
        assert rows.shape == (6, len(job.token_ids))
        assert rows.dtype == np.float32
        assert rows.base is None, "a view would keep the whole call's evidence alive"
        assert np.isnan(rows[:, :score_from]).all()
        logprob, entropy, top, rank, above, tied = rows[:, score_from:]
        assert (logprob <= top).all()
        assert (top <= 0).all()
        assert ((entropy >= 0) & (entropy <= np.log(VOCAB) + 1e-5)).all()
        assert ((rank >= 1) & (rank <= VOCAB) & (rank == np.rint(rank))).all()
        assert ((above >= 0) & (above < 1) & (tied >= 0)).all()
        assert (above + tied + np.exp(logprob) <= 1 + 2**-22).all()
        np.testing.assert_array_equal(logprob == top, rank == 1)
        np.testing.assert_array_equal(above == 0, rank == 1)


@given(st.lists(st.integers(0, VOCAB - 1), min_size=2, max_size=40), st.data())
@settings(max_examples=40, deadline=None)
def test_a_position_depends_on_its_prefix_and_token_alone(lab: Any, tokens: list[int], data: st.DataObject) -> None:
    at = data.draw(st.integers(1, len(tokens) - 1))
    whole, beside, cut = lab.score(ENGINE, [Job(ids(*tokens)), Job(ids(5)), Job(ids(*tokens[: at + 1]))])
    np.testing.assert_array_equal(cut[:, 1:], whole[:, 1 : at + 1])
    assert beside.shape == (6, 1)
    [alone] = lab.score(FakeEngine(), [Job(ids(*tokens))])
    np.testing.assert_array_equal(alone, whole)


def test_the_prefix_matters(lab: Any) -> None:
    """Another token, another order or another length before a token nearly always changes its evidence."""
    rng = np.random.default_rng(0)
    first = rng.integers(0, VOCAB, (200, 6)).astype(np.uint32)
    other = first.copy()
    other[:, 0] = (other[:, 0] + 1) % VOCAB
    swapped = first[:, [1, 0, 2, 3, 4, 5]]
    columns = [
        np.array([rows[0, -1] for rows in lab.score(ENGINE, [Job(each) for each in batch])])
        for batch in (first, other, swapped, first[:, 1:])
    ]
    for each in columns[1:]:
        assert (each != columns[0]).mean() > 0.95


def test_shapes_vary_from_steep_to_flat_with_and_without_ties(lab: Any) -> None:
    [rows] = lab.score(ENGINE, [Job(np.random.default_rng(0).integers(0, VOCAB, 4000).astype(np.uint32))])
    _, entropy, _, _, _, tied = rows[:, 1:]
    assert entropy.min() < 1.5
    assert entropy.max() > 6
    assert 0.4 < (tied > 0).mean() < 0.6


def test_faults_refusals_and_close(lab: Any) -> None:
    engine = FakeEngine(fail=lambda job: EngineFault("no") if job.token_ids[0] == 3 else None)
    good, fault, refused = lab.score(engine, [Job(ids(1, 2)), Job(ids(3, 4)), Job(ids(1, VOCAB))])
    assert good.shape == (6, 2)
    assert isinstance(fault, EngineFault)
    assert isinstance(refused, InvalidSequence)
    asyncio.run(engine.close())
    asyncio.run(engine.close())
    [closed] = lab.score(engine, [Job(ids(1, 2))])
    assert isinstance(closed, Unavailable)
    assert lab.score(FakeEngine(), []) == []


def test_a_delayed_engine_answers_after_a_prompt_one() -> None:
    answered = []

    async def call(name: str, delay: float) -> None:
        await FakeEngine(delay=delay).score([Job(ids(1, 2))])
        answered.append(name)

    async def scenario() -> None:
        await asyncio.gather(call("delayed", 0.05), call("prompt", 0.0))

    asyncio.run(scenario())
    assert answered == ["prompt", "delayed"]


def test_fingerprints_follow_what_moves_numbers() -> None:
    same = FakeEngine(max_model_len=100, delay=1.0).info.fingerprint
    assert same == ENGINE.info.fingerprint
    assert FakeEngine(model="other").info.fingerprint != same
    assert FakeEngine(vocab_size=1000).info.fingerprint != same


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [({"vocab_size": 511}, "vocab_size"), ({"vocab_size": 256}, "vocab_size"), ({"max_model_len": 1}, "max_model_len")],
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        FakeEngine(**settings)


def test_text_in_bytes() -> None:
    tokenizer: Any = ENGINE.tokenizer
    text = "def f(x):\n    return 'ünï ✓'\n"
    encoded = tokenizer(text, return_offsets_mapping=True)
    assert len(encoded["input_ids"]) == len(text.encode())
    assert max(encoded["input_ids"]) < VOCAB
    assert tokenizer.decode(encoded["input_ids"]) == text
    assert encoded["offset_mapping"][-1] == (len(text) - 1, len(text))


def test_the_chat_template_marks_what_the_assistant_says() -> None:
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Hi!"},
    ]
    tokenizer: Any = ENGINE.tokenizer
    encoded = tokenizer.apply_chat_template(
        messages, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
    )
    said = [token for token, mask in zip(encoded["input_ids"], encoded["assistant_masks"], strict=True) if mask]
    assert tokenizer.decode(said) == "Hi!<|im_end|>"


def test_engines_load_by_name(lab: Any) -> None:
    engine = load_engine("fake", model="stand-in", max_model_len=12)
    assert (engine.info.engine, engine.info.model, engine.info.max_model_len) == ("fake", "stand-in", 12)
    assert load_engine("fake").info.max_model_len == ENGINE.info.max_model_len
    assert load_engine("torch", model=str(lab.saved("gpt2"))).info.engine == "torch"


def test_unknown_engines_and_missing_models_are_refused() -> None:
    with pytest.raises(ValueError, match="engine: expected one of torch, vllm, remote, fake, got 'pytorch'"):
        load_engine("pytorch", model="x")
    with pytest.raises(ValueError, match="model: the torch engine needs a folder or a hub name"):
        load_engine("torch")


def test_the_fake_engine_needs_no_torch() -> None:
    program = (
        "import sys\nfrom tokenpriority_service.engines import load_engine\n"
        "load_engine('fake')\nsys.exit(any(name in sys.modules for name in ('torch', 'transformers')))"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
