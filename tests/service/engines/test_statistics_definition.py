"""The engines' statistics and the client's readable definition of the same signals give the same numbers."""

from __future__ import annotations

import array_api_compat.torch as xp_torch
import pytest
import torch

from tokenpriority.distribution import evidence_of
from tokenpriority.evidence import OPTIONAL_SIGNALS, SIGNALS
from tokenpriority_service.engines.statistics import token_statistics


@pytest.mark.parametrize("vocab", [7, 20, 50, 1000])
@pytest.mark.parametrize("magnitude", [0.5, 10.0, 1e3])
def test_statistics_are_as_defined(vocab: int, magnitude: float) -> None:
    """With ties (rounded logits) and impossible tokens."""
    generator = torch.Generator().manual_seed(vocab)
    logits = (torch.randn(64, vocab, generator=generator) * 8).round() / 8 * magnitude
    targets = torch.randint(0, vocab, (64,), generator=generator)
    suppressed = torch.rand(64, vocab, generator=generator) < 0.1
    suppressed[torch.arange(64), targets] = False
    logits = logits.masked_fill(suppressed, -torch.inf)
    evidence = evidence_of(logits.double(), targets, names=(*SIGNALS, *OPTIONAL_SIGNALS), xp=xp_torch)
    defined = torch.stack([evidence.signal(name) for name in (*SIGNALS, *OPTIONAL_SIGNALS)])
    computed = token_statistics(logits.clone(), targets, top20=True)
    torch.testing.assert_close(computed.double(), defined, rtol=2e-6, atol=3e-6)
    assert torch.equal(computed[SIGNALS.index("rank")].double(), defined[SIGNALS.index("rank")])
