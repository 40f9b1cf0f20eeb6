"""One verification: transformers and the engines on the same sequences, one after the other, compared.

Knows the order of things: the model is in memory once at a time. Knows nothing of how a report looks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tokenpriority.evidence import ENGINE_SIGNALS
from tokenpriority_service.engines import Load, load_engine
from tokenpriority_service.engines.engine import Ids
from tokenpriority_service.verify.apart import Failed, run_apart
from tokenpriority_service.verify.comparison import SignalError, compare, window
from tokenpriority_service.verify.hosted import run_hosted
from tokenpriority_service.verify.plain import Plain, run_plain
from tokenpriority_service.verify.sequences import make_sequences, vocabulary_of

_WARM_UP = 4
_EXACT = "float64"


@dataclass(frozen=True, slots=True)
class Route:
    """An engine with settings, by the name the report gives it."""

    name: str
    engine: str
    settings: Mapping[str, Any] = field(default_factory=dict)


ROUTES = (
    Route("vllm full", "vllm", {"evidence": "full"}),
    Route("vllm prompt_logprobs", "vllm", {"evidence": "prompt_logprobs"}),
)


@dataclass(frozen=True, slots=True)
class Outcome:
    """One row of the report: a path that scored the sequences, or why it did not."""

    name: str
    failure: str | None = None
    errors: list[SignalError] = field(default_factory=list)
    tokens_per_second: float | None = None
    load_seconds: float | None = None
    fingerprint: str = ""
    judged: bool = False
    """Whether it is an engine that was compared; transformers is what engines are judged by."""

    @property
    def agrees(self) -> bool:
        """Whether every signal does."""
        return all(each.agrees for each in self.errors)


@dataclass(frozen=True, slots=True)
class Verification:
    """What was found. `truth` names the path the others are compared with; None if transformers could not run."""

    model: str
    dtype: str
    sequences: int
    tokens: int
    longest: int
    truth: str | None
    outcomes: list[Outcome]

    @property
    def agrees(self) -> bool:
        """Whether at least one engine was compared and all that were agree."""
        judged = [each for each in self.outcomes if each.judged]
        return bool(judged) and all(each.agrees for each in judged)


def verify_model(
    model: str,
    *,
    dtype: str = "float32",
    count: int = 32,
    longest: int = 1024,
    settings: Mapping[str, Any] | None = None,
    routes: Sequence[Route] = ROUTES,
    load: Load = load_engine,
) -> Verification:
    """Compare the engines of `routes`, loaded by `load` with `settings` and their own, with transformers.

    `load` is run in another process, so it must be a function of a module. Raises ValueError or OSError if the model's
    config or tokenizer cannot be read.
    """
    sequences, warm_up = _sequences(model, count, longest)
    longest, tokens = max(map(len, sequences)), sum(map(len, sequences))
    plain = run_apart(run_plain, model, dtype, dtype, sequences, window(dtype))
    exact = run_apart(run_plain, model, dtype, _EXACT, sequences, window(dtype))
    truth, outcomes = _transformers(plain, exact, dtype, tokens)
    base = {"model": model, "dtype": dtype, "max_model_len": longest + 1, **(settings or {})}
    for route in routes:
        if isinstance(truth, Failed):
            outcomes.append(Outcome(route.name, failure="not run: there is nothing to compare it with"))
            continue
        each = run_apart(run_hosted, load, route.engine, {**base, **route.settings}, sequences, warm_up)
        outcomes.append(_judged(route.name, each, truth, dtype, outcomes[0].errors, tokens))
    name = None if isinstance(truth, Failed) else _named(dtype if isinstance(exact, Failed) else _EXACT)
    return Verification(model, dtype, count, tokens, longest, name, outcomes)


def _sequences(model: str, count: int, longest: int) -> tuple[list[Ids], list[Ids]]:
    """Those that are scored, and others to warm up on; none longer than the model takes, less the one token that vLLM
    generates after a prompt."""
    from transformers import AutoConfig

    from tokenpriority_service.engines.checkpoint import load_tokenizer

    config: Any = AutoConfig.from_pretrained(model, trust_remote_code=False)
    vocabulary = vocabulary_of(config, load_tokenizer(model))
    known = getattr(config.get_text_config(), "max_position_embeddings", None)
    longest = longest if known is None else min(longest, int(known) - 1)
    return make_sequences(vocabulary, count, longest), make_sequences(vocabulary, _WARM_UP, longest, seed=1)


def _transformers(
    plain: Plain | Failed, exact: Plain | Failed, dtype: str, tokens: int
) -> tuple[Plain | Failed, list[Outcome]]:
    """The truth, and transformers' own rows, the one in `dtype` first."""
    truth = plain if isinstance(exact, Failed) else exact
    rows = []
    for precision, each in ((dtype, plain), (_EXACT, exact)):
        if isinstance(each, Failed):
            rows.append(Outcome(_named(precision), failure=each.reason))
            continue
        compared = isinstance(truth, Plain) and each is not truth
        errors = compare(each.values, ENGINE_SIGNALS, truth, dtype, []) if compared and isinstance(truth, Plain) else []
        rows.append(Outcome(_named(precision), None, errors, tokens / each.seconds, each.load_seconds))
    return truth, rows


def _judged(name: str, each: Any, truth: Plain, dtype: str, yardstick: list[SignalError], tokens: int) -> Outcome:
    if isinstance(each, Failed):
        return Outcome(name, failure=each.reason)
    errors = compare(each.values, each.signals, truth, dtype, yardstick)
    rate = tokens / each.seconds
    return Outcome(name, None, errors, rate, each.load_seconds, each.fingerprint, judged=True)


def _named(precision: str) -> str:
    return f"transformers {precision}"
