"""The exact threshold of a method that ranks tokens over a whole dataset.

Knows ranking and counting, and keeps one float32 per token. Knows nothing of the server: it is given the scores of
the two models. The statistic is the method's own, so that threshold and priorities come from one formula.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np

from tokenpriority.errors import ContractBroken, InvalidParameter
from tokenpriority.evidence import Evidence
from tokenpriority.methods import Inputs, get_method
from tokenpriority.scores import Scores
from tokenpriority.sequences import SequenceLike


@dataclass(frozen=True, slots=True)
class Calibration:
    """A method with the threshold that keeps the best `keep` of a dataset's tokens."""

    method: str
    params: dict[str, Any]
    """The method's parameters with scope="dataset" and the threshold: pass them on as they are."""
    threshold: float
    """The k-th largest statistic, k = floor(tokens * keep); exactly a float32 value."""
    tokens: int
    """Tokens ranked: those with a prediction that no mask excludes."""
    kept: int
    """Tokens at or above the threshold: k, and those tied with the last of them."""
    fingerprints: dict[str, str]
    """Of both models, by name; the threshold holds for these only (see `Client.pin`)."""

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write as JSON; the file is whole or not there."""
        target = Path(path)
        partial = target.with_name(target.name + ".tmp")
        partial.write_text(json.dumps(asdict(self), indent=2, allow_nan=False) + "\n", "utf-8")
        partial.replace(target)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read what `save` wrote. Raises ValueError naming the file if it is not a calibration."""
        try:
            return cls(**json.loads(Path(path).read_text("utf-8")))
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path}: not a calibration: {error}") from None


class Ranking:
    """The statistics of a dataset's tokens under a reference and a base, one float32 each."""

    def __init__(self, method: str, params: Mapping[str, Any] | None = None) -> None:
        self._method = get_method(method)
        if self._method.statistic is None:
            raise InvalidParameter(f"method.name: {method} ranks nothing over a dataset, so it needs no calibration")
        given = dict(params or {})
        if "threshold" in given or given.get("scope", "dataset") != "dataset":
            raise InvalidParameter("method.params: calibrate finds the threshold of the scope 'dataset'; give neither")
        # The parameters are only valid with a threshold, which is not known yet; any number stands in.
        self._params = self._method.parse({**given, "scope": "dataset", "threshold": 0.0})
        self._statistics = bytearray()

    @property
    def base(self) -> str:
        """Name of the server's model that plays the base."""
        return str(self._params.base)

    def add(self, reference: Scores, base: Scores) -> None:
        """Count in one sequence, scored by both models with the method `uniform`."""
        if not np.array_equal(reference.token_ids, base.token_ids):
            raise ContractBroken(f"sequence {reference.id!r}: the two models tokenise it differently; submit token ids")
        mask = reference.priorities != 0  # `uniform` gives 1 to every token that counts
        inputs = Inputs(mask, reference=Evidence(reference.logprobs), base=Evidence(base.logprobs))
        statistic = self._method.statistic(inputs, self._params, xp=np)[mask]  # type: ignore[misc]
        if not np.isfinite(statistic).all():
            raise ContractBroken(f"sequence {reference.id!r}: a token that counts has no finite statistic")
        self._statistics += statistic.astype(np.float32).tobytes()

    def calibration(self, reference: str, fingerprints: Mapping[str, str]) -> Calibration:
        """The threshold of what was counted in. Raises InvalidParameter if no token would be kept.

        `reference` is the name of the model that played the reference, `fingerprints` at least those of both models.
        """
        statistics = np.frombuffer(self._statistics, np.float32)
        keep = self._params.keep
        k = math.floor(len(statistics) * keep)
        if k == 0:
            raise InvalidParameter(f"method.params.keep: {keep} of {len(statistics)} tokens keeps none; give more")
        statistics.partition(len(statistics) - k)
        threshold = float(statistics[len(statistics) - k])
        return Calibration(
            method=self._method.name,
            params=self._params.model_copy(update={"threshold": threshold}).model_dump(),
            threshold=threshold,
            tokens=len(statistics),
            kept=int((statistics >= threshold).sum()),
            fingerprints={name: fingerprints[name] for name in (reference, self.base)},
        )


def unlabelled(sequences: Iterable[SequenceLike]) -> Iterator[SequenceLike]:
    """The sequences without their spans: a label replaces a token's priority, not its rank."""
    for sequence in sequences:
        if isinstance(sequence, Mapping):
            yield {key: value for key, value in sequence.items() if key != "spans"}
        else:
            yield sequence
