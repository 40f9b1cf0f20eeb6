"""The caller's spans of one sequence -> the label of each token.

Knows which unit a span is in and which text its characters count in (schema.Span has the rule). The mapping from
offsets to tokens is `tokenpriority.spans`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from msgspec import UNSET

from tokenpriority.errors import InvalidSequence
from tokenpriority.schema import Message, Span
from tokenpriority.spans import Label, char_labels, token_labels
from tokenpriority_service.chat import Content
from tokenpriority_service.text import Text, Tokens

MAX_SPANS = 4096
"""Each span is laid over the whole sequence, so their number is bounded."""

Labels = np.ndarray[Any, np.dtype[np.float32]]


def labels(spans: Sequence[Span], tokens: Tokens, text: Text | None) -> Labels:
    """The label of each token, shape (T,) float32, NaN where there is none; of overlapping spans the later one holds.

    `text` is the model's text side, needed for messages. Raises InvalidSequence naming the span.
    """
    if len(spans) > MAX_SPANS:
        raise InvalidSequence(f"spans: a sequence has at most {MAX_SPANS}, got {len(spans)}")
    out = np.full(len(tokens.ids), np.nan, np.float32)
    # One more rendering per labelled message, not per span.
    place = functools.cache(lambda index: _place(index, tokens, text))
    for number, span in enumerate(spans):
        if span.end <= span.start:
            raise InvalidSequence(f"spans[{number}].end: must be greater than start {span.start}, got {span.end}")
        unit = span.unit if span.unit is not UNSET else ("token" if tokens.text is None else "char")
        laid = _token_span(number, span, tokens) if unit == "token" else _char_span(number, span, tokens, place)
        out = np.where(np.isnan(laid), out, laid)
    return out


def _token_span(number: int, span: Span, tokens: Tokens) -> Labels:
    if span.message is not UNSET:
        raise InvalidSequence(f"spans[{number}].message: goes with unit 'char' only, got {span.message}")
    return token_labels([Label(span.start, span.end, span.priority)], len(tokens.ids), first=number)


def _char_span(number: int, span: Span, tokens: Tokens, place: Callable[[int], Content]) -> Labels:
    if tokens.text is None:
        raise InvalidSequence(f"spans[{number}].unit: token_ids have no characters, so it must be 'token', got 'char'")
    if tokens.offsets is None:
        raise InvalidSequence(f"spans[{number}]: character spans need a fast tokenizer, which this model has not")
    label = Label(span.start, span.end, span.priority)
    if tokens.messages is not None:
        label = _in_message(number, span, tokens.messages, place)
    elif span.message is not UNSET:
        raise InvalidSequence(f"spans[{number}].message: goes with messages only, got {span.message}")
    return char_labels([label], tokens.offsets, len(tokens.text), first=number)


def _place(index: int, tokens: Tokens, text: Text | None) -> Content:
    # A conversation has all three.
    assert text is not None
    assert tokens.text is not None
    assert tokens.messages is not None
    return text.chat.content(tokens.messages, tokens.text, index)


def _in_message(number: int, span: Span, messages: Sequence[Message], place: Callable[[int], Content]) -> Label:
    """A span of one message's content, in the characters of the rendered conversation."""
    if span.message is UNSET:
        raise InvalidSequence(f"spans[{number}].message: is required, since the characters are those of one message")
    if span.message >= len(messages):
        raise InvalidSequence(
            f"spans[{number}].message: must be below the number of messages {len(messages)}, got {span.message}"
        )
    content = place(span.message)
    if span.end > content.length:
        raise InvalidSequence(
            f"spans[{number}].end: messages[{span.message}].content has {content.length} characters, got {span.end}"
        )
    start = max(content.start + span.start - content.trimmed, content.start)
    end = min(content.start + span.end - content.trimmed, content.end)
    if start >= end:
        raise InvalidSequence(
            f"spans[{number}]: characters [{span.start}, {span.end}) of messages[{span.message}].content are trimmed "
            "off by the chat template"
        )
    return Label(start, end, span.priority)
