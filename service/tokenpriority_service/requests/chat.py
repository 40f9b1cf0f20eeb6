"""Messages through a model's chat template: the text it gives, and what of it the assistant wrote.

Knows rendering and characters. Knows nothing of tokens, masks or spans.

What the assistant wrote is taken from the template's `{% generation %}` marks. A template without them is rendered
over prefixes of the conversation: turn i runs from the end of `messages[:i]` with the generation prompt to the end of
`messages[:i+1]`, which includes the end-of-turn marker, as the marked templates do. That holds only while each prefix
renders to a prefix of the whole; a template that rewrites earlier turns (by dropping their reasoning, say) is refused
rather than guessed at.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Sequence
from typing import Any

from tokenpriority.errors import InvalidSequence
from tokenpriority.schema import Message

MAX_MESSAGES = 4096
"""Most messages of a conversation: a template may render it hundreds of times, and need not write a token for each."""
MAX_UNMARKED_TURNS = 256
"""Most assistant turns for a template without marks: each is rendered twice, over ever longer prefixes."""

_MARK = re.compile(r"\{%-?\s*generation\s*-?%\}")
_RENDERING = threading.Lock()
"""transformers keeps one tracker of generation marks per compiled template. While it is active, any other rendering of
that template, even one that asked for no marks, would write into it."""


class Chat:
    """The chat template of one tokenizer."""

    def __init__(self, tokenizer: Any) -> None:
        """Raises InvalidSequence if the tokenizer has no template."""
        try:
            self._template = tokenizer.get_chat_template()
        except ValueError:
            raise InvalidSequence("messages: the model has no chat template; send text or token_ids") from None
        self._special_tokens = tokenizer.special_tokens_map

    def render(self, messages: Sequence[Message], *, generation_prompt: bool = False) -> str:
        """The conversation as text. Raises InvalidSequence if it is empty or the template refuses it."""
        return self._render(messages, generation_prompt=generation_prompt)[0]

    def assistant_ranges(self, messages: Sequence[Message], text: str) -> list[tuple[int, int]]:
        """Characters [start, end) of `text`, the rendered conversation, that the assistant wrote, in order.

        Raises InvalidSequence if there are none, or if they cannot be told (see the module).
        """
        if _MARK.search(self._template):
            ranges = self._render(messages, marks=True)[1]
        else:
            ranges = self._prefix_ranges(messages, text)
        if not ranges:
            raise InvalidSequence(
                "messages: none is the assistant's, so nothing would be scored; give mask or score_from to score others"
            )
        return ranges

    def _prefix_ranges(self, messages: Sequence[Message], text: str) -> list[tuple[int, int]]:
        turns = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
        if len(turns) > MAX_UNMARKED_TURNS:
            raise InvalidSequence(
                f"messages: the chat template has no {{% generation %}} marks, which limits it to {MAX_UNMARKED_TURNS} "
                f"assistant turns, got {len(turns)}"
            )
        ranges = []
        for turn in turns:
            head = self._render(messages[:turn], generation_prompt=True)[0]
            tail = self._render(messages[: turn + 1])[0]
            if not (text.startswith(tail) and tail.startswith(head)):
                raise InvalidSequence(
                    f"messages[{turn}]: the chat template has no {{% generation %}} marks and renders this turn "
                    "differently within the whole conversation, so the assistant's tokens cannot be told; give "
                    "token_ids with a mask, or a template with marks"
                )
            ranges.append((len(head), len(tail)))
        return ranges

    def _render(
        self, messages: Sequence[Message], *, generation_prompt: bool = False, marks: bool = False
    ) -> tuple[str, list[tuple[int, int]]]:
        # Imported here: it costs seconds, which a server that is only starting should not wait for.
        from transformers.utils.chat_template_utils import render_jinja_template

        try:
            # Its annotation says str; it returns texts and ranges, one of each per conversation.
            with _RENDERING:
                rendered: Any = render_jinja_template(
                    conversations=[list(messages)],
                    chat_template=self._template,
                    return_assistant_tokens_mask=marks,
                    add_generation_prompt=generation_prompt,
                    **self._special_tokens,
                )
        except Exception as error:  # a template may raise anything at all on messages it was not made for
            raise InvalidSequence(f"messages: the model's chat template refuses them: {error}") from None
        texts, ranges = rendered
        return texts[0], list(ranges[0]) if marks else []


def check_messages(field: str, messages: Sequence[Message]) -> None:
    """Raises InvalidSequence if there are no messages, too many, or one has no role."""
    if not messages:
        raise InvalidSequence(f"{field}: must hold at least 1 message, got 0")
    if len(messages) > MAX_MESSAGES:
        raise InvalidSequence(f"{field}: must hold at most {MAX_MESSAGES} messages, got {len(messages)}")
    for index, message in enumerate(messages):
        if not isinstance(message.get("role"), str):
            raise InvalidSequence(f"{field}[{index}].role: must be a string, got {message.get('role')!r}")
