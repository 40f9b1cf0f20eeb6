"""Asking a generating vLLM server: `/v1/completions` with `prompt_logprobs`.

Knows that request and that answer (vLLM 0.26 to 0.33). Gives logprob and rank, nothing else; the rank is vLLM's, which
counts ties: #{v: q(v) >= q(y)}, so it is ours where no other token ties with y, and above ours where some do (common
in bfloat16).
"""

from __future__ import annotations

import math
import re
from typing import Annotated, Any

import msgspec
import numpy as np

from tokenpriority.errors import EngineFault
from tokenpriority_service.engines.contract import filled_rows
from tokenpriority_service.engines.engine import Ids, Job, Rows
from tokenpriority_service.engines.remote.numbers import check_logprobs
from tokenpriority_service.engines.remote.replica import Answer, Refused, Replica

NAME = "completions"
ROUTE = "/v1/completions"
SIGNALS: tuple[str, ...] = ("logprob", "rank")

# JSON has no -inf; vLLM writes this instead.
_MINUS_INFINITY = -9999.0
_VOCABULARY = re.compile(r"Vocabulary size: (\d+)")


class _Entry(msgspec.Struct):
    logprob: float
    rank: Annotated[int, msgspec.Meta(ge=1, le=2**24)]


class _Choice(msgspec.Struct):
    prompt_logprobs: list[dict[int, _Entry] | None]


class _Answer(msgspec.Struct):
    choices: list[_Choice]
    system_fingerprint: str | None = None


_decoder = msgspec.json.Decoder(_Answer)


def body(model: str, ids: Ids, *, likeliest: int = 0) -> bytes:
    """The request for the logprobs of a prompt, each with those of the `likeliest` tokens there.

    vLLM generates at least one token, so a prompt is at least one shorter than the model's limit.
    """
    return msgspec.json.encode(
        {
            "model": model,
            "prompt": ids.tolist(),
            "max_tokens": 1,
            "temperature": 0,
            "prompt_logprobs": likeliest,
            "add_special_tokens": False,
        }
    )


def rows(answer: Answer, job: Job) -> Rows:
    """[6, T] of a job, signals other than `SIGNALS` NaN. Raises EngineFault if the answer is not wholly sound."""
    ids = job.token_ids
    entries = [position[token] for token, position in zip(ids[1:].tolist(), _positions(answer, ids), strict=True)]
    logprobs = np.array([entry.logprob for entry in entries])
    logprobs[logprobs <= _MINUS_INFINITY] = -math.inf
    check_logprobs(logprobs)
    evidence = np.array([logprobs, [entry.rank for entry in entries]], np.float32)
    return filled_rows(job, evidence[:, job.score_from - 1 :], SIGNALS)


def check_normalised(answer: Answer, ids: Ids, vocab_size: int) -> None:
    """Raise EngineFault if the numbers are not natural log-probabilities (`--logprobs-mode raw_logits`).

    The answer was asked for with the likeliest token, whose log-probability lies between -log V and 0.
    """
    for index, position in enumerate(_positions(answer, ids), 1):
        top = max(entry.logprob for entry in position.values())
        if not -math.log(vocab_size) - 1e-3 <= top <= 1e-4:
            raise EngineFault(
                f"its numbers are not log-probabilities: the likeliest of {vocab_size} tokens has {top:g} at position "
                f"{index}; serve it with --logprobs-mode raw_logprobs"
            )


def build(answer: Answer) -> str:
    """What the server says of its own build and settings; empty if nothing."""
    return _decode(answer).system_fingerprint or ""


async def vocab_size(replica: Replica, model: str) -> int | None:
    """The size of the model's vocabulary, None if this server does not tell.

    It is asked for something that is refused before it reaches the model, with a message that names the size. An id
    beyond the vocabulary in a prompt would end the server's engine if it runs without a tokenizer.
    """
    request = {"model": model, "prompt": [0], "max_tokens": 1, "logit_bias": {str(2**31 - 1): 0.0}}
    try:
        await replica.post(ROUTE, msgspec.json.encode(request))
    except Refused as refusal:
        found = _VOCABULARY.search(refusal.message) if refusal.status == 400 else None
        return int(found[1]) if found else None
    return None


def _positions(answer: Answer, ids: Ids) -> list[dict[int, _Entry]]:
    """The entries of positions 1 to T - 1, each holding that of the prompt's own token (vLLM #44106)."""
    choices = _decode(answer).choices
    if len(choices) != 1 or len(choices[0].prompt_logprobs) != len(ids):
        given = [len(choice.prompt_logprobs) for choice in choices]
        raise EngineFault(f"the replica gave prompt logprobs of {given} tokens for one prompt of {len(ids)}")
    first, *others = choices[0].prompt_logprobs
    if first is not None:
        raise EngineFault("the replica gave a logprob of the first token, which has none")
    positions: list[dict[int, _Entry]] = []
    for index, (token, position) in enumerate(zip(ids[1:].tolist(), others, strict=True), 1):
        if position is None:
            raise EngineFault(f"the replica left out the logprob at position {index}")
        if token not in position:
            raise EngineFault(
                f"the replica gave the logprob of {_some(position)} at position {index}, where token {token} was sent"
            )
        positions.append(position)
    return positions


def _some(position: dict[int, Any]) -> str:
    return f"token {next(iter(position))}" if position else "no token"


def _decode(answer: Answer) -> _Answer:
    try:
        return _decoder.decode(answer.body)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise EngineFault(f"the replica's answer is not one of {ROUTE}: {error}") from None
