"""How long a sequence may be, told before the work that its length makes.

Knows the models' limits, and what a text has at least in tokens. A tokenizer makes some hundred bytes of a token, and a
body has room for tens of millions of them: so a long text is counted by pieces first, and refused where it is clearly
too long, before it is tokenised whole. Knows no tokenizer (it is given a function that counts) and no form.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tokenpriority.errors import InvalidSequence

PIECE = 65_536
"""Characters that are tokenised without asking."""
SPARE = 64
"""Tokens of each piece that are not held against a text: it was cut where its tokens were not."""
EXCESS = 2
"""How many times the limit the pieces must hold together. A tokenizer that makes fewer tokens of the whole than of its
pieces (one that merges blanks, or what it does not know) saves some at the cuts, which SPARE covers, and never half of
them; so nothing is refused that would fit, and little more than EXCESS times the limit is ever tokenised at once."""


class Length:
    """The limit of one sequence, given in `field`: of each of its models, by name."""

    def __init__(self, field: str, limits: Sequence[tuple[str, int]]) -> None:
        self._field = field
        self._limits = limits

    def check(self, tokens: int) -> None:
        """Raises InvalidSequence if a sequence has more tokens than a model takes."""
        for model, limit in self._limits:
            if tokens > limit:
                raise self._too_long(model, limit, str(tokens))

    def check_text(self, text: str, count: Callable[[str], int]) -> None:
        """Raises InvalidSequence if a text is clearly too long. `count` is the tokens of a piece of it."""
        model, limit = min(self._limits, key=lambda each: each[1])
        if len(text) <= max(PIECE, limit):
            return
        tokens = 0
        for start in range(0, len(text), PIECE):
            tokens += max(0, count(text[start : start + PIECE]) - SPARE)
            if tokens > EXCESS * limit:
                raise self._too_long(model, limit, f"more than {limit}")

    def _too_long(self, model: str, limit: int, got: str) -> InvalidSequence:
        return InvalidSequence(
            f"{self._field}: model {model!r} takes at most {limit} tokens (max_model_len), got {got}"
        )
