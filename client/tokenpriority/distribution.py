"""From whole distributions to evidence: the definition of every signal, in the vocabulary of the array API.

Knows logits, token ids and what each signal of `evidence.py` means. Knows no model and no method. The service's engines
compute the same in blocks, on their device; here it is for the live student, and to be read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from tokenpriority.arrays import Array, Namespace
from tokenpriority.errors import InvalidParameter
from tokenpriority.evidence import ALL_SIGNALS, Evidence
from tokenpriority.methods.distributions import expectation
from tokenpriority.methods.numerics import log_softmax, pick

TOP = 20
"""Of how many tokens `entropy_top20` is the entropy."""


@dataclass(frozen=True, slots=True)
class _Rows:
    """Rows of a vocabulary; above and tied are decided on the logits, so they are exact."""

    logits: Array
    log_q: Array
    token_ids: Array
    xp: Namespace

    @property
    def own(self) -> Array:
        """The token's own logit, (..., T, 1)."""
        return pick(self.logits, self.token_ids, xp=self.xp)[..., None]


def evidence_of(logits: Array, token_ids: Array, *, names: Iterable[str], xp: Namespace) -> Evidence:
    """Evidence of each token from the logits that predict it, with the signals named; logprob is always there.

    `logits` (..., T, V) float32 or float64 (half types are the caller's to raise first: their log-sum is not to be
    trusted), row t predicts `token_ids` (..., T) int64. Each signal is (..., T) in the dtype of the logits, natural
    logarithm. It carries gradient if the logits do: detach them for weights. Logits of -inf have probability 0; a row
    of NaN, +inf or nothing finite has logprob NaN. All at once, beside some temporaries of the shape of the logits.

    Raises InvalidParameter for a name that is not in `evidence.ALL_SIGNALS`.
    """
    wanted = tuple(names)
    for name in wanted:
        if name not in ALL_SIGNALS:
            raise InvalidParameter(f"signal {name!r} is unknown; known signals: {', '.join(ALL_SIGNALS)}")
    rows = _Rows(logits, log_softmax(logits, xp=xp), token_ids, xp)
    return Evidence(**{name: _SIGNALS[name](rows) for name in ("logprob", *wanted)})


def _logprob(rows: _Rows) -> Array:
    return pick(rows.log_q, rows.token_ids, xp=rows.xp)


def _entropy(rows: _Rows) -> Array:
    return _entropy_of(rows.log_q, xp=rows.xp)


def _top1_logprob(rows: _Rows) -> Array:
    return rows.xp.max(rows.log_q, axis=-1)


def _rank(rows: _Rows) -> Array:
    above = rows.xp.astype(rows.logits > rows.own, rows.xp.int64)
    return rows.xp.astype(1 + rows.xp.sum(above, axis=-1), rows.logits.dtype)


def _mass_above(rows: _Rows) -> Array:
    return _mass(rows, rows.logits > rows.own)


def _mass_tied(rows: _Rows) -> Array:
    ids = rows.token_ids
    columns = rows.xp.arange(rows.logits.shape[-1], dtype=ids.dtype, device=ids.device)
    return _mass(rows, (rows.logits == rows.own) & (columns != ids[..., None]))


def _entropy_top20(rows: _Rows) -> Array:
    first = max(rows.logits.shape[-1] - TOP, 0)
    likeliest = rows.xp.sort(rows.logits, axis=-1)[..., first:]
    return _entropy_of(log_softmax(likeliest, xp=rows.xp), xp=rows.xp)


def _collision(rows: _Rows) -> Array:
    return rows.xp.sum(rows.xp.exp(2 * rows.log_q), axis=-1)


def _mass(rows: _Rows, counted: Array) -> Array:
    xp = rows.xp
    return xp.sum(xp.where(counted, xp.exp(rows.log_q), xp.zeros_like(rows.log_q)), axis=-1)


def _entropy_of(log_q: Array, *, xp: Namespace) -> Array:
    """-sum q log q; what has probability 0 adds nothing."""
    return -expectation(xp.exp(log_q), log_q, xp=xp)


_SIGNALS: dict[str, Callable[[_Rows], Array]] = {
    "logprob": _logprob,
    "entropy": _entropy,
    "top1_logprob": _top1_logprob,
    "rank": _rank,
    "mass_above": _mass_above,
    "mass_tied": _mass_tied,
    "entropy_top20": _entropy_top20,
    "collision": _collision,
}
