"""What a request wants of the pooler, as it travels inside vLLM's PoolingParams.

The one contract between the engine in the server and the plugin in the worker; knows neither.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

KEY = "tokenpriority"
"""Where it stands in `PoolingParams.extra_kwargs`."""

EXHAUSTED = float("inf")
"""Fills the rows the worker had no memory for: no signal can be +inf, so it is never taken for one."""


@dataclass(frozen=True, slots=True)
class Wish:
    """Which positions of a prompt are scored, and what of them.

    The answer to a prompt of T tokens is a float32 tensor [S, T - score_from]: S is 6, in the order of
    `evidence.SIGNALS`, 7 with `top20`, and with `check` 3 more (see `check.py`).
    """

    score_from: int = 1
    top20: bool = False
    check: bool = False

    def pack(self) -> dict[str, Any]:
        """For PoolingParams.extra_kwargs."""
        return {KEY: asdict(self)}

    @classmethod
    def unpack(cls, extra: Mapping[str, Any] | None) -> Wish:
        """From PoolingParams.extra_kwargs; a request that says nothing wants every position."""
        return cls(**(extra or {}).get(KEY, {}))
