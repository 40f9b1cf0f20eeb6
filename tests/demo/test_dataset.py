from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from tokenpriority.schema import Span
from tokenpriority.spans import span_labels
from tokenpriority_trainer.demo import dataset
from tokenpriority_trainer.demo.corpus import CorpusTooSmall, Ids, decode
from tokenpriority_trainer.demo.dataset import IDIOM
from tokenpriority_trainer.demo.scale import Scale


@given(
    length=st.integers(2, 60),
    rate=st.floats(0, 1),
    vocabulary=st.integers(2, 9),
    seed=st.integers(0, 2**32 - 1),
)
def test_the_noise_mask_is_exactly_the_changed_tokens(length: int, rate: float, vocabulary: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    token_ids = rng.integers(0, vocabulary, length)
    keep = rng.random(length) < 0.3
    noisy, noise = dataset.replace_tokens(token_ids, keep, rate, range(vocabulary), rng)
    assert np.array_equal(noise, noisy != token_ids)
    assert not noise[0]
    assert not (noise & keep).any()
    assert noise.sum() == round(rate * (~keep[1:]).sum())
    assert noisy.min() >= 0
    assert noisy.max() < vocabulary


def planted_rows(tokenizer: PreTrainedTokenizerFast, rows: Ids, rng: np.random.Generator) -> list[tuple[str, str, str]]:
    """Of each row that had room: its own text, the text before the idiom's tokens and the idiom's tokens' text."""
    found = []
    for row in rows[:60]:
        planted = dataset.plant(tokenizer, row, rng)
        if planted is not None:
            ids, mask = planted
            assert ids.shape == mask.shape == row.shape
            first = int(mask.argmax())
            found.append((decode(tokenizer, row), decode(tokenizer, ids[:first]), decode(tokenizer, ids[mask])))
    assert len(found) > 10
    return found


def test_the_planted_tokens_are_the_idiom(
    tokenizer: PreTrainedTokenizerFast, rows: Ids, rng: np.random.Generator
) -> None:
    for _, _, inside in planted_rows(tokenizer, rows, rng):
        assert inside.strip() == IDIOM  # its first token may hold the last space of the indentation


def test_the_idiom_stands_on_a_line_of_its_own_between_two_lines_of_the_source(
    tokenizer: PreTrainedTokenizerFast, rows: Ids, rng: np.random.Generator
) -> None:
    for source, before, inside in planted_rows(tokenizer, rows, rng):
        head = (before + inside)[: (before + inside).index(IDIOM)]
        lines_before, indent = head.rsplit("\n", 1)
        assert not indent.strip(" ")
        assert source.startswith(lines_before + "\n")
        following = source[len(lines_before) + 1 :]
        assert following.startswith(indent)
        assert not following[len(indent) :].startswith(" ")


def test_the_rest_of_a_planted_row_is_the_source(
    tokenizer: PreTrainedTokenizerFast, rows: Ids, rng: np.random.Generator
) -> None:
    for row in rows[:30]:
        planted = dataset.plant(tokenizer, row, rng)
        if planted is not None:
            text = decode(tokenizer, planted[0])
            start = text.rindex("\n", 0, text.index(IDIOM)) + 1
            without = text[:start] + text[text.index(IDIOM) + len(IDIOM) + 1 :]
            assert decode(tokenizer, row).startswith(without)


def test_a_row_without_a_line_boundary_has_no_room(
    tokenizer: PreTrainedTokenizerFast, rng: np.random.Generator
) -> None:
    row = np.full(40, tokenizer("x")["input_ids"][0])
    assert dataset.plant(tokenizer, row, rng) is None
    with pytest.raises(CorpusTooSmall, match="fits in 0 of 3 sequences, 1 are needed"):
        dataset.plant_some(tokenizer, np.stack([row] * 3), 1, rng)


def test_exactly_so_many_rows_are_planted_and_the_others_left_alone(
    tokenizer: PreTrainedTokenizerFast, rows: Ids, rng: np.random.Generator
) -> None:
    planted, mask = dataset.plant_some(tokenizer, rows[:40], 7, rng)
    has = mask.any(axis=1)
    assert has.sum() == 7
    assert np.array_equal(planted[~has], rows[:40][~has])


def test_a_set_has_the_shares_asked_for(tokenizer: PreTrainedTokenizerFast, rows: Ids, tiny: Scale) -> None:
    examples = dataset.spoil(tokenizer, rows, tiny, seed=0)
    assert len(examples) == tiny.examples
    assert examples.idiom.any(axis=1).sum() == round(tiny.idiom_share * tiny.examples)
    assert examples.noise.any(axis=1).sum() == round(tiny.noisy_share * tiny.examples)
    assert not (examples.noise & examples.idiom).any()
    free = (~examples.idiom[:, 1:]).sum(axis=1)
    noisy = examples.noise.any(axis=1)
    assert (examples.noise.sum(axis=1)[noisy] == np.round(tiny.noise_rate * free[noisy])).all()
    assert not np.isin(examples.token_ids, tokenizer.all_special_ids).any()


def test_what_is_not_recorded_as_spoilt_is_the_source(
    tokenizer: PreTrainedTokenizerFast, rows: Ids, tiny: Scale
) -> None:
    examples = dataset.spoil(tokenizer, rows, tiny, seed=0)
    plain = ~examples.idiom.any(axis=1)
    assert plain.any()
    for token_ids, noise in zip(examples.token_ids[plain], examples.noise[plain], strict=True):
        assert ((rows == token_ids) | noise).all(axis=1).sum() >= 1
        assert (rows != token_ids)[((rows == token_ids) | noise).all(axis=1)][:, noise].all()


def test_the_seed_decides_the_set(tokenizer: PreTrainedTokenizerFast, rows: Ids, tiny: Scale) -> None:
    one, again, other = (dataset.spoil(tokenizer, rows, tiny, seed) for seed in (0, 0, 1))
    assert np.array_equal(one.token_ids, again.token_ids)
    assert np.array_equal(one.noise, again.noise)
    assert not np.array_equal(one.token_ids, other.token_ids)


def test_too_few_rows_are_refused(tokenizer: PreTrainedTokenizerFast, rows: Ids, tiny: Scale) -> None:
    with pytest.raises(CorpusTooSmall, match=r"fine-tuning part .* needs"):
        dataset.spoil(tokenizer, rows, dataclasses.replace(tiny, examples=len(rows) + 1), seed=0)


@given(mask=st.lists(st.booleans(), min_size=1, max_size=40), priority=st.sampled_from([-1.0, 2.5]))
def test_spans_label_exactly_the_mask(mask: list[bool], priority: float) -> None:
    spans = dataset.spans(np.array(mask), priority)
    labels = span_labels([Span(**span) for span in spans], len(mask), None)
    assert [bool(label == priority) for label in labels] == mask


def test_the_file_says_what_the_masks_say(
    tokenizer: PreTrainedTokenizerFast, rows: Ids, tiny: Scale, tmp_path: Path
) -> None:
    examples = dataset.spoil(tokenizer, rows, tiny, seed=0)
    dataset.write_jsonl(examples, tmp_path / "plain.jsonl", label=None)
    dataset.write_jsonl(examples, tmp_path / "labelled.jsonl", label=-1.0)
    plain = [json.loads(line) for line in (tmp_path / "plain.jsonl").read_text().splitlines()]
    labelled = [json.loads(line) for line in (tmp_path / "labelled.jsonl").read_text().splitlines()]
    assert len(plain) == len(labelled) == tiny.examples
    for number, (without, with_labels) in enumerate(zip(plain, labelled, strict=True)):
        assert without == {"input_ids": examples.token_ids[number].tolist()}
        assert with_labels["input_ids"] == without["input_ids"]
        marked = [index for span in with_labels["spans"] for index in range(span["start"], span["end"])]
        assert marked == np.flatnonzero(examples.idiom[number]).tolist()
        assert {span["priority"] for span in with_labels["spans"]} <= {-1.0}
