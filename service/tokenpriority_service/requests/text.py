"""The four forms of a sequence -> token ids, what is scored by default, and which characters each token stands for.

Knows a model's tokenizer, as transformers gives it, and what has to wait until a text is known to fit. Knows nothing of
spans or requests.

- `text`: the tokenizer's own call, with the special tokens it adds by default; all is scored.
- `messages`: the chat template's text, tokenised without further special tokens; the assistant's turns are scored.
- `prompt` + `completion` as strings: tokenised together. The completion begins where the tokens of the prompt and of
  the whole part, which may be before the last character of the prompt if a token spans both. No end-of-sequence token
  is added: a trainer that appends one (TRL does) must append it to `completion` to have it scored.
- `prompt` + `completion` as messages: the same rule over the template's texts, the prompt with the generation prompt.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from msgspec import UNSET

from tokenpriority.errors import InvalidSequence
from tokenpriority.schema import Message, SequenceItem
from tokenpriority.spans import Conversation, Surface
from tokenpriority_service.engines.engine import Ids
from tokenpriority_service.requests.chat import Chat, check_messages
from tokenpriority_service.requests.length import Length

Mask = np.ndarray[Any, np.dtype[np.bool_]]


@dataclass(frozen=True, slots=True)
class Tokens:
    """One sequence in tokens; arrays of length T."""

    ids: Ids
    scored: Mask
    """True where the form scores by default."""
    surface: Surface | None = None
    """The characters behind them; None for token_ids."""
    prompt: Mask | None = None
    """True outside the completion or the assistant's turns; None where the form has neither, or nobody asked."""


class Text:
    """The text side of one model. Its methods may run in any thread."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    @property
    def chat(self) -> Chat:
        """The model's chat template. Raises InvalidSequence if it has none."""
        return Chat(self._tokenizer)

    def tokens(self, item: SequenceItem, length: Length, *, turns: bool) -> Tokens:
        """The tokens of a sequence given as text, messages or prompt + completion.

        `turns` says whether the assistant's turns must be found; without it messages are scored whole. Raises
        InvalidSequence naming the field; what is clearly longer than `length` is not tokenised.
        """
        if item.text is not UNSET:
            return self._tokenize(item.text, length)
        if item.messages is not UNSET:
            return self._messages(item.messages, length, turns=turns)
        return self._completion(item.prompt, item.completion, length)

    def _messages(self, messages: list[Message], length: Length, *, turns: bool) -> Tokens:
        check_messages("messages", messages)
        text = self.chat.render(messages)
        tokens = self._tokenize(text, length, messages)
        if not turns:
            return tokens
        length.check(len(tokens.ids))  # before what may render it hundreds of times
        offsets = tokens.surface.offsets if tokens.surface is not None else None
        if offsets is None:
            raise InvalidSequence("messages: finding the assistant's tokens needs a fast tokenizer; give score_from")
        starts, ends = offsets[:, 0], offsets[:, 1]
        scored = np.zeros(len(tokens.ids), np.bool_)
        for start, end in self.chat.assistant_ranges(messages, text):
            scored |= (starts < end) & (ends > start) & (ends > starts)
        return Tokens(tokens.ids, scored, tokens.surface, ~scored)

    def _completion(self, prompt: Any, completion: Any, length: Length) -> Tokens:
        if isinstance(prompt, str) and isinstance(completion, str):
            whole = self._tokenize(prompt + completion, length)
            head = self._tokenize(prompt, length)
        elif isinstance(prompt, list) and isinstance(completion, list):
            check_messages("prompt", prompt)
            check_messages("completion", completion)
            messages = [*prompt, *completion]
            whole = self._tokenize(self.chat.render(messages), length, messages)
            head = self._tokenize(self.chat.render(prompt, generation_prompt=True), length, prompt)
        else:
            raise InvalidSequence("completion: must be of the same kind as prompt, both strings or both messages")
        scored = np.arange(len(whole.ids)) >= _common_prefix(head.ids, whole.ids)
        if not scored.any():
            raise InvalidSequence("completion: adds no token to the prompt, so nothing would be scored")
        return Tokens(whole.ids, scored, whole.surface, ~scored)

    def _tokenize(self, text: str, length: Length, messages: list[Message] | None = None) -> Tokens:
        length.check_text(text, self._count)
        fast = bool(self._tokenizer.is_fast)
        # A template writes its special tokens itself.
        encoding = self._tokenizer(
            text,
            add_special_tokens=messages is None,
            return_offsets_mapping=fast,
            return_attention_mask=False,
            verbose=False,
        )
        ids = np.array(encoding["input_ids"], np.uint32)
        offsets = np.array(encoding["offset_mapping"], np.int64).reshape(-1, 2) if fast else None
        conversation = None if messages is None else Conversation(messages, self.chat.render)
        return Tokens(ids, np.ones(len(ids), np.bool_), Surface(text, offsets, conversation))

    def _count(self, text: str) -> int:
        encoding = self._tokenizer(text, add_special_tokens=False, return_attention_mask=False, verbose=False)
        return len(encoding["input_ids"])


def _common_prefix(head: Ids, whole: Ids) -> int:
    shorter = min(len(head), len(whole))
    differs = head[:shorter] != whole[:shorter]
    return int(differs.argmax()) if differs.any() else shorter
