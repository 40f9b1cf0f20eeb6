"""Labels by offsets against a per-character brute force; the rules of schema.Span and their errors."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenpriority.errors import InvalidSequence
from tokenpriority.schema import Message, Span
from tokenpriority.spans import Conversation, Surface, apply, span_labels

PRIORITIES = st.sampled_from([-1.0, -0.5, 0.0, 2.0])


@st.composite
def tokenised(draw: st.DrawFn) -> tuple[int, list[tuple[int, int]], list[Span]]:
    """A text's length, its tokens' offsets (with gaps and empty tokens) and spans within it."""
    cuts = sorted(draw(st.lists(st.integers(0, 40), min_size=2, max_size=14)))
    offsets = [(a, b) for a, b in itertools.pairwise(cuts) if draw(st.integers(0, 3)) > 0 or a == b]
    length = max(cuts[-1], 1)
    spans = [
        Span(start=start, end=draw(st.integers(start + 1, length)), priority=draw(PRIORITIES))
        for start in draw(st.lists(st.integers(0, length - 1), max_size=4))
    ]
    return length, offsets, spans


@settings(max_examples=300, deadline=None)
@given(tokenised())
def test_character_spans_equal_brute_force(case: tuple[int, list[tuple[int, int]], list[Span]]) -> None:
    length, offsets, spans = case
    expected = [float("nan")] * len(offsets)
    covered = True
    for span in spans:
        hit = [i for i, (a, b) in enumerate(offsets) if set(range(a, b)) & set(range(span.start, span.end))]
        covered &= bool(hit)
        for i in hit:
            expected[i] = span.priority
    surface = Surface("x" * length, np.array(offsets, np.int64).reshape(-1, 2))
    if covered:
        np.testing.assert_array_equal(span_labels(spans, len(offsets), surface), np.array(expected, np.float32))
    else:
        with pytest.raises(InvalidSequence, match="overlap no token"):
            span_labels(spans, len(offsets), surface)


def test_token_spans_later_one_holds() -> None:
    spans = [Span(start=1, end=4, priority=-1.0), Span(start=3, end=5, priority=0.5)]
    expected = np.array([np.nan, -1, -1, 0.5, 0.5, np.nan], np.float32)
    np.testing.assert_array_equal(span_labels(spans, 6, None), expected)
    by_unit = [Span(start=s.start, end=s.end, priority=s.priority, unit="token") for s in spans]
    surface = Surface("abcdef", np.array([[i, i + 1] for i in range(6)]))
    np.testing.assert_array_equal(span_labels(by_unit, 6, surface), expected)


CHAT: list[Message] = [{"role": "user", "content": "user"}, {"role": "assistant", "content": "  user: yes"}]


def render(messages: Any) -> str:
    return "".join(f"<{m['role']}>{m['content'].strip()}</>" for m in messages)


def characters(text: str) -> np.ndarray[Any, np.dtype[np.int64]]:
    return np.array([[i, i + 1] for i in range(len(text))], np.int64)


def test_message_spans_count_in_the_content_as_given() -> None:
    """The content repeats a word of the template and of another message, and the template trims it."""
    text = render(CHAT)
    surface = Surface(text, characters(text), Conversation(CHAT, render))
    labels = span_labels([Span(start=2, end=6, priority=-1, message=1)], len(text), surface)
    at = text.rindex("user")
    assert np.flatnonzero(~np.isnan(labels)).tolist() == list(range(at, at + 4))


SURFACE = Surface("abcdef</s>", characters("abcdef</s>"), given=6)
TALK = Surface(render(CHAT), characters(render(CHAT)), Conversation(CHAT, render))


@pytest.mark.parametrize(
    ("span", "surface", "words"),
    [
        (Span(start=2, end=2, priority=1), None, "end: must be greater than start 2, got 2"),
        (Span(start=0, end=7, priority=1), None, "has 6 tokens, got 7"),
        (Span(start=0, end=7, priority=1), SURFACE, "has 6 characters, got 7"),
        (Span(start=0, end=1, priority=1, unit="char"), None, "must be 'token', got 'char'"),
        (Span(start=0, end=1, priority=1, unit="word"), None, "must be 'token' or 'char', got 'word'"),
        (Span(start=0, end=1, priority=1, message=0), None, "unit 'char' only, got 0"),
        (Span(start=0, end=1, priority=1, message=0), SURFACE, "messages only, got 0"),
        (Span(start=0, end=1, priority=1), Surface("abc", None), "fast tokenizer"),
        (Span(start=0, end=1, priority=1), TALK, "message: is required"),
        (Span(start=0, end=1, priority=1, message=2), TALK, "below the number of messages 2, got 2"),
        (Span(start=0, end=12, priority=1, message=1), TALK, "has 11 characters, got 12"),
        (Span(start=0, end=2, priority=1, message=1), TALK, "trimmed off"),
    ],
)
def test_bad_spans_name_the_span_the_value_and_the_limit(span: Span, surface: Surface | None, words: str) -> None:
    length = 6 if surface is None else len(surface.text)
    good = Span(start=0, end=1, priority=1, unit="token")
    with pytest.raises(InvalidSequence, match=words) as caught:
        span_labels([good, span], length, surface)
    assert str(caught.value).startswith("spans[1]")


def test_a_rewritten_message_is_refused() -> None:
    def shout(messages: Any) -> str:
        return render([{**m, "content": m["content"].upper()} for m in messages])

    text = shout(CHAT)
    surface = Surface(text, characters(text), Conversation(CHAT, shout))
    with pytest.raises(InvalidSequence, match=r"messages\[1\]\.content: the chat template does not show it"):
        span_labels([Span(start=2, end=6, priority=-1, message=1)], len(text), surface)


def test_apply_overrides_only_labelled_and_unmasked_tokens() -> None:
    priorities = np.array([0, 0.25, 0.5, 0.0], np.float32)
    labels = np.array([-1, np.nan, -1, -1], np.float32)
    mask = np.array([False, True, True, False])
    np.testing.assert_array_equal(apply(priorities, labels, mask, xp=np), np.array([0, 0.25, -1, 0], np.float32))
