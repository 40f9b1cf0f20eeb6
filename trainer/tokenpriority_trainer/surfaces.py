"""The text behind tokens, and which of its characters each token stands for.

Knows a fast tokenizer and token ids that may begin or end anywhere: in the middle of a text, of a word, of a character.
The tokens are decoded as they stand; whether the text would be tokenised into them again does not matter. Knows nothing
of documents, weights or servers.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from tokenizers.decoders import DecodeStream
from transformers import PreTrainedTokenizerBase

from tokenpriority.spans import Offsets, Surface
from tokenpriority_trainer.errors import ConfigError

Ids = np.ndarray[Any, np.dtype[np.uint32]]
Bools = np.ndarray[Any, np.dtype[np.bool_]]

_BREAK = b"\xff"
"""Stands for a token whose text is left out: a byte that is in no character, so that none forms across it."""


class Surfaces:
    """Gives the text and the offsets of tokens; see `of`. Raises ConfigError for a tokenizer that is not a fast one.

    The tokens of a byte-level vocabulary are bytes, which are decoded here. Those of any other are decoded by the
    tokenizer itself, one after the other.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        if not tokenizer.is_fast:
            raise ConfigError(f"the text of tokens needs a fast tokenizer, which {type(tokenizer).__name__} is not")
        backend: Any = tokenizer
        self._backend = backend.backend_tokenizer
        self._added = {number: added.content for number, added in tokenizer.added_tokens_decoder.items()}
        self._pieces: dict[int, bytes] | None = {} if "ByteLevel" in repr(self._backend.decoder) else None

    def of(self, token_ids: Ids, written: Bools) -> Surface:
        """The text of the `written` tokens, and the characters [start, end) of every token.

        `token_ids` and `written` (T,). A token that is not written has start = end. Tokens that share one character,
        as parts of its UTF-8 bytes, each have that character. Bytes that make up no character, such as one cut off at
        the end, are left out, and a token of nothing else has start = end; only where a tokenizer that is not
        byte-level decodes broken bytes before others as U+FFFD is that in the text.
        """
        if self._pieces is None:
            return self._streamed(token_ids, written)
        pieces = [
            self._bytes(number) if use else _BREAK
            for number, use in zip(token_ids.tolist(), written.tolist(), strict=True)
        ]
        edges = np.cumsum([0, *map(len, pieces)])
        return _decoded(b"".join(pieces), edges)

    def _bytes(self, number: int) -> bytes:
        """The bytes of a token of a byte-level vocabulary; none for an id the tokenizer has not."""
        assert self._pieces is not None
        if number not in self._pieces:
            piece = self._added.get(number) or self._backend.id_to_token(number) or ""
            spelt = number not in self._added and all(letter in _BYTES for letter in piece)
            self._pieces[number] = bytes(_BYTES[letter] for letter in piece) if spelt else piece.encode()
        return self._pieces[number]

    def _streamed(self, token_ids: Ids, written: Bools) -> Surface:
        """By the tokenizer's own decoder, which holds text back until no byte of it is missing.

        Tokens whose text was held back share the first character of what then comes.
        """
        stream, parts, at = DecodeStream(skip_special_tokens=False), [], 0
        offsets = np.zeros((len(token_ids), 2), np.int64)
        waiting: list[int] = []
        for token, number in enumerate(token_ids.tolist()):
            offsets[token] = at
            if not written[token]:
                continue
            part = stream.step(self._backend, number)
            if not part:
                waiting.append(token)
                continue
            offsets[waiting, 1] = at + 1
            waiting = []
            parts.append(part)
            at += len(part)
            offsets[token, 1] = at
        return Surface("".join(parts), offsets)


def _decoded(data: bytes, edges: Offsets) -> Surface:
    """Text and offsets of tokens whose bytes are data[edges[i] : edges[i + 1]]."""
    values, whole = np.frombuffer(data, np.uint8), _whole(data)
    heads = whole & (values & 0xC0 != 0x80)
    begun = np.concatenate([[0], np.cumsum(heads)])  # characters that begin before each byte
    kept = np.concatenate([[0], np.cumsum(whole)])
    first = np.concatenate([whole & ~heads, [False]])[edges[:-1]]  # begins inside a character
    ends = begun[edges[1:]]
    starts = np.where(kept[edges[1:]] > kept[edges[:-1]], begun[edges[:-1]] - first, ends)
    return Surface(values[whole].tobytes().decode(), np.stack([starts, ends], axis=1))


def _whole(data: bytes) -> Bools:
    """Which bytes belong to a whole character of UTF-8."""
    whole = np.ones(len(data), np.bool_)
    view, at = memoryview(data), 0
    while at < len(data):
        try:
            str(view[at:], "utf-8")
            break
        except UnicodeDecodeError as error:
            whole[at + error.start : at + error.end] = False
            at += error.end
    return whole


def _letters() -> dict[str, int]:
    """The letter by which byte-level vocabularies write each byte: itself where it prints, else one from U+0100 on."""
    printing = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printing]
    return {**{chr(byte): byte for byte in printing}, **{chr(0x100 + n): byte for n, byte in enumerate(others)}}


_BYTES = _letters()
