"""Asking a vLLM server that runs our plugin for pooling: `/pooling`, raw bytes.

Knows that request and that answer (vLLM 0.26 to 0.33), and the plugin's: float32 [6, T - 1], rows in the order of
`evidence.SIGNALS`. HTTP cannot carry what the plugin reads from a request (`score_from`, `top20`), so every position
is scored, and `entropy_top20` is never there.
"""

from __future__ import annotations

import msgspec
import numpy as np

from tokenpriority.errors import EngineFault
from tokenpriority.evidence import SIGNALS as ALL_SIGNALS
from tokenpriority_service.engines.contract import filled_rows
from tokenpriority_service.engines.engine import Ids, Job, Rows
from tokenpriority_service.engines.remote.numbers import check_logprobs
from tokenpriority_service.engines.remote.replica import Answer

NAME = "pooling"
ROUTE = "/pooling"
SIGNALS: tuple[str, ...] = ALL_SIGNALS


class _Item(msgspec.Struct):
    shape: list[int]
    embed_dtype: str
    endianness: str


class _Usage(msgspec.Struct):
    prompt_tokens: int


class _Metadata(msgspec.Struct):
    data: list[_Item]
    usage: _Usage


_decoder = msgspec.json.Decoder(_Metadata)


def body(model: str, ids: Ids) -> bytes:
    """The request for the evidence of a prompt."""
    return msgspec.json.encode(
        {
            "model": model,
            "input": ids.tolist(),
            "task": "token_classify",
            "encoding_format": "bytes",
            "embed_dtype": "float32",
            "endianness": "little",
            "add_special_tokens": False,
        }
    )


def rows(answer: Answer, job: Job) -> Rows:
    """[6, T] of a job. Raises EngineFault if the answer is not wholly sound."""
    length = len(job.token_ids)
    metadata = _metadata(answer)
    shape = [len(SIGNALS), length - 1]
    given = [(item.shape, item.embed_dtype, item.endianness) for item in metadata.data]
    if given != [(shape, "float32", "little")]:
        raise EngineFault(f"the replica gave {given} for one prompt of {length} tokens, which takes float32 {shape}")
    if metadata.usage.prompt_tokens != length:
        raise EngineFault(f"the replica scored {metadata.usage.prompt_tokens} of {length} tokens")
    if len(answer.body) != 4 * shape[0] * shape[1]:
        raise EngineFault(f"the replica gave {len(answer.body)} bytes for float32 {shape}")
    evidence = np.frombuffer(answer.body, "<f4").astype(np.float32, copy=False).reshape(shape)
    check_logprobs(evidence[SIGNALS.index("logprob")])
    return filled_rows(job, evidence[:, job.score_from - 1 :])


def _metadata(answer: Answer) -> _Metadata:
    try:
        return _decoder.decode(answer.headers.get("metadata", ""))
    except msgspec.DecodeError as error:
        raise EngineFault(f"the replica's answer is not one of {ROUTE}: metadata: {error}") from None
