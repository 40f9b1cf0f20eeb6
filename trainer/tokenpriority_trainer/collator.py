"""TRL's collator with the per-token columns kept.

Knows that `priorities` and `span_priorities` are laid out exactly like labels, padded or flattened, and names the
documents of the batch while it is still on the CPU. Knows nothing of what the columns mean.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from tokenpriority_trainer.documents import documents
from tokenpriority_trainer.errors import WeightError
from tokenpriority_trainer.rows import ROWS

PRIORITIES = "priorities"
"""Ready weight of each token, float."""
SPAN_PRIORITIES = "span_priorities"
"""The caller's label of each token, float, NaN where there is none."""
DOCUMENTS = "documents"
"""Key of the batch under which its list of `Document` stands; never a tensor, so it stays on the CPU."""

LOGPROBS = "reference_logprobs"
"""Key of the batch under which a source leaves the reference's log-probs: one float32 array (T,) per document, NaN
where nothing was scored."""

FILL = {PRIORITIES: 0.0, SPAN_PRIORITIES: math.nan}
"""Every float column and what stands on padding."""
SEQUENCES = "sequences"
"""Key of the batch under which the number of its documents that train something stands."""
EXAMPLES = "examples"
"""Key of the batch under which the number of examples it was made of stands."""
COMPLETION = "completion_mask"
"""TRL's column of a dataset of prompts and completions: 1 on the tokens of the completion."""
PROMPT = "prompt_mask"
"""Key of the batch under which, where the examples have that column, the tokens of prompts are True."""
EXTRAS = (*FILL, DOCUMENTS, LOGPROBS, ROWS, SEQUENCES, EXAMPLES, PROMPT)
"""Keys of a batch that no model takes."""


@dataclass
class PriorityCollator(DataCollatorForLanguageModeling):  # type: ignore[misc]  # TRL publishes no types
    """Collates as TRL does and adds `documents`, `examples` and, where the examples have them, the float columns.

    Each column is a float32 tensor of the shape of `input_ids`. Raises WeightError if an example's column is missing,
    is not as long as its input_ids or holds an infinite value.
    """

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        """One batch; called by the collator's `__call__`."""
        batch: dict[str, Any] = super().torch_call(examples)
        for name, fill in FILL.items():
            if any(name in example for example in examples):
                batch[name] = self._column(examples, name, fill, batch["input_ids"].shape)
        if all(COMPLETION in example for example in examples):
            batch[PROMPT] = self._column(examples, COMPLETION, 1.0, batch["input_ids"].shape) == 0
        batch[DOCUMENTS], batch[EXAMPLES] = documents(batch), len(examples)
        return batch

    def _column(self, examples: list[dict[str, Any]], name: str, fill: float, shape: torch.Size) -> Tensor:
        rows = []
        for number, example in enumerate(examples):
            values, length = example.get(name), len(example["input_ids"])
            if values is None or len(values) != length:
                found = "is missing" if values is None else f"has {len(values)} values"
                raise WeightError(f"example {number} of the batch has {length} tokens but its {name!r} {found}")
            row = torch.tensor([math.nan if value is None else value for value in values], dtype=torch.float32)
            if row.isinf().any():
                raise WeightError(f"example {number} of the batch: its {name!r} holds an infinite value")
            rows.append(row)
        if self.padding_free:
            rows = [torch.cat(rows)]
        column = torch.full(shape, fill)
        for number, row in enumerate(rows):
            column[number, : len(row)] = row
        return column
