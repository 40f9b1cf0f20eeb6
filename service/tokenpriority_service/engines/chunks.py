"""How many rows of logits are alive at once.

Knows sizes alone: imports nothing, so that any process can ask.
"""

from __future__ import annotations

# On a CPU a fresh block above 32 MiB costs more to map than to fill; below 32 rows the product rereads lm_head
# too often.
_CPU_LOGITS_BYTES = 31 << 20
_CPU_LEAST_ROWS = 32


def chunk_rows(logits_bytes: int, vocab_size: int, device: str) -> int:
    """Rows of one chunk, at least one: `logits_bytes` bounds its float32 logits. `device` is torch's device type.

    Raises ValueError if not even one row fits.
    """
    row_bytes = 4 * vocab_size
    if logits_bytes < row_bytes:
        raise ValueError(f"logits_bytes: one row of {vocab_size} logits takes {row_bytes} bytes, got {logits_bytes}")
    rows = logits_bytes // row_bytes
    if device == "cpu":
        rows = min(rows, max(_CPU_LEAST_ROWS, _CPU_LOGITS_BYTES // row_bytes))
    return rows
