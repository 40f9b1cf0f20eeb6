"""Holds a method's formula against a second implementation in plain float64 loops.

A micro-batch is drawn as rows of plain lists, with ties, length-1 rows, rows nobody wants scored and NaN wherever
nothing is known. The loop sees those lists; the formula sees them padded to arrays of numpy (float64 and float32),
torch and the strict array API, and, where rows do not depend on each other, each row by itself too.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import array_api_compat.torch as xp_torch
import array_api_strict
import numpy as np
import torch
from hypothesis import strategies as st

from tokenpriority.evidence import ALL_SIGNALS, Evidence
from tokenpriority.methods import Inputs, get_method, prioritise

Signals = dict[str, list[float]]
ROLES = ("reference", "base", "student", "old")


@dataclass(frozen=True)
class Row:
    """One sequence; every list has its length, and index 0 has no evidence."""

    mask: list[bool]
    evidence: dict[str, Signals]
    """Role -> signal -> values."""
    labels: list[float]
    """NaN where there is none."""
    prompt: list[bool]
    token_ids: list[int]

    def __len__(self) -> int:
        return len(self.mask)

    def logprob(self, role: str) -> list[float]:
        """A role's log-probs."""
        return self.evidence[role]["logprob"]

    @property
    def wanted(self) -> list[int]:
        """Indices of the tokens that are weighed."""
        return [index for index, wanted in enumerate(self.mask) if wanted]


Loop = Callable[[list[Row], dict[str, Any]], list[list[float]]]
"""(rows, params as given) -> a weight for every token of every row, 0 where the mask is False."""


@st.composite
def micro_batches(draw: st.DrawFn, *, rows: int = 3, length: int = 10) -> list[Row]:
    """1 to `rows` rows of 1 to `length` tokens; hypothesis shrinks the lengths, a seed gives the rest."""
    lengths = draw(st.lists(st.integers(1, length), min_size=1, max_size=rows))
    return [_row(random.Random(draw(st.integers(0, 2**32))), each) for each in lengths]


def _row(rng: random.Random, length: int) -> Row:
    wanted = rng.choice([0.0, 0.5, 0.5, 1.0])
    return Row(
        mask=[False, *(rng.random() < wanted for _ in range(length - 1))],
        evidence={role: _signals(rng, length) for role in ROLES},
        labels=rng.choices([math.nan, math.nan, -1.0, -0.5, 0.0, 2.0], k=length),
        prompt=[rng.random() < 0.5 for _ in range(length)],
        token_ids=[rng.randrange(200_000) for _ in range(length)],
    )


def _signals(rng: random.Random, length: int) -> Signals:
    """Consistent signals; few log-probs, exact in binary, so that scores tie in every dtype."""
    out: Signals = {name: [math.nan] for name in ALL_SIGNALS}
    for _ in range(length - 1):
        tied, own = rng.choice([0.0, 0.25]), rng.choice([0.0625, 0.125, 0.25, 0.5])
        above = rng.choice([0.0, 0.25]) if own + tied < 0.75 else 0.0
        values = {
            "logprob": rng.choice([0.0, -0.015625, -0.25, -0.5, -1.0, -3.0, -9.0]),
            "entropy": rng.choice([0.0, 0.5, 2.0, 4.5]),
            "top1_logprob": 0.0,
            "rank": 1.0 if above == 0 else rng.choice([2.0, 3.0, 7.0]),
            "mass_above": above,
            "mass_tied": tied,
            "entropy_top20": rng.choice([0.0, 0.25, 1.5, 2.75]),
            "collision": rng.choice([0.0625, 0.25, 0.5, 1.0]),
        }
        for name, value in values.items():
            out[name].append(value)
    return out


def inputs_of(rows: list[Row], array: Callable[[Any], Any]) -> Inputs:
    """The rows padded to (S, T), by a function from nested lists to arrays."""
    width = max(map(len, rows))

    def padded(values: list[list[Any]], fill: Any) -> Any:
        return array([value + [fill] * (width - len(value)) for value in values])

    def evidence(role: str) -> Evidence:
        signals = {name: padded([row.evidence[role][name] for row in rows], math.nan) for name in ALL_SIGNALS}
        return Evidence(**signals)

    return Inputs(
        mask=padded([row.mask for row in rows], False),
        **{role: evidence(role) for role in ROLES},  # type: ignore[arg-type]
        labels=padded([row.labels for row in rows], math.nan),
        prompt=padded([row.prompt for row in rows], False),
        token_ids=padded([row.token_ids for row in rows], 0),
    )


def flat(inputs: Inputs) -> Inputs:
    """(1, T) -> (T,), the form in which the service has a sequence."""

    def evidence(given: Evidence | None) -> Evidence | None:
        return given and Evidence(**{name: getattr(given, name)[0, :] for name in ALL_SIGNALS})

    fields = {role: evidence(getattr(inputs, role)) for role in ROLES}
    rest = {name: getattr(inputs, name)[0, :] for name in ("mask", "labels", "prompt", "token_ids")}
    return Inputs(**rest, **fields)  # type: ignore[arg-type]


def _as(convert: Callable[..., Any], xp: Any, real: Any) -> Callable[[Any], Any]:
    """Nested lists to arrays: booleans and whole numbers as such, the rest in the dtype `real`."""

    def array(values: Any) -> Any:
        first = values[0][0]
        return convert(
            values, dtype=xp.bool if isinstance(first, bool) else xp.int64 if isinstance(first, int) else real
        )

    return array


BACKENDS: tuple[tuple[Any, Callable[[Any], Any], bool], ...] = (
    (np, _as(np.array, np, np.float64), True),
    (np, _as(np.array, np, np.float32), False),
    (xp_torch, _as(torch.tensor, torch, torch.float64), True),
    (array_api_strict, _as(array_api_strict.asarray, array_api_strict, array_api_strict.float64), True),
)
"""(namespace, nested lists -> array, whether in double precision)."""


def agree(name: str, params: dict[str, Any], loop: Loop, rows: list[Row], *, single: float = 2e-5) -> None:
    """The method's priorities are the loop's, on every backend: to 1e-11 in float64 and `single` in float32.

    Both relative and absolute, the first for weights above 1.
    """
    method = get_method(name)
    parsed = method.parse(params)
    calls = [rows] if method.scope == "batch" else [rows, *([row] for row in rows)]
    for call in calls:
        expected = loop(call, params)
        assert [len(weights) for weights in expected] == [len(row) for row in call]
        for xp, array, double in BACKENDS:
            tolerance = 1e-11 if double else single
            inputs = inputs_of(call, array)
            got = np.from_dlpack(prioritise(method, parsed, inputs, xp=xp))
            assert got.shape == inputs.mask.shape
            for weights, wanted in zip(got, expected, strict=True):
                np.testing.assert_allclose(weights[: len(wanted)], wanted, rtol=tolerance, atol=tolerance)
                assert not weights[len(wanted) :].any(), "padding has no weight"
            if len(call) == 1:
                alone = np.from_dlpack(prioritise(method, parsed, flat(inputs), xp=xp))
                np.testing.assert_array_equal(alone, got[0])


def traced(name: str, params: dict[str, Any]) -> None:
    """torch.compile traces the method's body whole, without a graph break, and it gives what it gives untraced."""
    method = get_method(name)
    parsed = method.parse(params)
    assert method.formula is not None
    inputs = inputs_of(_PLAIN, BACKENDS[2][1]).checked(method.needs(parsed), xp=xp_torch)

    def run(inputs: Inputs) -> torch.Tensor:
        assert method.formula is not None
        weights: torch.Tensor = method.formula(inputs, parsed, xp=xp_torch)
        return weights

    torch._dynamo.reset()
    torch.testing.assert_close(torch.compile(run, backend="eager", fullgraph=True)(inputs), run(inputs))


def _plain(length: int, step: float) -> Row:
    """A row of which every other token is wanted."""
    values = {name: [math.nan, *(0.5 + 0.01 * i for i in range(length - 1))] for name in ALL_SIGNALS}
    values["logprob"] = [math.nan, *(-step * (i + 1) for i in range(length - 1))]
    half = [i % 2 == 1 for i in range(length)]
    return Row(
        half, dict.fromkeys(ROLES, values), [math.nan] * length, [not wanted for wanted in half], list(range(length))
    )


_PLAIN = [_plain(7, 0.1), _plain(4, 0.7)]
