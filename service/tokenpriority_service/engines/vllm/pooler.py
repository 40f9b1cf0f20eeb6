"""The pooler: hidden states of one engine step in, evidence out, inside vLLM's worker.

Knows which rows a step holds and which are wanted, and keeps what is done between the steps of a long prompt: [S, n]
numbers, never hidden states or logits. Leaves the signals to `statistics` and vLLM to `internals`.

Shapes: N wanted rows of a step, H hidden, V the vocabulary, T the tokens of a prompt, S signals.
"""

from __future__ import annotations

from collections.abc import Set
from typing import Any

import torch
from torch import Tensor

from tokenpriority_service.engines.chunks import chunk_rows
from tokenpriority_service.engines.statistics import SIGNALS, Shard, can_fuse, token_statistics
from tokenpriority_service.engines.vllm import check, internals
from tokenpriority_service.engines.vllm.internals import LocalLogits, Part
from tokenpriority_service.engines.vllm.wish import EXHAUSTED, Wish

LOGITS_BYTES = 1 << 28
"""Default of `additional_config["tokenpriority"]["logits_bytes"]`."""

_NO_MEMORY = ("can't allocate memory", "could not create a primitive")
"""What torch and oneDNN say of it on a CPU; a product that oneDNN can never make does not pass the self-check."""


class EvidencePooler(internals.Pooler):  # type: ignore[misc]
    """Scores the rows of each step; `logits_bytes` bounds the float32 logits alive at once in this process."""

    def __init__(self, model: Any, vocab_size: int, logits_bytes: int) -> None:
        super().__init__()
        self._logits = LocalLogits(model)
        self._vocab_size = vocab_size
        self._logits_bytes = logits_bytes
        self._sharded = internals.tensor_parallel() > 1

    def get_supported_tasks(self) -> Set[str]:
        """One tensor for each prompt."""
        return {internals.TASK}

    def get_pooling_updates(self, task: str) -> Any:  # noqa: ARG002  # vLLM's signature
        """Targets are taken from the prompt's ids."""
        return internals.PoolingParamsUpdate(requires_token_ids=True)

    @torch.inference_mode()
    def forward(self, hidden_states: Tensor, pooling_metadata: Any) -> list[Tensor | None]:
        """For each request [S, T - score_from] float32 once its prompt has ended, None before."""
        parts = internals.parts(pooling_metadata)
        results: list[Tensor | None] = [None] * len(parts)
        # Sorted, so that all processes of a group compute the same at once.
        for kind in sorted({_kind(part.wish) for part in parts}):
            members = [index for index, part in enumerate(parts) if _kind(part.wish) == kind]
            evidence = self._group(hidden_states, [parts[index] for index in members], kind)
            for index, each in zip(members, evidence, strict=True):
                results[index] = _keep(parts[index], each)
        return results

    def _group(self, hidden: Tensor, parts: list[Part], kind: tuple[bool, bool]) -> tuple[Tensor, ...]:
        """Evidence [S, n] of the n wanted rows of each part; parts of one kind share chunks."""
        spans = [(part, *_span(part)) for part in parts]
        rows = torch.cat([torch.arange(a, b) - part.start + part.first for part, a, b in spans])
        targets = torch.cat([part.token_ids[a + 1 : b + 1].long() for part, a, b in spans])
        evidence = self._evidence(hidden, rows.to(hidden.device), targets.to(hidden.device), kind)
        found: tuple[Tensor, ...] = evidence.split([b - a for _, a, b in spans], dim=1)
        return found

    def _evidence(self, hidden: Tensor, rows: Tensor, targets: Tensor, kind: tuple[bool, bool]) -> Tensor:
        """[S, N] in chunks; a chunk the memory does not suffice for is tried in smaller ones."""
        local_size = -(-self._vocab_size // internals.tensor_parallel())
        size = chunk_rows(self._logits_bytes, local_size, hidden.device.type)
        out = torch.empty(_height(kind), len(rows), dtype=torch.float32, device=hidden.device)
        start = 0
        while start < len(rows):
            chunk = slice(start, start + size)
            try:
                out[:, chunk] = self._chunk(hidden[rows[chunk]], targets[chunk], kind)
            except RuntimeError as error:
                # Another process of the group may have had the memory and be waiting in a collective.
                if self._sharded or not _out_of_memory(error):
                    raise
                if size > 1:
                    size = max(1, size // 4)
                    continue
                out[:, chunk] = EXHAUSTED
            start += size
        return out

    def _chunk(self, hidden: Tensor, targets: Tensor, kind: tuple[bool, bool]) -> Tensor:
        top20, checked = kind
        logits, start = self._logits.local(hidden)
        shard = Shard(start, internals.gather) if self._sharded else None
        fused = can_fuse(logits.device.type)
        evidence = token_statistics(logits.float(), targets, top20=top20, shard=shard, fused=fused)
        return torch.cat([evidence, check.plain(self._logits.whole(hidden), targets)]) if checked else evidence


def _kind(wish: Wish) -> tuple[bool, bool]:
    return wish.top20, wish.check


def _height(kind: tuple[bool, bool]) -> int:
    return SIGNALS + kind[0] + (check.ROWS if kind[1] else 0)


def _span(part: Part) -> tuple[int, int]:
    """Positions [a, b) of this step whose predictions are wanted: position i predicts token i + 1."""
    first = max(part.start, part.wish.score_from - 1)
    return first, max(first, min(part.start + part.count, len(part.token_ids) - 1))


def _keep(part: Part, evidence: Tensor) -> Tensor | None:
    """The whole evidence of a prompt that ends with this step; else None, and the part is kept for then.

    Kept by position: after preemption a prompt begins anew and writes over what it had.
    """
    first, wanted = part.wish.score_from - 1, part.length - part.wish.score_from
    if part.last and part.start <= first:
        return evidence.contiguous()
    if not part.kept:
        part.kept.append(evidence.new_full((len(evidence), max(0, wanted)), torch.nan))
    at = max(part.start, first) - first
    part.kept[0][:, at : at + evidence.shape[1]] = evidence
    return part.kept.pop() if part.last else None


def _out_of_memory(error: RuntimeError) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or any(words in str(error) for words in _NO_MEMORY)
