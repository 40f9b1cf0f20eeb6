"""Where the content of one message stands in a rendered conversation.

Knows characters. Knows no template: it is given a function that renders.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tokenpriority.errors import InvalidSequence
from tokenpriority.schema import Message

Render = Callable[[Sequence[Message]], str]
"""A conversation as the text that is tokenised. May raise InvalidSequence."""


@dataclass(frozen=True, slots=True)
class Content:
    """Where the content of one message stands in the rendered text: `text[start:end]`."""

    start: int
    end: int
    length: int
    """Characters of the content as it was given."""
    trimmed: int
    """Characters the template trimmed off the content's beginning: content[trimmed] is text[start]."""


def locate(messages: Sequence[Message], text: str, index: int, render: Render) -> Content:
    """Where `messages[index].content` stands in `text`, the rendered conversation.

    Found by rendering once more with a placeholder in its place, so that equal text elsewhere is never mistaken
    for it. Raises InvalidSequence if the content is not a string or the template rewrites it.
    """
    content: Any = messages[index].get("content")
    if not isinstance(content, str):
        raise InvalidSequence(f"messages[{index}].content: must be a string to carry spans")
    place = "PLACEHOLDER"
    while place in text:
        place += "X"
    changed = [*messages[:index], {**messages[index], "content": place}, *messages[index + 1 :]]
    before, found, after = render(changed).partition(place)
    shown = text[len(before) : len(text) - len(after)]
    same = text == before + shown + after and shown in content and shown.strip() == content.strip()
    if not found or place in after or not same:
        raise InvalidSequence(
            f"messages[{index}].content: the chat template does not show it as it is, so character spans in it "
            "cannot be placed; give spans with unit 'token'"
        )
    return Content(len(before), len(before) + len(shown), len(content), _indent(content) - _indent(shown))


def _indent(text: str) -> int:
    return len(text) - len(text.lstrip())
