"""A dataset of signed weights and spans, its runs, and what a report of one must count."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from run_config import writer

MERGED = range(260, 390)
"""Tokens of several ASCII characters each: whatever is cut out of a row is text."""


def one_pass(folder: Path, student: Path, text: str) -> Callable[..., Path]:
    """Writes configurations, by name, of one pass over the rows; the changes are to `[training]`."""
    config = writer(folder, student, text)
    file = folder / "rows.jsonl"
    file.write_text("\n".join(json.dumps(row) for row in rows()), encoding="utf-8")
    training = {"max_steps": 3, "save_strategy": "no"}
    return lambda name, **changes: config(
        name, data={"train": str(file)}, training={**training, "output_dir": str(folder / name), **changes}
    )


def rows() -> list[dict[str, Any]]:
    """24 rows of tokens, each weight another but for some zeros, and a span of -4.5 on every third row."""
    generator = random.Random(5)
    made = []
    for index in range(24):
        length = 12 + index
        weights = [0.0 if generator.random() < 0.2 else generator.uniform(-2, 3) for _ in range(length)]
        spans = [{"start": 4, "end": 6, "priority": -4.5 - index / 64}] if index % 3 == 0 else []
        ids = generator.choices(MERGED, k=length)
        made.append({"input_ids": ids, "priorities": [float(np.float32(weight)) for weight in weights], "spans": spans})
    return made


def weights() -> list[tuple[float, int]]:
    """The weight and the token of every trained token of the rows, by the README's rules."""
    found = []
    for row in rows():
        for place, (weight, token) in enumerate(zip(row["priorities"], row["input_ids"], strict=True)):
            inside = [span["priority"] for span in row["spans"] if span["start"] <= place < span["end"]]
            found += [(inside[0] if inside else weight, token)] if place else []
    return found


def counts() -> str:
    every = [weight for weight, _ in weights()]
    return f"{len(every):,} weights: " + ", ".join(
        f"{number:,} {sign} ({number / len(every):.2%})"
        for sign, number in (
            ("positive", sum(weight > 0 for weight in every)),
            ("zero", sum(weight == 0 for weight in every)),
            ("negative", sum(weight < 0 for weight in every)),
        )
    )
