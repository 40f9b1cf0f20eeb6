"""The caller's spans on an example's text, carried over to its tokens.

Knows how TRL turns each dataset format into one text and that text into tokens, and where in a rendered chat each
message's content stands. Knows nothing of datasets as a whole. Whoever uses it must check that its tokens are the
ones TRL made (`columns.py` does).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import msgspec
import numpy as np
from msgspec import UNSET
from transformers import PreTrainedTokenizerBase

from tokenpriority.errors import TokenPriorityError
from tokenpriority.schema import Span
from tokenpriority.spans import Label, char_labels, token_labels
from tokenpriority_trainer.collator import SPAN_PRIORITIES
from tokenpriority_trainer.errors import DataError

Labels = np.ndarray[Any, np.dtype[np.float32]]

SPANS = "spans"
SPAN_TOKENS = "span_token_ids"
"""Column holding the tokens the spans were aligned to, until they have been compared with TRL's."""

_MARK = "\ue000\ue001"  # private-use characters: no template and no text contains them


class Encoded(NamedTuple):
    """An example's tokens and the text they come from, which examples of token ids have not."""

    ids: list[int]
    text: str | None = None
    offsets: np.ndarray[Any, np.dtype[np.int64]] | None = None
    """[T, 2], the characters [start, end) of `text` each token stands for."""
    messages: list[Mapping[str, Any]] | None = None
    """The chat behind `text`, if it is one."""


class Shown(NamedTuple):
    """Characters [start, end) of a text, which show a source of `length` characters from its `offset` on."""

    start: int
    end: int
    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class SpanAligner:
    """Turns an example's `spans` into a label per token, by the rules of `tokenpriority.schema.Span`.

    `spans` is a list of {start, end, priority[, message][, unit]}. Offsets are of characters: of the text, of prompt +
    completion, or, for chats, of the content of `message` (counted through prompt and completion). For an example of
    input_ids, or with unit "token", they are of tokens.
    """

    tokenizer: PreTrainedTokenizerBase
    text_field: str
    chat_template: str | None
    dataset_name: str

    def __call__(self, example: Mapping[str, Any], index: int) -> dict[str, list[Any]]:
        """`span_priorities` (float per token, NaN where no span is) and the token ids they belong to.

        Raises DataError, naming the example, if a span is malformed, ends after its text or overlaps no token, or if
        the text of a message cannot be found in the rendered chat.
        """
        try:
            encoded = self._encode(example)
            values = np.full(len(encoded.ids), np.nan, np.float32)
            for number, span in enumerate(example[SPANS] or []):
                laid = self._lay(number, _read(number, span), encoded, example)
                values = np.where(np.isnan(laid), values, laid)
        except TokenPriorityError as error:
            raise DataError(f"{self.dataset_name} dataset, example {index}: {error}") from None
        return {SPAN_PRIORITIES: values.tolist(), SPAN_TOKENS: encoded.ids}

    def _encode(self, example: Mapping[str, Any]) -> Encoded:
        if "input_ids" in example:
            return Encoded(list(example["input_ids"]))
        if not self.tokenizer.is_fast:
            raise DataError("spans need a fast tokenizer, which tells the characters of each token")
        messages = _messages(example)
        text = self._text(example) if messages is None else self._render(example, messages)
        encoding = self.tokenizer(text, add_special_tokens=messages is None, return_offsets_mapping=True)
        offsets = np.array(encoding["offset_mapping"], np.int64).reshape(-1, 2)
        return Encoded(list(encoding["input_ids"]), text, offsets, messages)

    def _lay(self, number: int, span: Span, encoded: Encoded, example: Mapping[str, Any]) -> Labels:
        """One span's label per token, NaN outside it."""
        chars = span.unit == "char" if span.unit is not UNSET else encoded.text is not None
        if span.message is not UNSET and not (chars and encoded.messages):
            raise DataError(f"spans[{number}].message: goes with the characters of a chat only, got {span.message}")
        if not chars:
            return token_labels([Label(span.start, span.end, span.priority)], len(encoded.ids), first=number)
        if encoded.text is None or encoded.offsets is None:
            raise DataError(f"spans[{number}].unit: input_ids have no characters, so it must be 'token', got 'char'")
        if encoded.messages is None:
            shown = Shown(0, len(encoded.text), 0, self._source_length(example))
        else:
            shown = self._shown(example, encoded.messages, _message(number, span, encoded.messages), encoded.text)
        return char_labels([_moved(number, span, shown)], encoded.offsets, len(encoded.text), first=number)

    def _text(self, example: Mapping[str, Any]) -> str:
        """What TRL tokenises of a plain example: its text with the end-of-sequence token appended if it has none."""
        end = str(self.tokenizer.eos_token)
        last = example.get(self.text_field, example.get("completion"))
        if not isinstance(last, str):
            raise DataError(f"spans need {self.text_field}, prompt + completion, messages or input_ids to stand on")
        return str(example.get("prompt", "")) + (last if last.endswith(end) else last + end)

    def _source_length(self, example: Mapping[str, Any]) -> int:
        if self.text_field in example:
            return len(example[self.text_field])
        return len(example["prompt"]) + len(example["completion"])

    def _render(self, example: Mapping[str, Any], messages: Sequence[Mapping[str, Any]]) -> str:
        tools = example.get("tools")
        rendered = self.tokenizer.apply_chat_template(
            [dict(message) for message in messages],
            tokenize=False,
            chat_template=self.chat_template,
            tools=json.loads(tools) if isinstance(tools, str) else tools,
            **(example.get("chat_template_kwargs") or {}),
        )
        return str(rendered)

    def _shown(
        self, example: Mapping[str, Any], messages: Sequence[Mapping[str, Any]], number: int, text: str
    ) -> Shown:
        """Where the content of message `number` stands in the rendered text.

        Found by rendering the chat once more with a mark in its place: what stands around the mark must stand around
        the content too, and between them the content itself, at most stripped of outer white space.
        """
        content = messages[number].get("content")
        if not isinstance(content, str):
            raise DataError(f"messages[{number}].content: must be a string to carry spans")
        marked = [{**m, "content": _MARK} if i == number else m for i, m in enumerate(messages)]
        before, mark, after = self._render(example, marked).partition(_MARK)
        start, end = len(before), len(text) - len(after)
        shown = text[start:end]
        around = bool(mark) and text == before + shown + after
        if not around or not shown or shown not in (content, content.strip(), content.lstrip(), content.rstrip()):
            raise DataError(
                f"messages[{number}].content: the chat template changes this message, so characters in it cannot be "
                "placed; give spans with unit 'token'"
            )
        return Shown(start, end, content.index(shown), len(content))


def _read(number: int, span: Mapping[str, Any]) -> Span:
    """One span, checked by the wire's own schema; a column of structs holds None for absent keys."""
    present = {key: value for key, value in span.items() if value is not None}
    try:
        return msgspec.convert(present, Span)
    except msgspec.ValidationError as error:
        raise DataError(f"spans[{number}]: {error}, got {present}") from None


def _messages(example: Mapping[str, Any]) -> list[Mapping[str, Any]] | None:
    """The example's chat, prompt first; None if it is plain text."""
    if isinstance(example.get("prompt"), list):
        return [*example["prompt"], *example["completion"]]
    return list(example["messages"]) if isinstance(example.get("messages"), list) else None


def _message(number: int, span: Span, messages: Sequence[Mapping[str, Any]]) -> int:
    if span.message is UNSET:
        raise DataError(f"spans[{number}].message: is required, since the characters are those of one message")
    if span.message >= len(messages):
        raise DataError(f"spans[{number}].message: the chat has {len(messages)} messages, got {span.message}")
    return span.message


def _moved(number: int, span: Span, shown: Shown) -> Label:
    """The span as a label on the text, cut to what of it the text shows."""
    if span.end <= span.start:
        raise DataError(f"spans[{number}].end: must be greater than start {span.start}, got {span.end}")
    if span.end > shown.length:
        raise DataError(f"spans[{number}].end: the text has {shown.length} characters, got {span.end}")
    shift = shown.start - shown.offset
    start, end = max(span.start + shift, shown.start), min(span.end + shift, shown.end)
    if start >= end:
        raise DataError(f"spans[{number}]: [{span.start}, {span.end}) is white space that the chat template strips")
    return Label(start, end, span.priority)
