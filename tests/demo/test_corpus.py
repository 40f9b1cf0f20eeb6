from __future__ import annotations

from collections import Counter
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from tokenpriority_trainer.demo import corpus
from tokenpriority_trainer.demo.corpus import Corpus, CorpusTooSmall, Ids
from tokenpriority_trainer.demo.scale import Scale

PARTS = ("base", "curated", "tuning", "heldout")


def test_the_split_is_the_same_every_time(parts: Corpus, tiny: Scale) -> None:
    assert corpus.split_sources(tiny.corpus_bytes) == parts


def test_no_file_is_in_two_parts(parts: Corpus) -> None:
    for one, other in combinations(PARTS, 2):
        assert not set(getattr(parts, one)) & set(getattr(parts, other))


def test_more_text_keeps_every_file_in_its_part(parts: Corpus) -> None:
    whole = corpus.split_sources()
    for name in PARTS:
        few, all_of_them = getattr(parts, name), getattr(whole, name)
        assert 0 < len(few) < len(all_of_them)
        assert all_of_them[: len(few)] == few


def test_files_are_ascii_sources_of_the_library_alone(parts: Corpus) -> None:
    for name in PARTS:
        for path in getattr(parts, name):
            assert path.suffix == ".py"
            assert path.read_bytes().isascii()
            assert not {"test", "tests", "site-packages"} & set(path.parts[-4:])


@given(text=st.text(st.characters(max_codepoint=127), max_size=200))
def test_tokens_turn_back_into_their_text(tokenizer: PreTrainedTokenizerFast, text: str) -> None:
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_the_tokenizer_has_the_size_asked_for_and_an_end(tokenizer: PreTrainedTokenizerFast, tiny: Scale) -> None:
    assert len(tokenizer) == tiny.vocab_size
    assert tokenizer.eos_token_id == tokenizer.pad_token_id == tokenizer.all_special_ids[0]


def test_every_window_is_a_piece_of_one_file(parts: Corpus, tokenizer: PreTrainedTokenizerFast, tiny: Scale) -> None:
    texts = [path.read_text() for path in parts.heldout]
    windows = corpus.windows(tokenizer, parts.heldout, tiny.length, seed=3)
    assert windows.shape[1] == tiny.length
    for window in windows:
        piece = corpus.decode(tokenizer, window)
        assert any(piece in text for text in texts)


def test_windows_hold_every_whole_stretch_of_a_file(
    parts: Corpus, tokenizer: PreTrainedTokenizerFast, tiny: Scale
) -> None:
    lengths = [len(tokenizer(path.read_text())["input_ids"]) for path in parts.heldout]
    windows = corpus.windows(tokenizer, parts.heldout, tiny.length, seed=3)
    assert len(windows) == sum(length // tiny.length for length in lengths)


def test_the_seed_decides_the_order_and_nothing_else(
    parts: Corpus, tokenizer: PreTrainedTokenizerFast, tiny: Scale
) -> None:
    def windows(seed: int) -> Ids:
        return corpus.windows(tokenizer, parts.heldout, tiny.length, seed)

    assert np.array_equal(windows(1), windows(1))
    assert not np.array_equal(windows(1), windows(2))
    assert Counter(map(bytes, windows(1))) == Counter(map(bytes, windows(2)))


def test_a_library_without_enough_text_is_refused(rows: Ids, tiny: Scale) -> None:
    assert len(corpus.at_least(rows, len(rows), "tuning")) == len(rows)
    with pytest.raises(CorpusTooSmall, match=f"tuning part .* holds {len(rows)} .* needs {len(rows) + 1}"):
        corpus.at_least(rows, len(rows) + 1, "tuning")
    with pytest.raises(CorpusTooSmall, match="holds 0 sequences"):
        corpus.at_least(np.empty((0, tiny.length), np.int64), 1, "tuning")
