"""How large the demo is: every size, share and rate that decides its time and its figures.

Knows numbers alone. Knows nothing of what is done with them.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """The sizes of one run of the demo; the defaults are the demo, tests take smaller ones."""

    corpus_bytes: int | None = None
    """Bytes of source text read at most (None: all there is)."""
    vocab_size: int = 2048
    """Tokens of the byte-level BPE tokenizer, the end-of-text token included."""
    length: int = 128
    """Tokens of every sequence."""
    batch: int = 8
    """Sequences of every step, in every training."""
    width: int = 128
    layers: int = 2
    heads: int = 4
    base_steps: int = 1200
    base_lr: float = 2e-3
    reference_steps: int = 250
    """Further steps of the reference from the base, on the curated files."""
    reference_lr: float = 5e-4
    examples: int = 1600
    """Sequences of the fine-tuning set."""
    noisy_share: float = 0.6
    """Share of the examples that carry noise."""
    noise_rate: float = 0.25
    """Share of a noisy example's tokens that are replaced by random ones."""
    idiom_share: float = 0.25
    """Share of the examples with the unsafe idiom planted."""
    tuning_steps: int = 300
    tuning_lr: float = 1e-3
    """Of 2.5e-4, 5e-4 and 1e-3 the one that left uniform weights with the lowest clean NLL."""
    tau: float = 0.1
    """Threshold of `prift_mass`: a light mask."""
    heldout: int = 256
    """Held-out sequences on which clean NLL is measured; also the noisy examples on which noise NLL is."""
    probes: int = 128
    """Held-out contexts after which the idiom's probability is measured."""

    def __post_init__(self) -> None:
        for name in ("noisy_share", "noise_rate", "idiom_share"):
            if not 0 < getattr(self, name) < 1:
                raise ValueError(f"{name}: must lie between 0 and 1, got {getattr(self, name)}")
        if self.width % self.heads:
            raise ValueError(f"width: must be a multiple of heads {self.heads}, got {self.width}")
