"""The text behind tokens of real tokenizers, of four kinds, wherever the tokens begin and end."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import ByteLevelBPETokenizer
from transformers import ByT5Tokenizer

from tokenpriority_trainer.errors import ConfigError
from tokenpriority_trainer.surfaces import Surfaces
from vocabularies import byte_fallback, made, unigrams, word_pieces

TEXTS = st.text(st.sampled_from("def (x):\n \u00e9\u00df\u65e5\u672c\U0001f642\u0301\ufffd"), min_size=1, max_size=20)
MIXED = "def d\u00e9code(\u65e5\u672c x):\n  return 1 # \U0001f642!"


@pytest.fixture(scope="module")
def pieces() -> Any:
    return byte_fallback()


@pytest.fixture(scope="module")
def words(text: str) -> Any:
    return word_pieces(text)


@pytest.fixture(scope="module")
def unigram(text: str) -> Any:
    return unigrams(text)


def encoded(tokenizer: Any, text: str) -> tuple[Any, list[tuple[int, int]]]:
    encoding = tokenizer(text, return_offsets_mapping=True, add_special_tokens=False)
    return np.array(encoding["input_ids"], np.uint32), encoding["offset_mapping"]


def surface(tokenizer: Any, ids: Any) -> tuple[str, list[tuple[int, int]]]:
    ids = np.asarray(ids, np.uint32)
    found = Surfaces(tokenizer).of(ids, ~np.isin(ids, tokenizer.all_special_ids))
    assert found.offsets is not None
    return found.text, [(a, b) for a, b in found.offsets.tolist()]


@given(text=TEXTS)
def test_byte_level_tokens_have_their_text_and_the_tokenizers_own_offsets(tokenizer: Any, text: str) -> None:
    ids, offsets = encoded(tokenizer, text)
    assert surface(tokenizer, ids) == (text, offsets)


@given(text=TEXTS, data=st.data())
def test_byte_level_tokens_cut_anywhere_have_the_characters_that_are_whole(
    tokenizer: Any, text: str, data: st.DataObject
) -> None:
    ids, offsets = encoded(tokenizer, text)
    start = data.draw(st.integers(0, len(ids)))
    end = data.draw(st.integers(start, len(ids)))

    def whole(c: int) -> bool:
        return all(start <= token < end for token, (a, b) in enumerate(offsets) if a <= c < b)

    kept = [c for c in range(len(text)) if whole(c)]
    found, places = surface(tokenizer, ids[start:end])
    assert found == "".join(text[c] for c in kept)
    expected = [[n for n, c in enumerate(kept) if a <= c < b] for a, b in offsets[start:end]]
    assert [list(range(a, b)) for a, b in places] == expected


def test_broken_bytes_are_no_text_and_no_character_forms_across_a_special_token(tokenizer: Any) -> None:
    ids, _ = encoded(tokenizer, "a\u65e5b")
    assert len(ids) == 5
    end = tokenizer.eos_token_id
    a, head, middle, tail, b = ids.tolist()
    assert surface(tokenizer, [tail, a, head, b, end]) == ("ab", [(0, 0), (0, 1), (1, 1), (1, 2), (2, 2)])
    assert surface(tokenizer, [head, end, middle, tail, b]) == ("b", [(0, 0), (0, 0), (0, 0), (0, 0), (0, 1)])
    assert surface(tokenizer, [head, middle]) == ("", [(0, 0), (0, 0)])


def test_special_tokens_that_are_written_are_text(tokenizer: Any) -> None:
    ids = np.array([*tokenizer("a")["input_ids"], tokenizer.eos_token_id], np.uint32)
    found = Surfaces(tokenizer).of(ids, np.ones(2, bool))
    assert found.text == "a" + tokenizer.eos_token
    assert found.offsets is not None
    assert found.offsets.tolist() == [[0, 1], [1, 1 + len(tokenizer.eos_token)]]


def test_added_tokens_that_are_not_special_are_their_own_text(text: str) -> None:
    backend: Any = ByteLevelBPETokenizer()
    backend.train_from_iterator([text], vocab_size=300, show_progress=False)
    backend.add_tokens(["\u00e9 t\u00e9", "   "])
    made_ = made(backend._tokenizer)
    ids, offsets = encoded(made_, "x   \u00e9 t\u00e9y")
    assert len(ids) == 4
    assert surface(made_, ids) == ("x   \u00e9 t\u00e9y", offsets)


@given(text=TEXTS.filter(lambda text: not text.startswith(" ") and "\ufffd" not in text))
def test_pieces_and_bytes_have_their_text_and_the_tokenizers_own_offsets(pieces: Any, text: str) -> None:
    ids, offsets = encoded(pieces, text)
    assert surface(pieces, ids) == (text, offsets)


@given(data=st.data())
def test_pieces_cut_anywhere_tile_their_text(pieces: Any, data: st.DataObject) -> None:
    ids, _ = encoded(pieces, MIXED)
    start = data.draw(st.integers(0, len(ids) - 1))
    end = data.draw(st.integers(start + 1, len(ids)))
    found, places = surface(pieces, ids[start:end])
    assert found.strip("\ufffd") in MIXED
    filled = [place for place in places if place[1] > place[0]]
    assert all(before[0] <= after[0] <= before[1] for before, after in pairwise(filled))
    assert not filled or (filled[0][0], filled[-1][1]) == (0, len(found))


@pytest.mark.parametrize("kind", ["words", "unigram"])
def test_other_vocabularies_are_decoded_by_their_own_tokenizer(
    kind: str, request: pytest.FixtureRequest, text: str
) -> None:
    tokenizer = request.getfixturevalue(kind)
    ids, _ = encoded(tokenizer, text[:2000])
    ids = ids[~np.isin(ids, tokenizer.all_special_ids)]
    found, places = surface(tokenizer, ids)
    assert found == tokenizer.backend_tokenizer.decode(ids.tolist())
    # The first token may be a lone mark of a beginning, which then shares the first character.
    assert [a for a, _ in places[2:]] == [b for _, b in places[1:-1]]
    assert (places[0][0], places[-1][1]) == (0, len(found))
    names = [name.replace("##", "").replace("\u2581", " ") for name in tokenizer.convert_ids_to_tokens(ids)]
    assert [found[a:b].strip() for a, b in places[1:]] == [name.strip() for name in names[1:]]


def test_a_tokenizer_that_is_not_fast_is_refused() -> None:
    with pytest.raises(ConfigError, match="needs a fast tokenizer, which ByT5Tokenizer is not"):
        Surfaces(ByT5Tokenizer())
