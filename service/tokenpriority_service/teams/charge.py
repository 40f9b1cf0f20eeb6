"""What was charged to a team, and what that left it.

Knows how tokens are given back, in the books alone. Knows nothing of databases.
"""

from __future__ import annotations

from dataclasses import dataclass

from tokenpriority_service.teams.books import Books
from tokenpriority_service.teams.caller import Caller


@dataclass(frozen=True, slots=True)
class Remaining:
    """What is left to a team."""

    tokens_remaining: int | None
    """Of its tokens per minute; None where there is no such limit."""
    reset_seconds: float
    """Until all of them are there again, if nothing more is charged."""
    in_flight_tokens: int
    """On all replicas; of a team without a limit on them, on this one."""


class Charge:
    """Tokens a team was charged. Its methods never raise and never wait."""

    def __init__(self, books: Books, caller: Caller, tokens: int, remaining: Remaining | None) -> None:
        self.tokens = tokens
        """Charged, and not refunded."""
        self.remaining = remaining
        """What this charge left, or None where the database was not asked."""
        self._books = books
        self._caller = caller
        self._held = tokens

    def refund(self, tokens: int) -> None:
        """Give back tokens that were not computed after all, at most those charged; they are in flight no more."""
        tokens = min(tokens, self.tokens)
        self.tokens -= tokens
        if self._caller.limits.tokens_per_minute is not None:
            self._books.refund(self._caller.team, tokens)
        self._release(min(tokens, self._held), done=False)

    def close(self) -> None:
        """The tokens are in flight no more. Again, it does nothing."""
        self._release(self._held, done=True)

    def _release(self, tokens: int, *, done: bool) -> None:
        self._held -= tokens
        self._books.release(self._caller.team, tokens, done=done)
