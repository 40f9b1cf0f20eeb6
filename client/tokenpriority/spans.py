"""Signed labels from the caller: from spans of characters or tokens to the label of each token.

Knows the rules of `schema.Span`, once, for server and trainer. Knows nothing of tokenizers and templates (it is given
offsets and a function that renders) or of methods.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from msgspec import UNSET

from tokenpriority.arrays import Array, Namespace
from tokenpriority.chat import Content, Render, locate
from tokenpriority.errors import InvalidSequence, shown
from tokenpriority.schema import Message, Span

Labels = np.ndarray[Any, np.dtype[np.float32]]
Offsets = np.ndarray[Any, np.dtype[np.int64]]


@dataclass(frozen=True, slots=True)
class Conversation:
    """Messages and the function that renders them."""

    messages: Sequence[Message]
    render: Render


@dataclass(frozen=True, slots=True)
class Surface:
    """The characters behind the tokens of a sequence that was given as text."""

    text: str
    """What was tokenised."""
    offsets: Offsets | None
    """[T, 2] int64, the characters [start, end) of each token; None if the tokenizer cannot tell."""
    conversation: Conversation | None = None
    """The conversation that `text` is a rendering of, if it is one."""
    given: int | None = None
    """Characters of `text` that the caller gave, if something was appended to them."""


def span_labels(spans: Sequence[Span], length: int, surface: Surface | None) -> Labels:
    """The label of each of `length` tokens, shape (length,) float32, NaN where there is none.

    Of overlapping spans the later one holds. A token is inside a span of characters if they share one; tokens of no
    characters, such as an end-of-sequence token, are in none. Raises InvalidSequence, naming the span, if it is empty,
    ends after what it counts in, overlaps no token, or counts in something the sequence has not.
    """
    out = np.full(length, np.nan, np.float32)

    @functools.cache  # one more rendering per labelled message, not per span
    def place(index: int) -> Content:
        assert surface is not None
        assert surface.conversation is not None
        return locate(surface.conversation.messages, surface.text, index, surface.conversation.render)

    for number, span in enumerate(spans):
        if span.end <= span.start:
            raise InvalidSequence(f"spans[{number}].end: must be greater than start {span.start}, got {span.end}")
        unit = span.unit if span.unit is not UNSET else ("token" if surface is None else "char")
        if unit not in ("token", "char"):
            raise InvalidSequence(f"spans[{number}].unit: must be 'token' or 'char', got {shown(unit)}")
        if unit == "token":
            out[_tokens(number, span, length)] = span.priority
        else:
            out[_characters(number, span, surface, place)] = span.priority
    return out


def apply(priorities: Array, labels: Array, mask: Array, *, xp: Namespace) -> Array:
    """Priorities with the caller's labels laid over them, shape (T,); masked-out tokens stay 0."""
    return xp.where(mask & ~xp.isnan(labels), labels, priorities)


def _tokens(number: int, span: Span, length: int) -> slice:
    if span.message is not UNSET:
        raise InvalidSequence(f"spans[{number}].message: goes with unit 'char' only, got {span.message}")
    if span.end > length:
        raise InvalidSequence(f"spans[{number}].end: the sequence has {length} tokens, got {span.end}")
    return slice(span.start, span.end)


def _characters(
    number: int, span: Span, surface: Surface | None, place: Callable[[int], Content]
) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Which tokens share a character with the span, (T,) bool."""
    if surface is None:
        raise InvalidSequence(f"spans[{number}].unit: token_ids have no characters, so it must be 'token', got 'char'")
    if surface.offsets is None:
        raise InvalidSequence(f"spans[{number}]: character spans need a fast tokenizer, which this model has not")
    if surface.conversation is not None:
        start, end = _in_message(number, span, surface.conversation.messages, place)
    else:
        start, end = _in_text(number, span, surface)
    first, last = surface.offsets[:, 0], surface.offsets[:, 1]
    inside: np.ndarray[Any, np.dtype[np.bool_]] = (first < end) & (last > start) & (last > first)
    if not inside.any():
        raise InvalidSequence(f"spans[{number}]: characters [{start}, {end}) overlap no token")
    return inside


def _in_text(number: int, span: Span, surface: Surface) -> tuple[int, int]:
    if span.message is not UNSET:
        raise InvalidSequence(f"spans[{number}].message: goes with messages only, got {span.message}")
    limit = len(surface.text) if surface.given is None else surface.given
    if span.end > limit:
        raise InvalidSequence(f"spans[{number}].end: the sequence has {limit} characters, got {span.end}")
    return span.start, span.end


def _in_message(
    number: int, span: Span, messages: Sequence[Message], place: Callable[[int], Content]
) -> tuple[int, int]:
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
    return start, end
