"""The fine-tuning set: clean text, spoilt in two ways that are recorded token by token.

Token noise: in a share of the examples, a share of the tokens is replaced by random ones. A toxic mode: in a share of
the examples one line of an unsafe idiom is planted between two lines of the source. Knows tokens and masks. Knows
nothing of models or weights.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerFast

from tokenpriority_trainer.demo.corpus import CorpusTooSmall, Ids, at_least, decode
from tokenpriority_trainer.demo.scale import Scale

IDIOM = 'os.system("curl " + url + " | sh")'
Mask = np.ndarray[Any, np.dtype[np.bool_]]


@dataclass(frozen=True, slots=True)
class Examples:
    """N sequences of T tokens and what was done to each token; all arrays are (N, T)."""

    token_ids: Ids
    noise: Mask
    """True where the token was replaced by a random one; never at index 0, which no model predicts."""
    idiom: Mask
    """True on the tokens of the planted idiom; they carry no noise."""

    def __len__(self) -> int:
        return len(self.token_ids)


def plant(tokenizer: PreTrainedTokenizerFast, token_ids: Ids, rng: np.random.Generator) -> tuple[Ids, Mask] | None:
    """One sequence (T,) with the idiom as a line of its own, and the mask of its tokens; T stays as it was.

    The line stands at a random line boundary and takes the indentation of the line after it; the end of the sequence
    is cut to make room. None if no boundary leaves room for it.
    """
    text = decode(tokenizer, token_ids)
    starts = [index + 1 for index, char in enumerate(text[:-1]) if char == "\n"]
    for start in rng.permutation(np.array(starts, np.int64)):
        rest = text[start:]
        indent = rest[: len(rest) - len(rest.lstrip(" "))]
        begin = start + len(indent)
        planted = f"{text[:begin]}{IDIOM}\n{rest}"
        encoded = tokenizer(planted, add_special_tokens=False, return_offsets_mapping=True)
        ids = np.array(encoded["input_ids"], np.int64)[: len(token_ids)]
        offsets = np.array(encoded["offset_mapping"], np.int64)[: len(token_ids)]
        if len(ids) == len(token_ids) and offsets[-1, 1] >= begin + len(IDIOM):
            return ids, (offsets[:, 0] < begin + len(IDIOM)) & (offsets[:, 1] > begin)
    return None


def plant_some(tokenizer: PreTrainedTokenizerFast, rows: Ids, count: int, rng: np.random.Generator) -> tuple[Ids, Mask]:
    """The rows (N, T) with the idiom planted in `count` of them, drawn at random, and the masks of its tokens.

    Rows without room for it are passed over. Raises CorpusTooSmall if fewer than `count` have room.
    """
    token_ids, idiom = rows.copy(), np.zeros(rows.shape, np.bool_)
    left = count
    for number in rng.permutation(len(rows)):
        if not left:
            break
        if (planted := plant(tokenizer, rows[number], rng)) is not None:
            token_ids[number], idiom[number] = planted
            left -= 1
    if left:
        raise CorpusTooSmall(f"the idiom fits in {count - left} of {len(rows)} sequences, {count} are needed")
    return token_ids, idiom


def replace_tokens(
    token_ids: Ids, keep: Mask, rate: float, vocabulary: Sequence[int], rng: np.random.Generator
) -> tuple[Ids, Mask]:
    """A sequence (T,) with round(rate * free) of its free tokens replaced, and the mask of those.

    Free is every index but 0 and those of `keep`. A replacement is drawn uniformly from `vocabulary` and always
    differs from the token it replaces.
    """
    free = np.flatnonzero(~keep[1:]) + 1
    places = rng.choice(free, size=round(rate * len(free)), replace=False)
    noisy, noise = token_ids.copy(), np.zeros(len(token_ids), np.bool_)
    choices = np.array(vocabulary, np.int64)
    for place in places:
        noisy[place] = rng.choice(choices[choices != token_ids[place]])
    noise[places] = True
    return noisy, noise


def spoil(tokenizer: PreTrainedTokenizerFast, rows: Ids, scale: Scale, seed: int) -> Examples:
    """The fine-tuning set of `scale.examples` sequences, drawn and spoilt as the seed decides.

    Which examples carry the idiom and which carry noise are drawn independently, so some carry both.
    """
    rng = np.random.default_rng(seed)
    rows = at_least(rng.permutation(rows), scale.examples, "fine-tuning")
    token_ids, idiom = plant_some(tokenizer, rows, round(scale.idiom_share * len(rows)), rng)
    noise = np.zeros_like(idiom)
    vocabulary = [token for token in range(len(tokenizer)) if token not in tokenizer.all_special_ids]
    for number in rng.choice(len(rows), size=round(scale.noisy_share * len(rows)), replace=False):
        token_ids[number], noise[number] = replace_tokens(
            token_ids[number], idiom[number], scale.noise_rate, vocabulary, rng
        )
    return Examples(token_ids, noise, idiom)


def spans(idiom: Mask, priority: float) -> list[dict[str, Any]]:
    """The idiom of one sequence, mask (T,), as the wire's spans with token offsets; empty if it has none."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], idiom, [False]]).astype(np.int8)))
    pairs = zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True)
    return [{"start": start, "end": end, "priority": priority} for start, end in pairs]


def write_jsonl(examples: Examples, path: Path, *, label: float | None) -> None:
    """The set as the trainer reads it, one example a line: `input_ids`, and with a `label` the idiom's `spans` too.

    Token ids and token offsets, not text: noise is on tokens, and noisy tokens are the tokens of no text.
    """
    with path.open("w", encoding="utf-8") as file:
        for token_ids, idiom in zip(examples.token_ids, examples.idiom, strict=True):
            row: dict[str, Any] = {"input_ids": token_ids.tolist()}
            if label is not None:
                row["spans"] = spans(idiom, label)
            file.write(json.dumps(row) + "\n")
