"""The sequences a model is verified on.

Knows token ids and lengths. They are the same for the same tokenizer, whatever the machine; no text is needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tokenpriority_service.engines.engine import Ids


def make_sequences(vocabulary: Sequence[int], count: int, longest: int, *, seed: int = 0) -> list[Ids]:
    """`count` sequences, each (T,) uint32, of ids drawn evenly from `vocabulary`.

    The first has `longest` tokens, the second one token; the lengths of the others are spread evenly over the
    logarithm between 2 and `longest`. Every fourth begins like the first, so that prefixes are shared.
    """
    rng = np.random.default_rng(seed)
    ids = np.array(sorted(vocabulary), np.uint32)
    spread = np.exp(rng.uniform(np.log(2), np.log(longest + 1), count)).astype(int)
    lengths = [longest, 1, *np.clip(spread, 2, longest).tolist()][:count]
    sequences = [rng.choice(ids, length) for length in lengths]
    for sequence in sequences[4::4]:
        shared = len(sequence) // 2
        sequence[:shared] = sequences[0][:shared]
    return sequences


def vocabulary_of(config: Any, tokenizer: Any | None) -> list[int]:
    """Ids that may be scored: the tokenizer's ordinary ones, or all of the config's where there is no tokenizer."""
    size = int(config.get_text_config().vocab_size)
    if tokenizer is None:
        return list(range(size))
    special = set(tokenizer.all_special_ids)
    return sorted({i for i in tokenizer.get_vocab().values() if i < size and i not in special})
