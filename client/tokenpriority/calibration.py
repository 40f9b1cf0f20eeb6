"""The exact threshold of a method that ranks tokens over a whole dataset, with where it came from.

Knows the statistic, which is the method's own, so that threshold and priorities come from one formula; ordering is in
`ranking.py`. Knows nothing of the server: it is given the scores of each model the statistic reads. Memory does not
grow with the dataset.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from itertools import tee
from pathlib import Path
from typing import Any, Self

import msgspec
import numpy as np

from tokenpriority.errors import ContractBroken, InvalidParameter
from tokenpriority.evidence import Evidence
from tokenpriority.methods import METHODS, Inputs, get_method
from tokenpriority.ranking import Ranking
from tokenpriority.scores import Ids, Scores
from tokenpriority.sequences import SequenceLike


@dataclass(frozen=True, slots=True)
class Calibration:
    """A method with the threshold that keeps the best `keep` of a dataset's tokens."""

    method: str
    version: int
    """The method's."""
    params: dict[str, Any]
    """The method's parameters with scope="dataset" and the threshold: pass them on as they are."""
    threshold: float
    """The k-th largest statistic, k = floor(tokens * keep); exactly a float32 value."""
    tokens: int
    """Tokens ranked: those with a prediction that no mask excludes."""
    kept: int
    """Tokens at or above the threshold: k, and those tied with the last of them."""
    sequences: int
    """Sequences of the dataset, also those without a token to rank."""
    digest: str
    """Of the dataset: blake2b, 16 bytes in hex, of each sequence's length (`<u8`) and token ids (`<u4`), in order."""
    fingerprints: dict[str, str]
    """Of every model that was asked, by name; the threshold holds for these only (see `Client.pin`)."""
    package: str
    """Version of tokenpriority that made it."""

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write as JSON; the file is whole or not there."""
        target = Path(path)
        partial = target.with_name(target.name + ".tmp")
        partial.write_text(json.dumps(asdict(self), indent=2, allow_nan=False) + "\n", "utf-8")
        partial.replace(target)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read what `save` wrote.

        Raises ValueError naming the file if it is not a calibration, or if the method has another version now: its
        statistic is then no longer what the threshold is of.
        """
        try:
            fields = json.loads(Path(path).read_text("utf-8"))
            cls(**fields)  # names; types are msgspec's to judge
            found = msgspec.convert(fields, cls)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path}: not a calibration: {error}") from None
        if found.method not in METHODS:
            raise ValueError(f"{path}: a calibration of {found.method!r}, which this package does not have")
        current = METHODS[found.method].version
        if found.version != current:
            raise ValueError(
                f"{path}: a calibration of version {found.version} of {found.method!r}, and this package has version "
                f"{current}: calibrate again"
            )
        return found


class Calibrator:
    """The statistics of a dataset's tokens; a context manager, since they are kept in a file meanwhile.

    `model` is the name of the server's model that plays the reference.
    """

    def __init__(self, method: str, params: Mapping[str, Any] | None = None, *, model: str = "reference") -> None:
        self._method = get_method(method)
        if self._method.statistic is None:
            raise InvalidParameter(f"method.name: {method} ranks nothing over a dataset, so it needs no calibration")
        given = dict(params or {})
        if "threshold" in given or given.get("scope", "dataset") != "dataset":
            got = ", ".join(f"{name} = {given[name]!r}" for name in ("scope", "threshold") if name in given)
            raise InvalidParameter(
                "method.params: calibrate finds the threshold of the scope 'dataset'; give neither scope nor threshold"
                f", got {got}"
            )
        # The parameters are only valid with a threshold, which is not known yet; any number stands in.
        self._params = self._method.parse({**given, "scope": "dataset", "threshold": 0.0})
        self._roles = self._method.needs(self._params)
        live = [role for role in self._roles if role not in ("reference", "base")]
        if live or not self._roles:
            what = f"the {' and the '.join(live)}" if live else "no model"
            raise InvalidParameter(f"method.params: {method} reads {what} so; calibrate asks a server's frozen models")
        self.models: tuple[str, ...] = tuple(self._params.base if role == "base" else model for role in self._roles)
        """The server's models to be asked, each once per sequence."""
        self.signals = tuple(name for name in self._method.reads(self._params) if name != "logprob")
        """The signals to ask of each, besides the log-probabilities."""
        self._ranking = Ranking()
        self._sequences = 0
        self._digest = hashlib.blake2b(digest_size=16)

    def questions(self, sequences: Iterable[SequenceLike], *, progress: bool) -> list[dict[str, Any]]:
        """The arguments of `score_many` for each of `models`; the iterable is read once. The first has the progress
        bar."""
        copies = tee(_unlabelled(sequences), len(self.models))
        return [
            {"sequences": copy, "model": model, "signals": self.signals, "progress": progress and number == 0}
            for number, (copy, model) in enumerate(zip(copies, self.models, strict=True))
        ]

    def add(self, scores: Sequence[Scores]) -> None:
        """Count in one sequence, scored by each of `models` with the method `uniform` and these `signals`."""
        first = scores[0]
        if not all(np.array_equal(first.token_ids, each.token_ids) for each in scores[1:]):
            raise ContractBroken(f"sequence {first.id!r}: the two models tokenise it differently; submit token ids")
        mask = first.priorities != 0  # `uniform` gives 1 to every token that counts
        evidence = {
            role: Evidence(each.logprobs, **each.signals) for role, each in zip(self._roles, scores, strict=True)
        }
        inputs = Inputs(mask, **evidence)  # type: ignore[arg-type]  # by role
        statistic = self._method.statistic(inputs, self._params, xp=np)[mask]  # type: ignore[misc]
        values = statistic.astype(np.float32)
        if not np.isfinite(values).all():
            raise ContractBroken(f"sequence {first.id!r}: a token that counts has no finite statistic")
        self._ranking.add(values)
        self._sequences += 1
        self._digest.update(_content(first.token_ids))

    def calibration(self, fingerprints: Mapping[str, str]) -> Calibration:
        """The threshold of what was counted in. Raises InvalidParameter if no token would be kept.

        `fingerprints` by name, at least those of `models`.
        """
        keep, tokens = self._params.keep, len(self._ranking)
        k = math.floor(tokens * keep)
        if k == 0:
            raise InvalidParameter(f"method.params.keep: {keep} of {tokens} tokens keeps none; give more")
        threshold, kept = self._ranking.largest(k)
        return Calibration(
            method=self._method.name,
            version=self._method.version,
            params=self._params.model_copy(update={"threshold": threshold}).model_dump(),
            threshold=threshold,
            tokens=tokens,
            kept=kept,
            sequences=self._sequences,
            digest=self._digest.hexdigest(),
            fingerprints={name: fingerprints[name] for name in self.models},
            package=version("tokenpriority"),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._ranking.close()


def _unlabelled(sequences: Iterable[SequenceLike]) -> Iterator[SequenceLike]:
    """The sequences without their spans: a label replaces a token's priority, not its rank."""
    for sequence in sequences:
        if isinstance(sequence, Mapping):
            yield {key: value for key, value in sequence.items() if key != "spans"}
        else:
            yield sequence


def _content(token_ids: Ids) -> bytes:
    return len(token_ids).to_bytes(8, "little") + token_ids.astype("<u4").tobytes()
