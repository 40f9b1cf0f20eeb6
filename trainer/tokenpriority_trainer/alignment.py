"""The caller's spans on an example's text, carried over to its tokens.

Knows how TRL turns each dataset format into one text and that text into tokens; the rules of spans are
`tokenpriority.spans`. Knows nothing of datasets as a whole. Whoever uses it must check that its tokens are the ones TRL
made (`columns.py` does).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import msgspec
import numpy as np
from transformers import PreTrainedTokenizerBase

from tokenpriority.errors import TokenPriorityError
from tokenpriority.schema import Message, Span
from tokenpriority.spans import Conversation, Surface, span_labels
from tokenpriority_trainer.collator import SPAN_PRIORITIES
from tokenpriority_trainer.errors import DataError

SPANS = "spans"
SPAN_TOKENS = "span_token_ids"
"""Column holding the tokens the spans were aligned to, until they have been compared with TRL's."""


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
            spans = [_read(number, span) for number, span in enumerate(example[SPANS] or [])]
            ids, surface = self._encode(example)
            labels = span_labels(spans, len(ids), surface)
        except TokenPriorityError as error:
            raise DataError(f"{self.dataset_name} dataset, example {index}: {error}") from None
        return {SPAN_PRIORITIES: labels.tolist(), SPAN_TOKENS: ids}

    def _encode(self, example: Mapping[str, Any]) -> tuple[list[int], Surface | None]:
        """The example's tokens and the characters behind them, which examples of token ids have not."""
        if "input_ids" in example:
            return list(example["input_ids"]), None
        messages = _messages(example)
        text, given = self._text(example) if messages is None else (self._render(example, messages), None)
        fast = bool(self.tokenizer.is_fast)
        encoding = self.tokenizer(text, add_special_tokens=messages is None, return_offsets_mapping=fast)
        offsets = np.array(encoding["offset_mapping"], np.int64).reshape(-1, 2) if fast else None
        conversation = None if messages is None else Conversation(messages, partial(self._render, example))
        return list(encoding["input_ids"]), Surface(text, offsets, conversation, given)

    def _text(self, example: Mapping[str, Any]) -> tuple[str, int]:
        """What TRL tokenises of a plain example, its text with the end-of-sequence token appended if it has none, and
        how many of its characters are the example's own.
        """
        end = str(self.tokenizer.eos_token)
        last = example.get(self.text_field, example.get("completion"))
        if not isinstance(last, str):
            raise DataError(f"spans need {self.text_field}, prompt + completion, messages or input_ids to stand on")
        own = last if self.text_field in example else str(example["prompt"]) + last
        return (own if last.endswith(end) else own + end), len(own)

    def _render(self, example: Mapping[str, Any], messages: Sequence[Message]) -> str:
        tools = example.get("tools")
        rendered = self.tokenizer.apply_chat_template(
            [dict(message) for message in messages],
            tokenize=False,
            chat_template=self.chat_template,
            tools=json.loads(tools) if isinstance(tools, str) else tools,
            **(example.get("chat_template_kwargs") or {}),
        )
        return str(rendered)


def _read(number: int, span: Mapping[str, Any]) -> Span:
    """One span, checked by the wire's own schema; a column of structs holds None for absent keys."""
    present = {key: value for key, value in span.items() if value is not None}
    try:
        return msgspec.convert(present, Span)
    except msgspec.ValidationError as error:
        raise DataError(f"spans[{number}]: {error}, got {present}") from None


def _messages(example: Mapping[str, Any]) -> list[Message] | None:
    """The example's chat, prompt first; None if it is plain text."""
    if isinstance(example.get("prompt"), list):
        return [*example["prompt"], *example["completion"]]
    return list(example["messages"]) if isinstance(example.get("messages"), list) else None
